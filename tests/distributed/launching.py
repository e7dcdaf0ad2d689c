"""Starting a script with several processes the way a user does, and what the runs must share."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def words(script: str, arguments: list[str], launcher: list[str]) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "accelerate.commands.launch", *launcher, script, *arguments]


def environment() -> dict[str, str]:
    """Like a shell's, with DeepSpeed's ninja on the path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env


def launch(
    script: str, arguments: list[str], launcher: list[str], timeout: int = 500
) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch` from the checkout's root."""
    return subprocess.run(
        words(script, arguments, launcher), cwd=ROOT, env=environment(), capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip


def config_file(name: str) -> list[str]:
    """The launcher's options for ds_configs/accelerate_<name>.yaml."""
    return ["--config_file", f"ds_configs/accelerate_{name}.yaml"]


def need(name: str) -> None:
    """Skip what this system cannot run."""
    if sys.platform == "win32":
        pytest.skip("gloo under accelerate is tested on Linux and macOS")
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="extra 'deepspeed'")
        if shutil.which("g++") is None:
            pytest.skip("DeepSpeed compiles an extension on the CPU: install g++")


def reports(run: subprocess.CompletedProcess[str]) -> list[dict]:
    """What the ranks printed, in the order of the ranks; two may share a line."""
    decoder = json.JSONDecoder()
    starts = [m.end() for m in re.finditer("PROBE ", run.stdout)]
    rows = [decoder.raw_decode(run.stdout, start)[0] for start in starts]
    return sorted(rows, key=lambda row: row["rank"])
