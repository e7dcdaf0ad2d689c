"""Every recipe under every shipped launch: the loss and gradient norm of one process, step by step.

Two ranks with 4 examples each take the step of one process with 8. The column of cpu2 is filled by
test_recipes.py, which asks more of it. `make test-distributed` runs all, every other run those of
ZeRO-2 and ZeRO-3.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from recipe_launches import METHODS, STEPS, one, two

pytestmark = pytest.mark.distributed
MODES = [
    "zero2", "zero3",
    *(pytest.param(m, marks=pytest.mark.nightly) for m in ("single", "zero1", "zero3_offload")),
]  # fmt: skip


@pytest.fixture(scope="module", params=METHODS)
def alone(request, tmp_path_factory):
    """(method, run of one process in this one)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, one(request.param, folder / "one", *STEPS)


@pytest.mark.parametrize("mode", MODES)
def test_a_launch_takes_the_steps_of_one_process(alone, mode, tmp_path, cell):
    method, expected = alone
    run = two(method, tmp_path / "run", mode, *STEPS)
    cell("matrix", method, mode, runs.trace_difference(expected, run, limit=1e-4))
