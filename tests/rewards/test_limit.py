"""The time limit of a reward: what it leaves as it was, and where there is none."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import pytest

from align.config_errors import UserError
from align.rewards import RewardError, WeightedSum
from align.rewards.limit import limited

if not hasattr(signal, "SIGUSR2"):
    pytest.skip("no SIGUSR2", allow_module_level=True)
LATE = RewardError("太慢 too slow")


def test_what_returns_in_time_is_returned_and_the_handler_is_put_back():
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGUSR2, mine)
    try:
        assert limited(lambda: 17, 60, LATE) == 17
        with pytest.raises(ZeroDivisionError):
            limited(lambda: 1 / 0, 60, LATE)
        with pytest.raises(RewardError, match="太慢 too slow"):
            limited(lambda: time.sleep(60), 0.05, LATE)
        assert signal.getsignal(signal.SIGUSR2) is mine
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_function_that_catches_every_exception_is_ended_too():
    def stubborn():
        while True:
            with suppress(Exception):
                time.sleep(60)

    with pytest.raises(RewardError, match="too slow"):
        limited(stubborn, 0.05, LATE)


def test_the_alarm_is_free_for_the_function():
    def alarmed():
        with pytest.raises(InterruptedError):
            time.sleep(60)
        return 1

    def ring(number, frame):
        raise InterruptedError

    # pytest-timeout has the alarm otherwise.
    handler, left = signal.signal(signal.SIGALRM, ring), signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        assert limited(alarmed, 60, LATE) == 1
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *left)


def test_outside_the_main_thread_there_is_no_limit():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(limited(lambda: time.sleep(0.2) or 5, 0.01, LATE))
    )
    thread.start()
    thread.join()
    assert found == [5]


class Broken:
    name = "坏的 broken"

    def __init__(self, error):
        self.error = error

    def __call__(self, prompts, completions, finished):
        raise self.error


def test_whatever_a_reward_raises_its_name_is_said():
    reward = WeightedSum([Broken(ValueError("x"))], [1.0])
    with pytest.raises(RewardError, match="reward '坏的 broken' failed: ValueError: x"):
        reward.score([[]], ["a"], [True])
    reward = WeightedSum([Broken(UserError("rewards", 1, "is wrong"))], [1.0])
    with pytest.raises(UserError):
        reward.score([[]], ["a"], [True])
