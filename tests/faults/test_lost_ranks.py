"""A rank that dies, fails or hangs: the others name it and stop within bounded time."""

from __future__ import annotations

import re
import signal
import socket
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
    fault(
        "SIGKILL of one of two processes (DDP, ZeRO-2)",
        "the launch ends within 45 s and its log names the dead process",
    )
    running = processes.start(method, tmp_path / "run", *LONG, launcher=launcher)
    assert running.until_step(3), running.out
    victim = running.rank(number)
    victim.send_signal(signal.SIGKILL)
    start = time.monotonic()
    assert running.wait(45) == 1
    assert time.monotonic() - start < 45
    said = re.search(rf"\[rank {1 - number}\] (.*); stopping", running.out)
    assert said, running.out
    assert f"rank {number} on {socket.gethostname()} (pid {victim.pid}) has" in said[1]
    if number:  # the manifest is rank 0's
        assert processes.runs.manifest(tmp_path / "run")["error"] == said[1]


def test_a_rank_that_fails_is_named_with_its_error_by_the_others(tmp_path, fault):
    processes.launching.need("cpu2")
    fault("an error in one of two processes", "the others name the process and its error and stop")
    running = processes.start("sft", tmp_path / "run", *LONG, launcher="cpu2", wrong="failing_rank")
    assert running.wait(120) == 1
    assert "[rank 1] Traceback" in running.out
    assert re.search(
        r"\[rank 0\] rank 1 on \S+ \(pid \d+\) failed: ValueError: 磁盘坏了 the disk of this "
        "machine is broken; stopping",
        running.out,
    ), running.out


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_rank_that_stands_still_is_named(tmp_path, fault, number):
    processes.launching.need("cpu2")
    fault(
        "one of two processes hangs (SIGSTOP)",
        "named after train.rank_timeout_s without a sign of life, and the launch ends",
    )
    options = (*LONG, "--train.rank_timeout_s", 4)
    running = processes.start("sft", tmp_path / "run", *options, launcher="cpu2")
    assert running.until_step(3), running.out
    victim = running.rank(number)
    victim.suspend()
    assert running.until(lambda: "; stopping" in running.out), running.out
    running.rank(1 - number).wait(30)  # psutil.TimeoutExpired if it does not end
    if number == 0:
        victim.kill()  # torchrun would wait half a minute before it does
    assert running.wait(60) == 1
    said = re.search(rf"\[rank {1 - number}\] (.*); stopping", running.out)
    assert said, running.out
    assert f"rank {number} on {socket.gethostname()} (pid {victim.pid}) has not" in said[1]
