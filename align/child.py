"""Stages in child processes of their own, which share one import of torch and its company.

A stage's imports take as long as a small stage itself. Where nothing can go wrong with it this
process imports them once and a stage is a fork of it; elsewhere it is a new interpreter.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from align import launch_env

# Device files of the drivers of NVIDIA, AMD, Habana, Ascend and Intel.
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel", "/dev/davinci_manager", "/dev/dri",
            "/dev/dxg")  # fmt: skip
_CODE = "import sys; from align.child import call; call(sys.argv[1], sys.argv[2:])"
# How many threads this process had when it had imported torch for its children and not used it.
_threads: int | None = None


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
    _import_once()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(module, argv, env)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def can_fork() -> bool:
    """Return whether children may be forks of this process.

    Not where there is an accelerator (a driver that was touched does not survive a fork), nor when
    torch has computed here: a fork waits for ever for the threads of its pool.
    """
    if sys.platform != "linux" or has_accelerator():
        return False
    return "torch" not in sys.modules if _threads is None else _count_threads() <= _threads


def has_accelerator() -> bool:
    """Return whether a driver of an accelerator is loaded."""
    return any(Path(path).exists() for path in _DEVICES)


def call(module: str, argv: list[str]) -> None:
    """Run `module.main(argv)` in this process and leave with its exit code."""
    sys.exit(importlib.import_module(module).main(argv))


def _import_once() -> None:
    global _threads
    if _threads is not None:
        return
    # deepspeed asks for its device when it is imported; there is only the CPU where we fork.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    importlib.import_module("align.train.ppo")  # and with it what the other stages import
    _threads = _count_threads()


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _be_child(module: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    """Never return: what the parent would do after the fork is the parent's alone."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(env)
        call(module, argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # a tracker's last upload, say
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
