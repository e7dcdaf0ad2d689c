"""Whole runs in this process on the smoke configuration, and what they leave."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from align.config import load_config
from align.fresh import make_fresh
from align.run import run

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml")]
CONSTANT = ("--train.lr_scheduler_type", "constant")
FILES = ("model.safetensors", "critic/model.safetensors", "critic/critic.safetensors",
         "adapter/adapter_model.safetensors")  # fmt: skip
# What the clock decides, and the last line of a run, which has nothing else.
TIMING = ("tokens_per_s", "mfu", "runtime", "per_second", "time/")


@functools.cache
def place() -> Path:
    """A folder that lives as long as the test process."""
    folder = tempfile.mkdtemp(prefix="align-runs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def base() -> str:
    """Folder of the smoke configuration's random model and its tokenizer."""
    return str(make_fresh(load_config("sft", SMOKE), place() / "base"))


@functools.cache
def sharp() -> str:
    """The same with larger weights: what it samples depends on the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = place() / "sharp"
    model = AutoModelForCausalLM.from_pretrained(base())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base()).save_pretrained(folder)
    return str(folder)


def arguments(folder: Path, *extra: object) -> list[str]:
    """The command line of a run in `folder`; extra: options and their values."""
    given = ["--train.output_dir", folder, "--policy.path", base(), *extra]
    return [*SMOKE, *map(str, given)]


def train(method: str, folder: Path, *extra: object) -> Path:
    """Run a method to its end; returns its folder."""
    assert run(method, arguments(folder, *extra)) == 0
    return folder


def weights(run_dir: Path, inner: str = "final") -> dict[str, Any]:
    """Every tensor that a run has saved for the next stage."""
    found = {}
    for name in FILES:
        file = run_dir / inner / name
        if file.is_file():
            found |= {f"{name}:{key}": tensor for key, tensor in load_file(file).items()}
    assert found
    return found


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def figures(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    return [
        {k: v for k, v in row.items() if not any(part in k for part in TIMING)}
        for row in lines(run_dir)
        if "train_runtime" not in row
    ]


def manifest(run_dir: Path) -> dict[str, Any]:
    """The run's manifest."""
    return json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))


def trace_difference(expected: Path, found: Path, limit: float) -> str:
    """Largest differences of loss and gradient norm over the steps, as text; all within limit."""
    largest = {}
    for name in ("loss", "grad_norm"):
        traces = [[row[name] for row in lines(run) if name in row] for run in (expected, found)]
        assert len(traces[0]) == len(traces[1]) >= 4
        assert len(set(traces[0])) > 1  # something moves
        apart = [abs(a - b) for a, b in zip(*traces, strict=True)]
        assert max(apart) <= limit, f"{name}: {traces}"
        largest[name] = max(apart)
    return f"loss {largest['loss']:.0e}, norm {largest['grad_norm']:.0e}"
