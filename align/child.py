"""Stages in child processes of their own, which share one import of torch and its company.

A stage's imports take as long as a small stage itself. Where nothing can go wrong with it (Linux
without an accelerator: a driver that was touched does not survive a fork) a server process imports
them once and forks a child for each stage; elsewhere each child is a new interpreter.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align import launch_env

# Device files of the drivers of NVIDIA, AMD, Habana, Ascend and Intel.
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel", "/dev/davinci_manager", "/dev/dri",
            "/dev/dxg")  # fmt: skip
_CODE = "import sys; from align.child import call; call(sys.argv[1], sys.argv[2:])"


def run_child(module: str, argv: list[str]) -> int:
    """Run `module.main(argv)` as a single process outside any launcher; return its exit code.

    A child that a signal ends has a negative code, as with subprocess.
    """
    env = launch_env.single_process_env()
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
    if not can_fork():
        command = [sys.executable, "-c", _CODE, module, *argv]
        return subprocess.run(command, env=env, check=False).returncode
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["align.child_imports"])
    child = context.Process(target=_forked, args=(module, argv, env, os.getcwd()), name=module)
    with _environment(env):  # the server is started by the first child, and imports with this
        child.start()
    child.join()
    return child.exitcode or 0


def can_fork() -> bool:
    """Return whether children may be forks of a process that has imported torch."""
    return sys.platform == "linux" and not any(Path(path).exists() for path in _DEVICES)


def call(module: str, argv: list[str]) -> None:
    """Run `module.main(argv)` in this process and leave with its exit code."""
    sys.exit(importlib.import_module(module).main(argv))


def _forked(module: str, argv: list[str], env: dict[str, str], folder: str) -> None:
    # The server stands where it was started, with the environment of that moment.
    _set_environment(env)
    os.chdir(folder)
    call(module, argv)


def _set_environment(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


@contextmanager
def _environment(env: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    _set_environment(env)
    try:
        yield
    finally:
        _set_environment(before)
