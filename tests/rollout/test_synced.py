"""Two ranks whose forward passes are tied make equally many of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]


def two_ranks(tmp_path: Path, how: str) -> list[dict]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("synced_probe.py"))
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path / "store"), how],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    results = [process.communicate(timeout=120) for process in running]
    assert [p.returncode for p in running] == [0, 0], results
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in results]


def test_ranks_that_finish_early_keep_the_others_company(tmp_path):
    first, second = two_ranks(tmp_path, "even")
    # Sorted by length and row, two at a time: [6] and [5] together, then [7].
    assert first["completions"] == [[7, 0], [6, 7, 0], [0]]
    assert second["completions"] == [
        [10, 11, 12, 13, 14, 0], [6, 7, 8, 9, 10, 11, 12, 13, 14, 0], [8, 9, 10, 11, 12, 13, 14, 0],
    ]  # fmt: skip
    # One forward per token of the longest completion of each batch: 10 and 8.
    assert first["forwards"] == second["forwards"] == 18


def test_uneven_ranks_are_refused_instead_of_hanging(tmp_path):
    for found in two_ranks(tmp_path, "uneven"):
        assert (
            "synced_gpus needs equally many completions on every rank, got 2 to 3"
            in (found["error"])
        )


def test_a_rank_that_is_told_to_stop_takes_the_other_with_it(tmp_path):
    for found in two_ranks(tmp_path, "told"):
        assert found == {"error": "sampling was interrupted", "forwards": 4}
