"""Runs in processes of their own, as a user starts them, and what is done to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))
import launching
import small_runs as runs

LIMIT_S = 240  # for anything to happen, on a busy machine


@dataclass
class Process:
    """A started run; out: everything it has printed so far, on both streams."""

    popen: subprocess.Popen
    folder: Path
    log: Path

    @property
    def out(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], Any]) -> bool:
        """Wait until something is so; False if the process ended before."""
        end = time.monotonic() + LIMIT_S
        while not happened():
            if self.popen.poll() is not None:
                return False
            assert time.monotonic() < end, self.out
            time.sleep(0.001)
        return True

    def until_step(self, step: int) -> bool:
        """Wait until a step has been logged."""
        file = self.folder / "metrics.jsonl"
        text = f'{{"step": {step}, "loss"'
        return self.until(lambda: file.exists() and text in file.read_text(errors="replace"))

    def kill(self) -> None:
        """SIGKILL to the launcher and all its processes at once."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(30)

    def rank(self, number: int) -> psutil.Process | None:
        """The process of one rank."""
        try:
            for child in psutil.Process(self.popen.pid).children(recursive=True):
                if child.environ().get("RANK") == str(number):
                    return child
        except psutil.Error:
            pass
        return None

    def wait(self, seconds: float = LIMIT_S) -> int:
        """Exit code; a run that does not end in time is killed and fails the test."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.out}") from None


def start(
    method: str, folder: Path, *options: object, launcher: str | None = None, wrong: str = ""
) -> Process:
    """Start a recipe in `folder`.

    launcher: name of a launch configuration, None: plain python. wrong: a fault of `probe.py`.
    """
    argv = runs.arguments(folder, *options)
    script = f"recipes/{method}.py"
    if wrong:
        script, argv = "tests/faults/probe.py", [wrong, method, *argv]
    words = [sys.executable, script, *argv]
    if launcher is not None:
        words = launching.words(script, argv, launching.config_file(launcher))
    return started(words, folder)


def started(words: list[str], folder: Path, **env: str) -> Process:
    """Start a command line whose run writes to `folder`."""
    log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        popen = subprocess.Popen(
            words, cwd=launching.ROOT, env=launching.environment() | env, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Process(popen, folder, log)


def same(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, to the last bit, and the same figures."""
    first, second = runs.weights(a), runs.weights(b)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert runs.figures(a) == runs.figures(b)
