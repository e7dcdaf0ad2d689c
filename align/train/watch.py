"""A rank that fails or falls silent is named, and the others stop in bounded time.

Ranks that wait for another in a collective learn nothing of its end, or only after the time-out of
the process group. So each has a thread beside training that meets the others' in a store of their
own: it gives a sign of life every second, and reads whether a rank is lost. Rank 0 holds the store
and looks after the signs; if it is lost itself, its store does not answer.

Store keys: beat/RANK (a count, or "ended"), verdict (who is lost, and why; the first one stays),
lost (a connection broke: look closely), halt (a rank was told to stop).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from align.distributed import any_rank, barrier, from_rank_zero, is_distributed, rank, world_size

BEAT_S = 1.0
CLOSELY_S = 5.0  # without a sign of life, after a connection broke
GRACE_S = 5.0  # for a rank to fail by itself, with a message of its own
CONNECT_S = 30.0
_ENDED = b"ended"
_BROKEN = re.compile(r"gloo|nccl|\bpeer\b|socket|broken pipe|timed? ?out|connection", re.IGNORECASE)


class Watch:
    """Signs of life of this rank, and news of the others.

    store: shared by all ranks, held by rank 0. patience: seconds without a sign of life after which
    a rank counts as lost.
    """

    def __init__(self, store: Any, me: int, world: int, patience: float) -> None:
        self.store, self.me, self.patience = store, me, patience
        self.others = [r for r in range(world) if r != me]
        self.asking = self.asked = False  # to stop: this rank, any rank
        self.verdict: str | None = None
        self._over = threading.Event()
        self._count, self._turned = 0, time.monotonic()
        self._seen: dict[int, tuple[bytes, float]] = {}
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        store.set(f"who/{me}", json.dumps(who))
        self.zero = self._named(0)
        self._beat()
        self._threads = [
            threading.Thread(target=loop, name=f"align-{loop.__name__}", daemon=True)
            for loop in (self.turns, self.lookout)
        ]

    def start(self) -> None:
        """Begin, when every rank has given its first sign of life."""
        for thread in self._threads:
            thread.start()

    def turns(self) -> None:
        """The thread that beats and looks."""
        while not self._over.wait(BEAT_S):
            try:
                self._beat()
                if self.asking:
                    self.store.set("halt", "1")
                self.asked = self.asked or self.store.check(["halt"])
                if self.me == 0:
                    self._look()
                lost = self.store.get("verdict").decode() if self.store.check(["verdict"]) else None
            except Exception:
                # The main thread says when all is over; until then rank 0 must hold the store.
                lost = (
                    None
                    if self._over.is_set()
                    else f"{self.zero} has gone: its store does not answer"
                )
            if lost is not None:
                self._leave(lost)
                return
            self._turned = time.monotonic()

    def lookout(self) -> None:
        """The thread that sees a store which neither answers nor breaks: its process stands."""
        while not self._over.wait(BEAT_S):
            if self.verdict is None and time.monotonic() - self._turned > self.patience:
                self._leave(f"{self.zero} has not been heard of for {self.patience:.0f} s")
                return

    def _beat(self) -> None:
        self._count += 1
        self.store.set(f"beat/{self.me}", str(self._count))

    def _look(self) -> None:
        """Rank 0: who has given no sign of life since when."""
        now = time.monotonic()
        patience = CLOSELY_S if self.store.check(["lost"]) else self.patience
        beats = self.store.multi_get([f"beat/{r}" for r in self.others])
        for other, beat in zip(self.others, beats, strict=True):
            last, since = self._seen.get(other, (b"", now))
            if beat != last:
                self._seen[other] = (beat, now)
            elif beat != _ENDED and now - since > patience:
                self._accuse(other, f"has not been heard of for {now - since:.0f} s")

    def _accuse(self, who: int, what: str) -> None:
        """Set the verdict, unless there is one."""
        self.store.compare_set("verdict", "", f"{self._named(who)} {what}")

    def _named(self, who: int) -> str:
        known = json.loads(self.store.get(f"who/{who}"))
        return f"rank {who} on {known['host']} (pid {known['pid']})"

    def _leave(self, lost: str) -> None:
        """Say who is lost, and end the process if it does not end by itself."""
        self.verdict = lost
        if not self._over.is_set() and not lost.startswith(f"rank {self.me} "):
            print(f"[rank {self.me}] {lost}; stopping", file=sys.stderr, flush=True)
        # Waiting in a collective, the main thread would not see an exception.
        time.sleep(4 * GRACE_S if self._over.wait(GRACE_S) else 0)
        os._exit(1)

    def failed(self, error: BaseException) -> str | None:
        """Tell the others why this rank ends; after a broken connection find out whose end it was.

        Returns what is known of a lost rank, when the others have been told: a few seconds.
        """
        try:
            if _is_broken_connection(error):
                self.store.set("lost", "1")
                self._wait(CLOSELY_S + 3 * BEAT_S, lambda: self.verdict is not None)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self._accuse(self.me, f"failed: {text[:500]}")
            self._over.set()
            self.store.set(f"beat/{self.me}", _ENDED)
            if self.me == 0:  # the store goes with this process
                self._wait(3 * BEAT_S, self._all_ended)
        except Exception:
            pass  # rank 0 has gone, and its store
        return self.verdict

    def _all_ended(self) -> bool:
        return all(b == _ENDED for b in self.store.multi_get([f"beat/{r}" for r in self.others]))

    def _wait(self, seconds: float, until: Any) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            time.sleep(BEAT_S / 5)

    def stop(self) -> None:
        """End the watch: this rank has done its work."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * BEAT_S)
        try:
            self.store.set(f"beat/{self.me}", _ENDED)
        except Exception:
            return


def _is_broken_connection(error: BaseException) -> bool:
    """Whether a collective failed, which says that another rank has; gloo raises RuntimeErrors."""
    name = type(error).__name__
    own = name == "RuntimeError" or (name.startswith("Dist") and isinstance(error, RuntimeError))
    return own and _BROKEN.search(f"{name}: {error}") is not None


_watch: Watch | None = None
_held: list[Any] = []  # rank 0's store


def start(patience: float) -> None:
    """Begin to watch the other ranks, where there are any and the process group exists."""
    global _watch
    if not is_distributed() or _watch is not None:
        return
    host, port = from_rank_zero(_serve)
    made = None
    try:
        made = Watch(_store(host, port), rank(), world_size(), patience)
    except Exception as error:
        print(f"[rank {rank()}] no watch at {host}:{port}: {error}", file=sys.stderr, flush=True)
    if any_rank(made is None):  # a rank that cannot be seen would count as lost
        return
    barrier()
    _watch = made
    assert made is not None
    made.start()


def _serve() -> tuple[str, int]:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    host = os.environ.get("MASTER_ADDR", "localhost")
    limit = timedelta(seconds=CONNECT_S)
    _held[:] = [TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=limit)]
    return host, _held[0].port


def _store(host: str, port: int) -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    limit = timedelta(seconds=CONNECT_S)
    return _held[0] if rank() == 0 else TCPStore(host, port, is_master=False, timeout=limit)


def failed(error: BaseException) -> str | None:
    """Tell the other ranks that this one ends with an error; what is known of a lost rank."""
    return None if _watch is None else _watch.failed(error)


def stop() -> None:
    """End the watch before the process group is left."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def ask_to_stop() -> None:
    """Let all ranks know that this one was told to stop; also in a signal handler."""
    if _watch is not None:
        _watch.asking = True


def asked_to_stop() -> bool:
    """Whether a rank was told to stop, as far as this one knows."""
    return _watch is not None and _watch.asked
