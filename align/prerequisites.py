"""What `auto` refers to: the demo's data and earlier stages, built where they are missing.

A stage is built by a child process that runs the very recipe the user would run. Under a launcher
local rank 0 builds and the other ranks wait, before any process group exists: a stage of several
minutes would outlast the group's timeouts.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import launch_env
from align.child import run_child
from align.config import DEFAULT_FILE, SCRIPTS, load_config
from align.config_errors import UserError
from align.config_own_data import data_read
from align.run_manifest import read_manifest, recipe_hash

if TYPE_CHECKING:
    from align.config import Config

PREVIOUS = {"pretrain": None, "sft": "pretrain", "reward": "sft", "dpo": "sft", "orpo": "sft",
            "ppo": "sft"}  # fmt: skip
_HELDOUT = {"tokenizer": "text_heldout", "pretrain": "text_heldout", "sft": "sft_heldout",
            "reward": "preferences_heldout", "dpo": "preferences_heldout",
            "orpo": "preferences_heldout", "ppo": "prompts_heldout"}  # fmt: skip
# Sections that describe the earlier stages too, so that overrides of them are handed on.
_SHARED = ("data", "demo", "tokenizer", "pretrain", "sft", "reward", "per_method")
_POLL_SECONDS = 1.0


def say(text: str) -> None:
    """Tell the user, once per machine."""
    if launch_env.local_rank() == 0:
        print(f"[align] {text}", flush=True)


def fill(config: Config) -> list[str]:
    """Replace every `auto` that `config.method` reads by its path; return the stages referred to.

    Changes config in place. The paths need not exist yet.
    """
    stages: list[str] = []

    def final(stage: str) -> str:
        stages.append(stage)
        return os.path.join(config.demo.root, stage, "final")

    method = config.method
    _fill_data(config)
    if config.policy.path == "auto":
        previous = PREVIOUS.get(method)
        config.policy.path = None if previous is None else final(previous)
    if method == "pretrain" and config.pretrain.tokenizer == "auto":
        config.pretrain.tokenizer = None if config.policy.path else final("tokenizer")
    if method == "ppo":
        for reward in config.rewards:
            if reward.kind == "model" and reward.path == "auto":
                reward.path = final("reward")
        if config.ppo.critic_path == "auto":
            config.ppo.critic_path = final("reward")
    return list(dict.fromkeys(stages))


def _fill_data(config: Config) -> None:
    data, paths = config.data, demo_files(config)
    for name in ("text", "sft", "preferences", "prompts"):
        if getattr(data, name) == "auto":
            setattr(data, name, paths[name])
    if data.validation == "auto":
        heldout = _HELDOUT.get(config.method)
        data.validation = paths[heldout] if heldout else None
    if config.eval.prompts == "auto":
        config.eval.prompts = paths["prompts_heldout"]


def demo_files(config: Config) -> dict[str, str]:
    """Return where the demo's data files are, whether or not they are there yet."""
    from align.data.demo import demo_paths

    return {name: str(path) for name, path in demo_paths(config.demo.root).items()}


def uses_demo_data(config: Config) -> bool:
    """Return whether `config.method` reads a file of the demo's (call before `fill`)."""
    names = [*data_read(config), "validation"]
    values = [getattr(config.data, name) for name in names]
    return "auto" in [*values, config.eval.prompts if config.method == "ppo" else None]


def has_demo_data(config: Config) -> bool:
    """Return whether all of the demo's data files are there."""
    return all(Path(path).exists() for path in demo_files(config).values())


def missing_stages(config: Config) -> list[str]:
    """Return what would be built before `config`'s own stage, in that order; builds nothing."""
    found: list[str] = []
    for stage in fill(copy.deepcopy(config)):
        if not is_finished(Path(config.demo.root) / stage):
            earlier = missing_stages(load_config(stage, stage_argv(stage, config)))
            found += [name for name in (*earlier, stage) if name not in found]
    return found


def prepare(config: Config) -> None:
    """Build what `auto` refers to and is missing, then replace `auto` by paths."""
    if uses_demo_data(config):
        demo_data(config)
    for stage in fill(config):
        ensure(stage, config)


def demo_data(config: Config) -> None:
    """Write the demo's data files unless they are all there."""
    paths = [Path(path) for path in demo_files(config).values()]
    if has_demo_data(config):
        return None
    if not config.demo.build:
        missing = next(path for path in paths if not path.exists())
        raise UserError("demo.build", False, f"but {missing} is missing", "Use true")
    if launch_env.local_rank() != 0:
        return _wait(lambda: has_demo_data(config))
    from align.data.demo import build_demo_data

    say(f"writing the demo's data to {paths[0].parent}")
    build_demo_data(config.demo.root, importer=_import_annotations, cleaner=_clean)
    return None


def _clean(reviews: Path, corpus: Path) -> None:
    """Clean a file of reviews into the text that the tokenizer and pre-training read."""
    from align.cleaning.main import main

    if main(["--input", str(reviews), "--output", str(corpus), "--workers", "1"]) != 0:
        raise UserError("data.text", "auto", "cannot be cleaned; see the message above")


def _import_annotations(export: Path, preferences: Path) -> None:
    """Turn one Label Studio export into a file of preference groups."""
    from reward_models.annotations.base import Options
    from reward_models.annotations.label_config import load_label_config
    from reward_models.importing import ImportSettings, run_import

    layout = load_label_config(str(export.with_name("labeling_config.xml")))
    folder = preferences.with_suffix(".import")
    settings = ImportSettings(
        inputs=(str(export),), output=folder, options=Options(layout), fractions=(1.0, 0.0, 0.0)
    )
    run_import(settings, say=say)
    os.replace(folder / "preferences.jsonl", preferences)


def ensure(stage: str, config: Config) -> None:
    """Return when `stage` is finished; build it first where this rank is the one to do so."""
    run_dir = Path(config.demo.root) / stage
    if is_finished(run_dir):
        note = "" if is_ready(stage, stage_argv(stage, config)) else (
            f" (made with other settings or inputs than the config's; remove {run_dir} to rebuild)"
        )  # fmt: skip
        say(f"using {run_dir / 'final'}{note}")
        return None
    if not config.demo.build:
        reason = f"but stage '{stage}' ({run_dir}) is not finished"
        raise UserError("demo.build", False, reason, f"Use true, or run recipes/{SCRIPTS[stage]}")
    if launch_env.local_rank() != 0:
        return _wait(lambda: is_finished(run_dir))
    say(f"building {run_dir}, which {config.method} needs")
    return build(stage, stage_argv(stage, config))


def build(stage: str, argv: list[str]) -> None:
    """Run one stage in a child process of its own; raise if it fails."""
    code = run_child("align.run", [stage, *argv])
    if code == 2:
        raise UserError(stage, " ".join(argv), "cannot be built; see the message above")
    if code != 0:
        raise RuntimeError(f"stage '{stage}' failed with exit code {code}")


def stage_argv(stage: str, config: Config) -> list[str]:
    """Return the command line that builds `stage` for `config`.

    The same file and the overrides of shared sections; the demo's own file where the user's has
    not what the stage needs.
    """
    root = ["--demo.root", config.demo.root]
    arguments = config.arguments
    if arguments.file is None:
        shared = [o for o in arguments.overrides if o[0].split(".")[0] in _SHARED]
        return [*root, *_words(shared)]
    shared = [o for o in arguments.overrides if o[0].split(".")[0] in _SHARED]
    argv = ["--config", arguments.file, *_words(shared), *root]
    try:
        load_config(stage, argv)
    except UserError:
        return ["--config", str(DEFAULT_FILE), *root]
    return argv


def _words(overrides: list[tuple[str, str]]) -> list[str]:
    return [word for name, value in overrides for word in (f"--{name}={value}",)]


def is_finished(run_dir: Path) -> bool:
    """Return whether a stage ran to its end and left a model or tokenizer."""
    return bool(read_manifest(run_dir).get("finished")) and (run_dir / "final").is_dir()


def is_ready(stage: str, argv: list[str]) -> bool:
    """Return whether a stage finished from the settings and inputs that `argv` gives now."""
    config = load_config(stage, argv)
    if uses_demo_data(config) and not has_demo_data(config):
        return False
    # The earlier stages' outputs are among the inputs that are hashed.
    if not all(is_finished(Path(config.demo.root) / previous) for previous in fill(config)):
        return False
    run_dir = Path(config.train.output_dir)
    return is_finished(run_dir) and (
        read_manifest(run_dir).get("recipe_hash") == recipe_hash(config)
    )


def _wait(ready: Any) -> None:
    # A failing builder ends the launch, and the launcher then ends the ranks that wait here.
    while not ready():
        time.sleep(_POLL_SECONDS)
