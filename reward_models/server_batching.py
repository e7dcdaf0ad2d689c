"""Many requests, one model: texts wait in a queue and are scored together by one thread.

The queue holds single texts, so a batch mixes requests and a large request is spread over several.
Where a score belongs is kept beside its text, never worked out from its place in a batch.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

from align.records import RecordError

PASSES = 4  # a pass takes this many forward batches at most, so that lengths can be sorted


class Engine(Protocol):
    """What scores. Only the batcher's one thread calls it."""

    def encode(self, item: Any) -> tuple[list[int], bool]:
        """Token ids of an item, and whether it was shortened; RecordError where it is unusable."""
        ...

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One score per row of token ids, in their order."""
        ...


@dataclass(frozen=True)
class Scored:
    """A text's score, and whether the text was shortened for it."""

    score: float
    truncated: bool


class QueueFull(Exception):
    """The queue has no room. retry_after: seconds until it probably has."""

    def __init__(self, queued: int, retry_after: int) -> None:
        super().__init__(f"{queued} texts are waiting")
        self.queued, self.retry_after = queued, retry_after


class BadText(Exception):
    """The text at ``index`` of a request cannot be scored. reason: why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)
        self.index, self.reason = index, reason


class NotFinite(BadText):
    """The model gives no finite score for the text at ``index``."""


class Job:
    """One request: its items, the scores so far, and the future of all of them."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)
        self.results: dict[int, Scored] = {}
        self.future: Future[list[Scored]] = Future()

    @property
    def over(self) -> bool:
        """Whether nobody waits any more: cancelled, failed or finished."""
        return self.future.done()

    def put(self, index: int, scored: Scored) -> None:
        """Keep one score; with the last one the future is done."""
        self.results[index] = scored
        if len(self.results) == len(self.items):
            scores = [self.results[i] for i in range(len(self.items))]
            self._settle(lambda: self.future.set_result(scores))

    def fail(self, error: Exception) -> None:
        """End the request with an error; its other texts are not scored."""
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, action: Callable[[], None]) -> None:
        try:
            action()
        except InvalidStateError:  # cancelled or failed in the meantime
            return


class Batcher:
    """Scores jobs in the order in which they came, in batches of mixed requests.

    A pass begins when ``batch_size`` texts wait, or ``max_wait`` seconds after the oldest came, and
    takes up to PASSES · batch_size. max_queue: texts that may wait; a job enters whole or not at
    all. observe: called with (texts, shortened texts) after every pass.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_size: int = 16,
        max_wait: float = 0.005,
        max_queue: int = 1024,
        observe: Callable[[int, int], None] = lambda texts, cut: None,
    ) -> None:
        self.engine, self.observe = engine, observe
        self.batch_size, self.max_wait, self.max_queue = batch_size, max_wait, max_queue
        self._queue: deque[tuple[Job, int, float]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._rate = 0.0  # texts a second, of the recent passes
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Texts that wait."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the scoring thread runs."""
        return self._thread.is_alive()

    def check_room(self, texts: int = 1) -> None:
        """Raise QueueFull where this many texts more cannot wait."""
        if len(self._queue) + texts > self.max_queue:
            seconds = math.ceil(len(self._queue) / self._rate) if self._rate else 1
            raise QueueFull(len(self._queue), min(max(seconds, 1), 30))

    def submit(self, items: Sequence[Any]) -> Job:
        """Queue a request. Its future gives one Scored per item, or raises BadText.

        Raises QueueFull, and RuntimeError after ``close``.
        """
        job = Job(items)
        if not job.items:
            job.future.set_result([])
            return job
        with self._changed:
            if self._closing:
                raise RuntimeError("the server is stopping")
            self.check_room(len(job.items))
            now = time.monotonic()
            self._queue.extend((job, i, now) for i in range(len(job.items)))
            self._changed.notify()
        return job

    def close(self) -> None:
        """Take nothing more, finish what waits, stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            if taken:
                self._score(taken)

    def _take(self) -> list[tuple[Job, int]] | None:
        """The next texts, without those of requests that are over; None when all is done."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            until = self._queue[0][2] + self.max_wait
            while len(self._queue) < self.batch_size and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            most = min(len(self._queue), PASSES * self.batch_size)
            taken = [self._queue.popleft() for _ in range(most)]
        return [(job, i) for job, i, _ in taken if not job.over]

    def _score(self, taken: list[tuple[Job, int]]) -> None:
        started = time.monotonic()
        ready: list[tuple[Job, int, list[int], bool]] = []
        for job, i in taken:
            if job.over:  # an earlier text of it failed
                continue
            try:
                ids, cut = self.engine.encode(job.items[i])
            except RecordError as error:
                job.fail(BadText(i, error.message))
            except Exception as error:
                job.fail(_unexpected(error))
            else:
                ready.append((job, i, ids, cut))
        ready = [entry for entry in ready if not entry[0].over]
        if ready:
            self._forward(ready)
            seconds = max(time.monotonic() - started, 1e-6)
            rate = len(ready) / seconds
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def _forward(self, ready: list[tuple[Job, int, list[int], bool]]) -> None:
        try:
            scores = self.engine.score([ids for _, _, ids, _ in ready])
            if len(scores) != len(ready):
                raise RuntimeError(f"{len(scores)} scores for {len(ready)} texts")
        except Exception as error:
            jobs = {id(job): job for job, *_ in ready}
            if len(jobs) == 1:
                ready[0][0].fail(_unexpected(error))
                return
            for job in jobs.values():  # one request's texts must not fail the others
                self._forward([entry for entry in ready if entry[0] is job])
            return
        self.observe(len(ready), sum(cut for *_, cut in ready))
        for (job, i, _, cut), score in zip(ready, scores, strict=True):
            if math.isfinite(score):
                job.put(i, Scored(score, cut))
            else:
                job.fail(NotFinite(i, f"got {score} from the model"))


def _unexpected(error: Exception) -> Exception:
    """What the client is told; the operator reads it too."""
    first = (str(error).strip().splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}"
    print(f"[serve] scoring failed: {text}", file=sys.stderr, flush=True)
    return RuntimeError(text)
