"""A signal during a rollout, which may take minutes, is noticed within one token."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import processes
from processes import runs

from align.checkpoint_files import COMPLETE

pytestmark = pytest.mark.faults
# Four steps an update: the second rollout comes after step 4. A rollout is 16 tokens long.
OPTIONS = ("--train.resume", "auto", "--train.max_steps", 8, "--train.save_steps", 100,
           "--train.eval_strategy", "no", "--ppo.kl_target", 1.0, "--ppo.score_norm", "mean_std",
           *runs.CONSTANT)  # fmt: skip


def stopped(folder: Path, launcher: str | None, number: int) -> processes.Process:
    """A run that got a signal (rank 1 of two) in the middle of its second rollout."""
    running = processes.start("ppo", folder, *OPTIONS, launcher=launcher, wrong="slow_rollout")
    assert running.until(lambda: "TOKEN\nTOKEN\n" in running.out), running.out
    victim = running.popen if launcher is None else running.rank(1)
    victim.send_signal(number)
    running.wait(60)
    return running


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.nightly)]
)
def test_a_rollout_is_given_up_and_repeated(tmp_path, fault, number):
    fault(
        "SIGTERM or SIGUSR1 during a PPO rollout",
        "noticed within a token; the last finished step is saved, exit 75; final weights equal "
        "to the last bit",
    )
    folder = tmp_path / "run"
    running = stopped(folder, None, number)
    assert running.popen.returncode == 75, running.out
    assert f"stopped: {number.name}; saved {folder}/checkpoint-4" in running.out
    assert (folder / "checkpoint-4" / COMPLETE).is_file()
    assert running.out.count("TOKEN") < 8  # of 16
    again = processes.start("ppo", folder, *OPTIONS)
    assert again.wait() == 0, again.out
    assert "ppo 5/8" in again.out
    assert "ppo 4/8" not in again.out
    processes.same(runs.train("ppo", tmp_path / "whole", *OPTIONS), folder)


def test_one_of_two_processes_is_told_and_both_give_the_rollout_up(tmp_path, fault):
    processes.launching.need("cpu2")
    fault(
        "SIGUSR1 to one of two processes during a PPO rollout",
        "all processes give the rollout up, the last finished step is saved",
    )
    folder = tmp_path / "run"
    running = stopped(folder, "cpu2", signal.SIGUSR1)
    assert running.out.count(f"; saved {folder}/checkpoint-4") == 2, running.out
    assert "stopped: SIGUSR1; saved" in running.out
    assert "another rank was signalled; saved" in running.out
    assert (folder / "checkpoint-4" / COMPLETE).is_file()
    assert running.out.count("TOKEN") < 24  # of 32
