"""A time limit on a call in the main thread, where functions may use what only works there.

A thread sends this process a signal when time is up, and the handler raises. Code that never comes
back to Python (a lock in C) sees no signal: after a further while the process ends.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
GRACE_S = 30.0
_SIGNAL = getattr(signal, "SIGUSR2", None)


class _TimeIsUp(BaseException):
    """No Exception: a function that catches those in a loop would go on."""


def limited(call: Callable[[], T], seconds: float, error: Exception) -> T:
    """What the call returns; the error is raised if it takes longer.

    Outside the main thread, and on Windows, there is no limit.
    """
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
        return call()
    back = threading.Event()
    raised = False

    def up(number: int, frame: object) -> None:
        nonlocal raised
        if not back.is_set() and not raised:
            raised = True
            raise _TimeIsUp

    previous = signal.signal(_SIGNAL, up)
    clock = threading.Thread(target=_watch, args=(back, seconds, str(error)), daemon=True)
    clock.start()
    try:
        try:
            return call()
        finally:
            back.set()
    except _TimeIsUp:
        raise error from None
    finally:
        back.set()
        clock.join()  # before the handler goes: by default the signal ends the process
        signal.signal(_SIGNAL, previous)


def _watch(back: threading.Event, seconds: float, text: str) -> None:
    """The thread that looks at the clock."""
    if back.wait(seconds):
        return
    assert _SIGNAL is not None
    signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
    if back.wait(GRACE_S):
        return
    print(
        f"{text}, nor does it return to Python; this process ends. The run goes on "
        "from its last checkpoint. It stands at:",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    faulthandler.dump_traceback(file=sys.stderr)
    os._exit(1)
