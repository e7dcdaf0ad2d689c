"""What a finished run says about itself: its evaluations on the way, its time and its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from align.config_yaml import load_yaml
from align.files import read_object
from align.report.run import read_lines

REWARD_KEYS = ("eval_score/mean", "eval_reward", "score/mean")
KL_KEYS = ("eval_kl/sum", "eval_kl", "kl/sum")
# The parts of a PPO update: their sum is the run's time if it records no other.
TIME_PARTS = ("time/rollout", "time/score", "time/optimise")
TIME_KEYS = ("duration_s", "time_s", "runtime", "train_runtime", "wall_s")
# What the device held, else the process.
MEMORY_KEYS = ("peak_device_memory_mb", "peak_memory_mb")
TOKEN_KEYS = ("tokens", "tokens_seen", "num_input_tokens_seen")


def trajectory(run_dir: Path, limit: int = 60) -> list[dict[str, float]]:
    """Points {step, kl, reward} of a run, from evaluations where there are any.

    Evaluations and training logs are never mixed: they are measured on different prompts.
    """
    rows = read_lines(run_dir / "metrics.jsonl")
    for reward_key, kl_key in zip(REWARD_KEYS, KL_KEYS, strict=True):
        points = {
            row["step"]: {"step": row["step"], "kl": row[kl_key], "reward": row[reward_key]}
            for row in rows
            if all(_finite(row.get(k)) for k in ("step", reward_key, kl_key))
        }
        if points:
            ordered = [points[s] for s in sorted(points)]
            every = math.ceil(len(ordered) / limit)
            return ordered[::every]
    return []


def cost(run_dir: Path) -> dict[str, Any]:
    """{"time_s", "tokens", "method", "peak_memory_mb"} of a run, None where it recorded none."""
    rows = read_lines(run_dir / "metrics.jsonl")
    manifest = read_object(run_dir / "manifest.json")
    time = _last(manifest, rows, TIME_KEYS)
    if time is None:
        parts = [row[k] for row in rows for k in TIME_PARTS if _finite(row.get(k))]
        time = sum(parts) if parts else None
    recorded = manifest.get("metrics")
    own = recorded if isinstance(recorded, dict) else {}
    return {
        "time_s": time,
        "tokens": _last(manifest | own, rows, TOKEN_KEYS),
        "method": manifest.get("method"),
        "peak_memory_mb": _last(own, [], MEMORY_KEYS),
    }


def config_value(run_dir: Path, dotted: str) -> Any:
    """A value of a run's config.yaml by its dotted name, or None."""
    try:
        value: Any = load_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _last(manifest: dict, rows: list[dict], keys: tuple[str, ...]) -> float | None:
    for key in keys:
        if _finite(manifest.get(key)):
            return manifest[key]
        found = [row[key] for row in rows if _finite(row.get(key))]
        if found:
            return found[-1]
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
