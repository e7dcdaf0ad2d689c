"""The first pass of an import: rows are read, converted, and their groups put on disk.

Workers convert rows ahead of time. Most rows are plain: they become a group and count as used,
whatever stands in other rows, but for one question that the parent can answer, whether the same row
was there before. All others (rejects, warnings, duplicates) are converted again by the parent, in
their place: the books are kept by one process and are the same with and without workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from align.records import Counts, PreferenceGroup
from reward_models.annotations.archives import Source
from reward_models.annotations.base import Detection, Format, Intake, Options, Row, row_by_row
from reward_models.annotations.detect import format_named
from reward_models.annotations.intake import mark_of
from reward_models.annotations.reading import Raw, finished, read, read_unparsed
from reward_models.import_passes import Collected, packed, unpacked
from reward_models.quality import Quality
from reward_models.workers import Workers

ESCAPED = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#[0-9]{1,6}|#x[0-9a-fA-F]{1,5});")
# Rows and bytes of a batch: much to do for each message, little memory.
BATCH, BATCH_BYTES = 256, 1 << 20
PLAIN, ESCAPES, TIMED = 1, 2, 4


class FirstPass:
    """Reads files: groups go to ``collected``, what stands in them to ``intake`` and ``quality``."""

    def __init__(self, intake: Intake, quality: Quality, collected: Collected, workers: Workers):
        """workers: their setup is an ImportSettings."""
        self._intake, self._quality, self._collected = intake, quality, collected
        self._workers, self._escaped = workers, 0

    def read_all(self, found: Sequence[tuple[Source, Detection]]) -> list[dict[str, Any]]:
        """Reads all files; returns the row counts and the evidence per file."""
        intake, per_file = self._intake, []
        for source, detection in found:
            before, intake.rows = intake.rows, Counts(file=source.name)
            if len(self._workers) and isinstance(detection.format.parse, row_by_row):
                self._ahead(source, detection.format)
            else:
                self._take(detection.format, read(source, intake.options))
            counts = {"format": detection.format.name, **intake.rows.to_json()}
            per_file.append({**counts, "evidence": detection.evidence})
            intake.rows = before + intake.rows
        intake.forget()
        if self._escaped and not intake.options.unescape_html:
            intake.warnings[
                "text is HTML-escaped (&lt; and the like): it was kept; --unescape_html changes it"
            ] = self._escaped
        if n := intake.rows.dropped["bad_encoding"]:
            text = "rows are not UTF-8: --encoding gb18030 reads Chinese Windows files"
            intake.warnings[text] = n
        return per_file

    def _take(self, format: Format, rows: Iterable[Row]) -> None:
        """Converts rows here."""
        for group in format.parse(rows, self._intake):
            row = self._intake.row
            self._quality.observe_shown(group, row.where if row else None)
            self._escaped += _is_escaped(group)
            self._collected.add(*packed(row, group))

    def _ahead(self, source: Source, format: Format) -> None:
        """Takes rows that workers have converted."""
        intake, add = self._intake, self._collected.add
        batches = _batches(read_unparsed(source, intake.options), source.name, format.name)
        for (_, name, raws), ready in self._workers.map(convert_ahead, batches):
            at = start = 0
            for raw, kind in zip(raws, ready.kinds, strict=True):
                if not kind:
                    self._take(format, finished([raw], name, intake.options))
                    continue
                end, mark = ready.ends[at], ready.marks[at]
                if mark is not None and intake.marked(mark):
                    self._take(format, finished([raw], name, intake.options))
                else:
                    value = ready.values[start:end]
                    intake.rows.used += 1
                    intake.votes.used += ready.votes[at]
                    self._escaped += kind & ESCAPES > 0
                    if kind & TIMED:
                        self._shown(value)
                    add(ready.keys[16 * at : 16 * at + 16], value)
                at, start = at + 1, end

    def _shown(self, value: bytes) -> None:
        (file, line, number), _, group = unpacked(value)
        where = Row(file, line, number).where if file else None
        self._quality.observe_shown(group, where)


class Ready(NamedTuple):
    """Converted rows. kinds: a byte for each row, 0 for those to convert again; then of each other:

    its votes, its mark, its key (16 bytes) and the end of its value.
    """

    kinds: bytes
    votes: list[int]
    marks: list[int | None]
    keys: bytes
    ends: list[int]
    values: bytes


def _batches(raws: Iterator[Raw], name: str, format: str) -> Iterator[tuple[str, str, list[Raw]]]:
    """(name of the format, of the source, some of its rows)."""
    some: list[Raw] = []
    size = 0
    for raw in raws:
        some.append(raw)
        size += len(raw[2]) if isinstance(raw, tuple) else 0
        if len(some) >= BATCH or size >= BATCH_BYTES:
            yield format, name, some
            some, size = [], 0
    if some:
        yield format, name, some


class _Ahead(Intake):
    """Books of rows one by one, that say which of them are plain."""

    def __init__(self, options: Options):
        super().__init__(options)
        self.plain, self.mark, self.cast = False, None, 0

    def begin(self, row: Row) -> None:
        self.row, self.plain, self.mark, self.cast = row, True, None, 0

    def use(self) -> None:
        pass

    def vote(self) -> None:
        self.cast += 1

    def seen(self, *parts: Any) -> bool:
        # A second question could be about the first one's answer.
        self.plain = self.plain and self.mark is None
        self.mark = mark_of(parts)
        return False

    def drop(self, row: Row, code: str, detail: str, votes: int = 0) -> None:
        self.plain = False

    def drop_vote(self, reason: str, n: int = 1) -> None:
        self.plain = False

    def warn(self, message: str) -> None:
        self.plain = False


def convert_ahead(settings: Any, batch: tuple[str, str, list[Raw]]) -> Ready:
    """What a worker does with a batch of rows. settings: an ImportSettings."""
    format, name, raws = batch
    options: Options = settings.options
    ahead, convert = _Ahead(options), format_named(format).parse
    kinds, values, keys = bytearray(), [], []
    ready = Ready(b"", [], [], b"", [], b"")
    end = 0
    rows = finished(raws, name, options)
    for row in rows:
        try:
            group = next(convert([row], ahead), None)  # type: ignore[call-overload]
        except Exception:  # the parent meets it again
            group = None
        if group is None or not ahead.plain:
            kinds.append(0)
            continue
        kind = PLAIN | (ESCAPES if _is_escaped(group) else 0)
        timed = "lead_time" in group.meta or group.meta.get("display_order")
        kinds.append(kind | TIMED if timed else kind)
        key, value = packed(row, group)
        end += len(value)
        ready.votes.append(ahead.cast)
        ready.marks.append(ahead.mark)
        ready.ends.append(end)
        keys.append(key)
        values.append(value)
    return ready._replace(kinds=bytes(kinds), keys=b"".join(keys), values=b"".join(values))


def _is_escaped(group: PreferenceGroup) -> bool:
    texts = [m.content for m in group.prompt]
    texts += [c.text for c in group.candidates]
    texts = [text for text in texts if "&" in text]
    return bool(texts) and any(map(ESCAPED.search, texts))
