"""The shipped launch configurations really train with two processes on the CPU.

The exit code proves nothing: the obvious launches exit 0 with one process, or with two that never
meet. So every rank reports its world size and a sum over all ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launching import config_file, launch, need, reports

pytestmark = pytest.mark.distributed
PROBE = "tests/distributed/trainer_probe.py"


def two_ranks(tmp_path: Path, name: str) -> list[dict]:
    need(name)
    run = launch(PROBE, [str(tmp_path)], config_file(name))
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
    return two_ranks(tmp_path_factory.mktemp("ddp"), "cpu2")


def test_cpu2_is_one_job_of_two_processes(ddp):
    assert {row["engine"] for row in ddp} == {"DistributedDataParallel"}


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_zero_equals_ddp(stage, ddp, tmp_path):
    rows = two_ranks(tmp_path, stage)
    assert {row["engine"] for row in rows} == {"DeepSpeedEngine"}
    assert rows[0]["losses"] == pytest.approx(ddp[0]["losses"], abs=2e-5)


def test_single_is_one_process(tmp_path):
    run = launch(PROBE, [str(tmp_path)], config_file("single"))
    assert run.returncode == 0, run.stderr[-3000:]
    assert [(row["world"], row["sum"]) for row in reports(run)] == [(1, 1.0)]
