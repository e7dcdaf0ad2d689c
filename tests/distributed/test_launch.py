"""The shipped launch configurations really train with two processes on the CPU.

The exit code proves nothing: the obvious launches exit 0 with one process, or with two that never
meet. So every rank reports its world size and a sum over all ranks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
PROBE = "tests/distributed/trainer_probe.py"


def launch(output: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run the probe under `accelerate launch` from the checkout's root."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # ninja, for DeepSpeed
    words = [sys.executable, "-m", "accelerate.commands.launch", *launcher, PROBE, str(output)]
    return subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )


def reports(run: subprocess.CompletedProcess[str]) -> list[dict]:
    """What the ranks printed, in the order of the ranks; two may share a line."""
    decoder = json.JSONDecoder()
    starts = [m.end() for m in re.finditer("PROBE ", run.stdout)]
    rows = [decoder.raw_decode(run.stdout, start)[0] for start in starts]
    return sorted(rows, key=lambda row: row["rank"])


def two_ranks(tmp_path: Path, name: str) -> list[dict]:
    run = launch(tmp_path, "--config_file", f"ds_configs/accelerate_{name}.yaml")
    assert run.returncode == 0, run.stderr[-3000:]
    rows = reports(run)
    assert [row["rank"] for row in rows] == [0, 1]
    assert [row["world"] for row in rows] == [2, 2]
    assert [row["sum"] for row in rows] == [3.0, 3.0]  # 1 from rank 0 and 2 from rank 1
    assert {row["backend"] for row in rows} == {"gloo"}
    assert rows[0]["losses"] == rows[1]["losses"]
    assert len(rows[0]["losses"]) == 4
    return rows


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    if sys.platform == "win32":
        pytest.skip("gloo under accelerate is tested on Linux and macOS")
    return two_ranks(tmp_path_factory.mktemp("ddp"), "cpu2")


def test_cpu2_is_one_job_of_two_processes(ddp):
    assert {row["engine"] for row in ddp} == {"DistributedDataParallel"}


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_zero_equals_ddp(stage, ddp, tmp_path):
    pytest.importorskip("deepspeed", reason="extra 'deepspeed'")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles an extension on the CPU: install g++")
    rows = two_ranks(tmp_path, stage)
    assert {row["engine"] for row in rows} == {"DeepSpeedEngine"}
    assert rows[0]["losses"] == pytest.approx(ddp[0]["losses"], abs=2e-5)


def test_single_is_one_process(tmp_path):
    run = launch(tmp_path, "--config_file", "ds_configs/accelerate_single.yaml")
    assert run.returncode == 0, run.stderr[-3000:]
    assert [(row["world"], row["sum"]) for row in reports(run)] == [(1, 1.0)]
