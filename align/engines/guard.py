"""Run a command that ends with whoever started it, also when that one is killed with SIGKILL.

    python -IS guard.py FD GRACE WORD …

FD is the reading end of a pipe whose only writing end the starter holds: it closes with the
starter, however that one ends. The guard leads the process group that the command and its workers
are in, and it ends the group then: SIGTERM, after GRACE seconds SIGKILL. Its own exit code, or the
signal it ends by, is the command's. A file by itself with nothing but the standard library: it is
started many times, and with any interpreter. POSIX.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

POLL_S = 0.1


def main(words: list[str]) -> int:
    """Run the command; return its exit code."""
    pipe, grace = int(words[0]), float(words[1])
    # A signal for the group reaches the command by itself; the guard stays to see it end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _seen)
    try:
        child = subprocess.Popen(words[2:])  # the pipe is not inherited: close_fds
    except OSError as error:
        print(f"{words[2]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    while child.poll() is None:
        if _closed(pipe):
            _end_group(child, grace)
    return child.returncode


def _seen(*_: object) -> None:
    """A handler rather than SIG_IGN, which the command would inherit."""


def _closed(pipe: int) -> bool:
    """Wait a moment; whether the starter has gone."""
    ready, _, _ = select.select([pipe], [], [], POLL_S)
    return bool(ready) and os.read(pipe, 1) == b""


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    os.killpg(0, signal.SIGTERM)
    end = time.monotonic() + grace
    while child.poll() is None and time.monotonic() < end:
        time.sleep(POLL_S)
    os.killpg(0, signal.SIGKILL)  # the workers that the command left, and the guard


def _end_as(code: int) -> None:
    """End as the command did: by the same signal where it was one."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    _end_as(main(sys.argv[1:]))
