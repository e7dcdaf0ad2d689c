"""What a run was made of: versions, inputs' fingerprints, and whether it finished."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import SCRIPTS
from align.config_errors import UserError
from align.files import fingerprint, read_object, write_atomic

if TYPE_CHECKING:
    from align.config import Config

PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "tokenizers",
            "sentencepiece", "safetensors", "numpy", "deepspeed")  # fmt: skip
# Settings that change what is watched or kept, not what is learned.
_WATCHING = ("output_dir", "resume", "report_to", "run_name", "disable_tqdm", "save_total_limit",
             "log_level", "project", "ddp_timeout", "rank_timeout_s")  # fmt: skip


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Return a run's manifest, or {} where there is none that can be read."""
    return read_object(run_dir / "manifest.json")


def write_manifest(run_dir: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a run."""
    write_atomic(
        run_dir / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    )


def same_setup(file: Path, setup: dict[str, Any]) -> None:
    """Note what a tool's folder is made of; UserError if it was made of something else."""
    found = read_object(file)
    if not found:
        write_atomic(file, json.dumps(setup, ensure_ascii=False, indent=1) + "\n")
        return
    for name, value in json.loads(json.dumps(setup)).items():
        if found.get(name) != value:
            kept = json.dumps(found.get(name), ensure_ascii=False)
            reason = f"holds results with another {name} ({kept[:80]})"
            raise UserError("--output", str(file.parent), reason, "Give another folder")


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def inputs(config: Config) -> dict[str, dict[str, str | None]]:
    """Return {key: {path, sha256}} of the files and models that the method reads."""
    from align.config_checks import NEEDED

    data, method = config.data, config.method
    paths: dict[str, str | None] = {}
    names = {NEEDED.get(method, ""), "validation"}
    if method == "ppo":
        names |= {"prompts", "preferences"} if data.prompts is None else {"prompts"}
        names |= {"sft"} if config.ppo.ptx_coef > 0 else set()
        paths["eval.prompts"] = config.eval.prompts
        paths["ppo.critic_path"] = config.ppo.critic_path
        for i, reward in enumerate(config.rewards):
            file = reward.path.rpartition(":")[0] if reward.kind == "function" else reward.path
            paths[f"rewards.{i}.path"] = file if reward.kind != "http" else None
    for name in sorted(filter(None, names)):
        if name == "text" and isinstance(data.text, dict):
            paths |= {f"data.text.{i}": path for i, path in enumerate(data.text)}
        else:
            paths[f"data.{name}"] = getattr(data, name)
    if method != "tokenizer":
        paths["policy.path"] = config.policy.path
    if method == "tokenizer":
        paths["tokenizer.extend"] = config.tokenizer.extend
    if method == "pretrain":
        paths["pretrain.tokenizer"] = config.pretrain.tokenizer
    if config.policy.lora is not None:
        paths["policy.lora.path"] = config.policy.lora.path
    return {k: {"path": p, "sha256": fingerprint(p)} for k, p in paths.items() if p is not None}


def recipe_hash(config: Config) -> str:
    """Return a hash of everything that decides a stage's result: settings and inputs' contents."""
    tree = config.to_dict()
    method = config.method
    train = {
        name: value
        for name, value in tree["train"].items()
        if name not in _WATCHING and not name.startswith(("logging_", "eval_", "save_"))
    }
    relevant: dict[str, Any] = {"method": method, "data": dict(tree["data"])}
    if method == "tokenizer":
        relevant |= {"tokenizer": dict(tree["tokenizer"]), "seed": train.get("seed")}
        for name in ("extend", "compare_with"):  # the one counts as an input, the other not at all
            del relevant["tokenizer"][name]
    else:
        relevant |= {"policy": dict(tree["policy"]), "train": train, method: tree.get(method)}
    if method in ("pretrain",) or config.policy.path is None:
        relevant |= {"pretrain": dict(tree["pretrain"]), "tokenizer": tree["tokenizer"]}
        relevant["pretrain"].pop("tokenizer", None)
    if method in ("dpo", "orpo"):
        relevant["reward"] = tree["reward"]  # how votes become targets
    if method == "ppo":
        rewards = [(r.kind, r.weight, r.calibrated) for r in config.rewards]
        relevant |= {"rollout": tree["rollout"], "rewards": rewards}
        relevant |= {"sft": tree["sft"]} if config.ppo.ptx_coef > 0 else {}
    if isinstance(config.data.text, dict):
        relevant["weights"] = [*config.texts.values()]
    for name in ("text", "sft", "preferences", "prompts", "validation"):
        relevant["data"].pop(name, None)  # their contents count, not their names
    relevant.get("policy", {}).pop("path", None)
    relevant["inputs"] = {k: v["sha256"] or v["path"] for k, v in inputs(config).items()}
    text = json.dumps(relevant, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def begin(config: Config, argv: list[str], world_size: int) -> dict[str, Any]:
    """Return the manifest of a run that starts now."""
    import align

    versions = {"python": platform.python_version(), "align": align.__version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "method": config.method,
        "finished": False,
        "started": now(),
        "argv": [SCRIPTS[config.method], *argv],
        "world_size": world_size,
        "versions": versions,
        "git": _git(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "inputs": inputs(config),
        "recipe_hash": recipe_hash(config),
    }


def peak_memory() -> dict[str, float]:
    """The most that this process has held, and its device where it has one, in MB of 10⁶ bytes."""
    found: dict[str, float] = {}
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        found["peak_memory_mb"] = round(peak / 1e6, 1)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            held = torch.cuda.max_memory_allocated()
            found["peak_device_memory_mb"] = round(held / 1e6, 1)
    return found


def _git() -> dict[str, Any]:
    """Return commit and dirtiness of the tree that this package is in, where it is a checkout."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit or None, "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def refuse_other_run(config: Config) -> None:
    """Raise UserError if output_dir holds a run of another method."""
    found = read_manifest(Path(config.train.output_dir)).get("method")
    if found and found != config.method:
        raise UserError(
            "train.output_dir", config.train.output_dir, f"holds a run of '{found}'",
            f"Give another folder, or auto for {config.demo.root}/{config.method}",
        )  # fmt: skip
