"""The books of an import: input rows, what the user told, and what became of rows and votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.jsonl import short
from align.records import Counts
from reward_models.annotations.spool import digest
from reward_models.marks import Marks

EXTENSIONS = (
    ".gz", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One input row. line: where it begins in the file, from 1. number: its position, from 1.

    file: its path; a zip's member is ``export.zip/member.jsonl``. obj: the JSON value. error: why
    there is no value, as (code, detail). ends: the file cannot be read beyond this row. A format
    that needs the file of the row it converts finds it in ``intake.row``.
    """

    file: str
    line: int
    number: int
    obj: Any = None
    error: tuple[str, str] | None = None
    ends: bool = False

    @property
    def where(self) -> str:
        """``file:line``, with the row's number where the line does not tell it.

        All rows of an array may stand on one line.
        """
        return place(self.file, self.line, self.number)

    @property
    def stem(self) -> str:
        """The file's name without folder and extension (doccano: the annotator)."""
        name = self.file.replace("\\", "/").rpartition("/")[2]
        while Path(name).suffix.lower() in EXTENSIONS:
            name = name[: -len(Path(name).suffix)]
        return name


def place(file: str, line: int | None, number: int | None) -> str:
    """Where a row stands, see ``Row.where``."""
    return f"{file}:{line}" if line == number else f"{file}:{line} (row {number})"


@dataclass(frozen=True)
class Options:
    """What the user told about the input.

    label_config: a ``reward_models.annotations.label_config.LabelConfig`` or None.
    bucket_order: Label Studio bucket names from best to worst; empty: buckets are no preference.
    encoding: of text files that are not UTF-8. mapping: {role of a column: its name}, see
    ``columns.parse_mapping``. unescape_html: texts are HTML-escaped (``&lt;``) and should not be.
    """

    label_config: Any = None
    bucket_order: tuple[str, ...] = ()
    encoding: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    unescape_html: bool = False


class Intake:
    """The books of one import: rows, votes, rejects and warnings of all files together.

    row: the row that is being read. folder: where a parser may put what does not fit in memory.
    """

    def __init__(
        self,
        options: Options | None = None,
        on_reject: Callable[[dict[str, Any]], None] | None = None,
        folder: Path | None = None,
    ):
        """on_reject: takes one rejects.jsonl record at a time."""
        self.options = options or Options()
        self.rows = Counts()
        self.votes = Counts()
        self.warnings: Counter[str] = Counter()
        self.row: Row | None = None
        self.folder = folder
        self._dropped: set[int] | None = None
        self._on_reject = on_reject or (lambda _: None)
        self._seen = Marks()
        self._votes_before = (0, 0)

    def begin(self, row: Row) -> None:
        """Say which row the next votes belong to."""
        self.row, self._votes_before = row, (self.votes.used, self.votes.total)

    def use(self) -> None:
        """Count a used row."""
        self.rows.use()

    def drop(self, row: Row, code: str, detail: str, votes: int = 0) -> None:
        """Count a dropped row and write it to the rejects.

        votes: how many votes the row holds; those without a reason of their own get the row's.
        """
        if self.row is not row:
            self.begin(row)
        self.rows.drop(code, where=row.where)
        if self._dropped is not None:
            self._dropped.add(id(row))
        used, total = self._votes_before
        self.votes.used = used
        if votes > self.votes.total - total:
            self.drop_vote(code, votes - (self.votes.total - total))
        if row.ends:
            self.warn(
                f"{row.file} could be read up to line {row.line}, row {row.number}, only: {detail}"
            )
        record = {
            "file": row.file,
            "line": row.line,
            "row": row.number,
            "reason": code,
            "detail": detail,
            "record": short(row.obj, 500),
        }
        self._on_reject(record)

    @contextmanager
    def dropping(self) -> Iterator[set[int]]:
        """Gives a set that holds the ``id`` of each row dropped inside the block."""
        self._dropped = set()
        try:
            yield self._dropped
        finally:
            self._dropped = None

    def vote(self) -> None:
        """Count a vote."""
        self.votes.use()

    def drop_vote(self, reason: str, n: int = 1) -> None:
        """Count something that looks like a vote and is none."""
        where = self.row.where if self.row else None
        self.votes.drop(reason, where=where, n=n)

    def warn(self, message: str) -> None:
        """Remember a warning and how often it occurred."""
        self.warnings[message] += 1

    def forget(self) -> None:
        """Frees the memory of ``seen``, when all rows are read."""
        self._seen = Marks()

    def seen(self, *parts: Any) -> bool:
        """Whether these parts were passed before; 63 bits of their digest are remembered."""
        return self.marked(mark_of(parts))

    def marked(self, mark: int) -> bool:
        """Like ``seen``, of the ``mark_of`` the parts."""
        return bool(self._seen.setdefault(mark))


def mark_of(parts: tuple[Any, ...]) -> int:
    """What is remembered of parts that were passed."""
    return int.from_bytes(digest(parts)[:8], "big")
