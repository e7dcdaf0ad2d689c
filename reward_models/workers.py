"""Functions over many batches in a few processes, results in order.

A worker that has nothing more to hear from its parent ends at once, whatever it is doing, so that
no process outlives an import that was stopped, even by a kill.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple

from align.config_errors import UserError

MOST = 4
# Batches on the way to one worker: while it works on one, the next is there already.
WAITING = 2


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usual_workers() -> int:
    """As many as there are cores, four at most; none where one core has to do it all."""
    n = min(cores(), MOST)
    return n if n > 1 else 0


class Known(NamedTuple):
    """A batch whose result is known; it only waits for its turn."""

    result: Any


class Workers:
    """Processes that call functions of importable modules; without any, this process does.

    ``close`` them.
    """

    def __init__(self, n: int, setup: Any = None):
        """n: how many processes. setup: given to every call; it must be picklable."""
        self.setup = setup
        self._links: list[Connection] = []
        self._processes: list[Any] = []
        self._senders: list[_Sender] = []
        # A fork knows everything already; with other threads around it may hold their locks.
        fork = sys.platform == "linux" and threading.active_count() == 1
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        try:
            for _ in range(n):
                mine, its = context.Pipe()
                self._links.append(mine)
                others = list(self._links) if fork else []
                process = context.Process(target=_serve, args=(its, others, setup), daemon=True)
                process.start()
                self._processes.append(process)
                its.close()
        except BaseException:
            self.close()
            raise
        self._senders = [_Sender(link) for link in self._links]  # threads: after the last fork

    def __len__(self) -> int:
        return len(self._processes)

    def map(
        self, function: Callable[[Any, Any], Any], batches: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        """(batch, function(setup, batch)) of each batch, in order; a few batches are in memory.

        What a call raises in a worker it raises here, since the call is repeated in this process.
        UserError where a worker died. Go through all of it, or ``close``.
        """
        away: deque[tuple[int, Any]] = deque()
        turn = 0
        for batch in batches:
            if len(away) >= WAITING * len(self._links) and away:
                yield self._result(function, away)
            if isinstance(batch, Known):
                away.append((-1, batch))
                continue
            if not self._links:
                yield batch, function(self.setup, batch)
                continue
            k = turn = (turn + 1) % len(self._links)
            self._senders[k].send((function, batch))
            away.append((k, batch))
        while away:
            yield self._result(function, away)

    def _result(self, function: Any, away: deque[tuple[int, Any]]) -> tuple[Any, Any]:
        k, batch = away.popleft()
        if isinstance(batch, Known):
            return batch, batch.result
        try:
            done, result = self._links[k].recv()
        except (EOFError, OSError):
            self._processes[k].join(1)
            code = self._processes[k].exitcode
            raise UserError(
                "workers",
                len(self),
                f"lost one: it ended with exit code {code}",
                "Memory may be short: use fewer, or --workers 0",
            ) from None
        return batch, result if done else function(self.setup, batch)

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.close()
        for process in self._processes:
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()
        for sender in self._senders:
            sender.end()
        self._links, self._processes, self._senders = [], [], []


class _Sender:
    """Sends from a thread: a full pipe must not keep the parent from taking results."""

    def __init__(self, link: Connection):
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._link = link
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: Any) -> None:
        self._queue.put(message)

    def end(self) -> None:
        self._queue.put(None)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the worker is gone: whoever waits for it notices
            while (message := self._queue.get()) is not None:
                self._link.send(message)


def _serve(link: Connection, others: list[Connection], setup: Any) -> None:
    """What a worker does. others: the parent's ends, which a fork must not hold open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    batches: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        try:
            while True:
                batches.put(link.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        function, batch = batches.get()
        try:
            answer = True, function(setup, batch)
        except Exception:
            answer = False, None
        with contextlib.suppress(OSError):  # nobody listens any more: the thread ends all this
            link.send(answer)
