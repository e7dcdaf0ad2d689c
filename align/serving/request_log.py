"""The request log of a served model: one line an answer, one line a vote, a file a day.

Lines are `align.feedback.records.FeedbackRecord` with source "serving". A thread of its own writes
them, so that neither a slow disk nor a full one holds up an answer.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from align.feedback.records import Completion, FeedbackLog, FeedbackRecord
from align.records import Message
from align.serving.chat_reply import json_object

SOURCE = "serving"
KEPT = 100_000
"""The newest answers of today and yesterday on which a vote is taken."""
_WAITING = 10_000  # lines that may wait for the disk
_SILENT_S = 60.0  # between two complaints on stderr
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class UnknownAnswer(LookupError):
    """A vote on an answer that is not among those that can be voted on."""


@dataclass(frozen=True)
class Vote:
    """What became of a vote. replaced: the same person's earlier one on this answer is void."""

    id: str
    answer: str
    replaced: bool
    texts: bool


def day_file(path: Path, day: str) -> Path:
    """The file of a day in a log folder; a path that ends in .jsonl is one file for all days."""
    return path if path.suffix == ".jsonl" else path / f"requests-{day}.jsonl"


class RequestLog:
    """Appends records and votes; failures are told to `lost`, never raised.

    path: a folder, which gets requests-YYYY-MM-DD.jsonl (UTC, the day of the request), or a .jsonl
    file. lost: called with a reason and how many lines it cost.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        written: Callable[[], None] = lambda: None,
        lost: Callable[[str], None] = lambda _: None,
        waiting: int = _WAITING,
    ) -> None:
        self.path = Path(path)
        self._written, self._lost = written, lost
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._logs: dict[Path, FeedbackLog] = {}
        self._answers: OrderedDict[str, tuple[Path, int, str | None]] = OrderedDict()
        self._names: dict[str, str] = {}  # a completion's own id: its line's
        self._voted: dict[str, set[str | None]] = {}  # an answer's annotators
        self._complained, self._silent = -float("inf"), 0
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    def put(self, make: Callable[[], FeedbackRecord]) -> None:
        """Write the record that `make` gives soon, both in the log's thread; returns at once."""
        try:
            self._queue.put_nowait(lambda: self._append(make()))
        except queue.Full:
            self._fail("queue_full", f"{self._queue.maxsize} lines wait for the disk")

    def vote(
        self, answer: str, vote: str, annotator: str | None = None, comment: str | None = None
    ) -> Future[Vote]:
        """Judge the answer with this line's or completion's id; done when it is on disk.

        The future raises UnknownAnswer, or OSError where it could not be written.
        """
        found: Future[Vote] = Future()

        def work() -> None:
            try:
                found.set_result(self._vote(answer, vote, annotator, comment))
            except Exception as error:
                found.set_exception(error)

        try:
            self._queue.put_nowait(work)
        except queue.Full:
            found.set_exception(OSError("too many lines wait for the disk"))
        return found

    def close(self) -> None:
        """Write what waits and stop."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        self._remember_earlier()
        while (task := self._queue.get()) is not None:
            try:
                task()
            except Exception as error:  # a line that cannot be written must not end the others
                self._fail(type(error).__name__, str(error))

    def _append(self, record: FeedbackRecord) -> None:
        file = day_file(self.path, record.time[:10])
        if file not in self._logs:
            self._logs = {file: FeedbackLog(file)}
        place = self._logs[file].write(record)
        self._written()
        self._remember(record.to_json(), file, place)

    def _vote(self, name: str, vote: str, annotator: str | None, comment: str | None) -> Vote:
        answer = self._names.get(name, name)
        if answer not in self._answers:
            raise UnknownAnswer(name)
        file, place, _ = self._answers[answer]
        row = _line_at(file, place)
        if row is None or row.get("id") != answer:
            raise UnknownAnswer(name)
        prompt = row.get("prompt")
        record = FeedbackRecord(
            prompt=None if prompt is None else tuple(Message.from_json(m) for m in prompt),
            completions=tuple(Completion(c["model"], c["text"]) for c in row["completions"]),
            vote=vote,
            consent=row["consent"],
            source=SOURCE,
            annotator=annotator,
            answer=answer,
            request=None if comment is None else {"comment": comment},
        )
        if not record.consent:
            record = record.without_text()
        replaced = annotator in self._voted.get(answer, ())
        self._append(record)
        return Vote(record.id, answer, replaced, record.consent)

    def _remember(self, row: dict[str, Any], file: Path, place: int) -> None:
        if isinstance(row.get("answer"), str):
            self._voted.setdefault(row["answer"], set()).add(row.get("annotator"))
            return
        name = (row.get("request") or {}).get("completion_id")
        self._answers[row["id"]] = (file, place, name)
        if name:
            self._names[name] = row["id"]
        if len(self._answers) > KEPT:
            answer, (_, _, name) = self._answers.popitem(last=False)
            self._names.pop(name or "", None)
            self._voted.pop(answer, None)

    def _remember_earlier(self) -> None:
        """What a server that ran before has written yesterday and today."""
        now = datetime.now(timezone.utc)
        days = [(now - timedelta(days=d)).date().isoformat() for d in (1, 0)]
        for file in dict.fromkeys(day_file(self.path, day) for day in days):
            try:
                for place, row in _lines(file):
                    if isinstance(row.get("id"), str) and str(row.get("time"))[:10] in days:
                        self._remember(row, file, place)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    self._fail(type(error).__name__, str(error))

    def _fail(self, reason: str, detail: str) -> None:
        """Count a lost line, and say so on stderr, though not for each of thousands."""
        self._lost(reason)
        self._silent += 1
        if time.monotonic() - self._complained > _SILENT_S:
            text = f"request log: {self._silent} line(s) lost in {self.path}: {reason}: {detail}"
            print(text, file=sys.stderr, flush=True)
            self._complained, self._silent = time.monotonic(), 0


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte at which it begins, object) of each whole line."""
    place = 0
    with file.open("rb") as stream:
        for line in stream:
            row = json_object(line)
            if row is not None:
                yield place, row
            place += len(line)


def _line_at(file: Path, place: int) -> dict[str, Any] | None:
    try:
        with file.open("rb") as stream:
            stream.seek(place)
            return json_object(stream.readline())
    except FileNotFoundError:  # somebody has moved it away
        return None


def days_in(path: Path) -> list[str]:
    """The days of which a log folder has a file."""
    names = (p.name for p in path.glob("requests-*.jsonl"))
    return sorted(m[0] for m in map(_DAY.search, names) if m)
