"""A rank that dies, fails or hangs: the others name it and stop within bounded time."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import processes

pytestmark = pytest.mark.faults
LONG = ("--train.max_steps", 100_000, "--train.save_steps", 100_000, "--train.resume", "auto",
        "--train.eval_strategy", "no")  # fmt: skip


@pytest.mark.parametrize(
    ("method", "launcher", "number"), [("sft", "cpu2", 1), ("dpo", "cpu2", 0), ("sft", "zero2", 1)]
)
def test_a_rank_that_is_killed_ends_the_launch(tmp_path, fault, method, launcher, number):
    processes.launching.need(launcher)
    fault("SIGKILL of one of two processes (DDP, ZeRO-2)",
          "the launch ends within 45 s and its log names the dead process")
    running = processes.start(method, tmp_path / "run", *LONG, launcher=launcher)
    assert running.until_step(3), running.out
    victim = running.rank(number)
    victim.send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert running.wait(45) == 1
    assert time.monotonic() - start < 45
    assert f"(pid: {victim.pid})" in running.out or f"(pid {victim.pid})" in running.out
    other = 1 - number
    assert f"[rank {other}] rank {number} " in running.out or f"rank {number} on" in running.out
