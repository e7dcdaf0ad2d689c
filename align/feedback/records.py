"""What one person said about one answer or two, and the log that every server appends it to."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from align.records import Message, messages_json
from reward_models.annotations.feedback import PAIR_VOTES, SINGLE_VOTES

try:
    import fcntl
except ImportError:  # no advisory locks: one process a log there
    fcntl = None


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Completion:
    """An answer that was shown. model: who wrote it. text: None where it must not be stored."""

    model: str | None
    text: str | None


@dataclass(frozen=True)
class FeedbackRecord:
    """One line of a feedback log; `reward_models.annotations.feedback` reads it.

    prompt: messages, None where the text must not be stored. completions: as shown, the left one
    first; one for a thumb, two for a comparison. vote: left, right, tie or both_bad of two, up or
    down of one, None for a skip or an answer that nobody has judged. position: "ab" where the
    models stood in the order of their names, else "ba". latency_s: seconds the model took. seconds:
    that the person took. tokens: of the completion. consent: whether the person agreed that the
    texts are kept and trained on. item: what was asked, the same for every annotator. answer: of a
    vote on an answer that has a line of its own, that line's id. request: a server's figures of a
    request (`align.serving.exchange`). A line leaves the last two out where they are None.
    """

    prompt: tuple[Message, ...] | None
    completions: tuple[Completion, ...]
    vote: str | None
    consent: bool
    source: str = "arena"
    annotator: str | None = None
    session: str | None = None
    item: str | None = None
    position: str | None = None
    latency_s: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    time: str = field(default_factory=now)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    answer: str | None = None
    request: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        allowed = {1: SINGLE_VOTES, 2: PAIR_VOTES}.get(len(self.completions))
        if allowed is None:
            raise ValueError(f"{len(self.completions)} completions; one or two are needed")
        if self.vote is not None and self.vote not in allowed:
            raise ValueError(f"vote {self.vote!r} on {len(self.completions)} completion(s)")

    def to_json(self) -> dict[str, Any]:
        """The line as a plain dict."""
        prompt = None if self.prompt is None else messages_json(self.prompt)
        row = {
            **asdict(self),
            "prompt": prompt,
            "completions": list(map(asdict, self.completions)),
        }
        absent = [name for name in ("answer", "request") if row[name] is None]
        return {name: value for name, value in row.items() if name not in absent}

    def without_text(self) -> FeedbackRecord:
        """The same with nothing that anybody wrote: models, vote, times and figures alone."""
        bare = tuple(Completion(c.model, None) for c in self.completions)
        figures = self.request and {k: v for k, v in self.request.items() if k != "comment"}
        changed = {"prompt": None, "completions": bare, "request": figures}
        return FeedbackRecord(**{**self.__dict__, **changed})


class FeedbackLog:
    """An append-only JSONL file that threads and processes may share.

    A line is on disk when `write` returns. A line that a crash tore is left where it is and the
    next one begins after it, so nothing that was complete is ever lost.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """path: the file; its folder is made."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def write(self, record: FeedbackRecord) -> int:
        """Append one record; the byte at which its line begins.

        OSError where the disk refuses it; nothing is half written then.
        """
        line = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", "replace")  # a lone surrogate has no bytes
        with self._lock:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                with _locked(handle):
                    size = os.fstat(handle).st_size
                    if size and os.pread(handle, 1, size - 1) != b"\n":
                        data = b"\n" + data
                    _write_all(handle, data, size)
                    os.fsync(handle)
                    return size + (data[:1] == b"\n")
            finally:
                os.close(handle)


def read_log(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """(the lines of a log, how many are no JSON object because a crash tore them)."""
    rows: list[dict[str, Any]] = []
    torn = 0
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _write_all(handle: int, data: bytes, size: int) -> None:
    rest: Sequence[int] = data
    try:
        while rest:
            rest = rest[os.write(handle, bytes(rest)) :]
    except OSError:  # a full disk takes a part
        os.ftruncate(handle, size)
        raise
