"""The recipes that train nothing: their own options, or the `tools` section of a config file.

    recipes/export_model.py --model runs/sft/final --output exported
    recipes/export_model.py --config my.yaml [--output elsewhere] [--demo.root elsewhere]

`tools.export_model: {model: …, output: …}` in the file stands for `--model … --output …`; what is
on the command line comes after it and wins. Without any argument the demo's file is read.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from align.config import DEFAULT_FILE, load_config
from align.config_errors import UserError
from align.run import guarded, guarded_once

if TYPE_CHECKING:
    from align.config import Config

# tool: module with main(argv) -> int
MAINS = {
    "clean_corpus": "align.cleaning.main",
    "import_annotations": "reward_models.import_annotations",
    "evaluate_policy": "align.evaluation.evaluate_policy",
    "compare_runs": "align.evaluation.compare",
    "check_server": "align.serving.check_server",
    "export_model": "align.export.command",
    "serve_model": "align.serving.serve_model",
    "setup_engine": "align.engines.setup",
    "generate": "align.evaluation.generate",
    "red_team": "align.redteam.red_team",
    "canaries": "align.redteam.canaries",
    "arena": "align.feedback.main",
    "best_of_n": "align.iteration.best_of_n",
    "drift_report": "align.serving.drift_report",
}
# Their switches are on by default: `name: false` is --no-name.
_SWITCHED_OFF = ("clean_corpus",)
# Lists that a tool takes without a name, as it takes `command`.
_LISTED = ("runs", "engines")
# Each value of a list comes after its own --name.
_REPEATED = ("judge",)
# These have a --dry_run of their own, which shows more than the command.
_OWN_DRY_RUN = ("import_annotations", "serve_model", "setup_engine")
# Their work is shared by the processes of a launch; the others run on rank 0 alone.
_EVERY_RANK = ("evaluate_policy",)
_ASKS_ONLY = {"-h", "--help", "--print_config", "--dry_run"}
_OVERRIDE = re.compile(r"--[a-z_]+\.[^=]+(=|$)")


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a tool; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    shared = name in _EVERY_RANK and not _ASKS_ONLY & set(words)
    return (guarded if shared else guarded_once)(lambda: _run(name, words))


def _run(name: str, words: list[str]) -> int:
    words, flags = _take(words, ("--print_config", "--dry_run"))
    file, words = _take_value(words, "--config")
    asks_help = "-h" in words or "--help" in words
    words, overrides = _take_overrides(words)
    options: dict[str, Any] = {}
    if file or overrides or (not words and not asks_help):
        config = load_config(name, ["--config", file or str(DEFAULT_FILE), *overrides])
        options = tool_options(config, name)
        if not options and not words:
            raise UserError(
                f"tools.{name}", None, "is not in the config, and there are no options",
                f"See recipes/{name}.py --help",
            )  # fmt: skip
    command = [*to_words(options, switches=name in _SWITCHED_OFF), *words]
    if "--print_config" in flags:
        print(yaml.safe_dump({"tools": {name: options}}, allow_unicode=True, sort_keys=False))
        return 0
    if "--dry_run" in flags and name not in _OWN_DRY_RUN:
        print(f"recipes/{name}.py {shlex.join(command)}")
        return 0
    # First: behind a `--` it would be a word of the served engine.
    command = [*(["--dry_run"] if "--dry_run" in flags else []), *command]
    main = importlib.import_module(MAINS[name]).main
    try:
        return main(command) or 0
    except SystemExit as stop:  # argparse: --help, or an option that it does not know
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2


def tool_options(config: Config, name: str) -> dict[str, Any]:
    """Return `tools.<name>`, its paths moved to demo.root where that was overridden."""
    options = config.tools.get(name) or {}
    if not any(key == "demo.root" for key, _ in config.arguments.overrides):
        return options
    written = load_config(name, ["--config", config.arguments.file or str(DEFAULT_FILE)])
    old, new = written.demo.root, config.demo.root

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        inside = isinstance(value, str) and value.startswith(old + "/")
        return new + value[len(old) :] if inside else value

    return {key: moved(value) for key, value in options.items()}


def to_words(options: Mapping[str, Any], *, switches: bool = False) -> list[str]:
    """Return options as a command line: true is a bare flag; some stand without their name.

    switches: false is --no-NAME; else it is left out.
    """
    words = [str(options["command"])] if options.get("command") else []
    words += [str(word) for name in _LISTED for word in options.get(name) or []]
    for name, value in options.items():
        if value is False and switches:
            words.append(f"--no-{name}")
        if value is None or value is False or name in ("command", *_LISTED):
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            between = [f"--{name}"] if name in _REPEATED else []
            for i, item in enumerate(value):
                words += [*(between if i else []), str(item)]
        elif value is not True:
            words.append(str(value))
    return words


def _take(words: list[str], flags: tuple[str, ...]) -> tuple[list[str], set[str]]:
    return [w for w in words if w not in flags], {w for w in words if w in flags}


def _take_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off `--section.key VALUE`: no tool has an option with a dot in its name."""
    rest, overrides = [], []
    given = iter(words)
    for word in given:
        if not _OVERRIDE.match(word):
            rest.append(word)
            continue
        overrides.append(word)
        overrides += [] if "=" in word else islice(given, 1)
    return rest, overrides


def _take_value(words: list[str], name: str) -> tuple[str | None, list[str]]:
    value, rest = None, []
    given = iter(words)
    for word in given:
        if word == name:
            value = next(given, None)
            if value is None or value.startswith("--"):
                raise UserError(name, value, "needs a value", f"Write {name} FILE")
        elif word.startswith(f"{name}="):
            value = word[len(name) + 1 :]
        else:
            rest.append(word)
    if value is not None and not Path(value).exists():
        raise UserError(name, value, "does not exist", "Check the path")
    return value, rest
