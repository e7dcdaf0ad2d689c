"""The first pass of an import: rows are read, converted, and their groups put on disk.

Workers convert rows ahead of time. Most rows are plain: they become a group and count as used,
whatever stands in other rows, but for one question that the parent can answer, whether the same row
was there before. All others (rejects, warnings, duplicates) are converted again by the parent, in
their place: the books are kept by one process and are the same with and without workers. A worker
also makes the lines of its groups, for the case that no other group has to be merged with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from align.records import Counts, PreferenceGroup
from reward_models.annotations.archives import Source
from reward_models.annotations.base import (
    Detection,
    Format,
    Intake,
    Options,
    Row,
    cached_prompt_key,
    row_by_row,
)
from reward_models.annotations.detect import format_named
from reward_models.annotations.intake import mark_of, place
from reward_models.annotations.reading import Raw, finished, read, read_unparsed
from reward_models.import_groups import (
    Collected,
    in_batches,
    key_of,
    lines_apart,
    packed,
    unpacked,
    where_of,
    written_out,
)
from reward_models.import_passes import PerGroup, lines_of
from reward_models.quality import Quality
from reward_models.workers import Workers

if TYPE_CHECKING:
    from reward_models.importing import ImportSettings

ESCAPED = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#[0-9]{1,6}|#x[0-9a-fA-F]{1,5});")
PLAIN, ESCAPES, SHOWN = 1, 2, 4
# Groups that tell whether the others have to be merged.
SAMPLE = 20_000


class FirstPass:
    """Reads files: groups go to ``collected``, the accounts to ``intake`` and ``quality``."""

    def __init__(
        self,
        intake: Intake,
        quality: Quality,
        collected: Collected,
        workers: Workers,
        write: bool,
    ):
        """workers: their setup is an ImportSettings.

        write: whether they can make a group's lines, which no other group's votes then change.
        """
        self._intake, self._quality, self._collected = intake, quality, collected
        self._workers, self._write, self._escaped = workers, write, 0
        self._first, self._repeated = set[bytes](), 0

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
            self._collected.add(key_of(group), packed(row, group))

    def _ahead(self, source: Source, format: Format) -> None:
        """Takes rows that workers have converted."""
        collected = self._collected
        for batch, ready in self._workers.map(convert_ahead, self._batches(source, format)):
            first = len(collected)
            whole = self._accept(batch, ready, format)
            if ready.lines is not None and whole:
                collected.note(first, ready.lines)

    def _batches(self, source: Source, format: Format) -> Iterator[Batch]:
        raws = read_unparsed(source, self._intake.options)
        for some in in_batches(raws, lambda raw: len(raw[2]) if isinstance(raw, tuple) else 0):
            # Few groups have to be merged, so far.
            rare = self._repeated * 100 <= len(self._first)
            yield Batch(format.name, source.name, some, self._write and rare)

    def _accept(self, batch: Batch, ready: Ready, format: Format) -> bool:
        """Whether all groups of a batch, and only these, are those that are ready."""
        intake, collected, first = self._intake, self._collected, self._first
        whole, at = True, -1
        for raw, kind in zip(batch.raws, ready.kinds, strict=True):
            if kind:
                at += 1
                mark = ready.marks[at]
                if mark is None or not intake.marked(mark):
                    key, value = ready.keys[at], ready.values[at]
                    intake.rows.use()
                    intake.votes.use(ready.votes[at])
                    self._escaped += kind & ESCAPES > 0
                    if kind & SHOWN:
                        self._shown(value)
                    if len(first) < SAMPLE:
                        self._repeated += key in first
                        first.add(key)
                    collected.add(key, value)
                    continue
                whole = False
            before = len(collected)
            self._take(format, finished([raw], batch.source, intake.options))
            whole = whole and len(collected) == before
        return whole

    def _shown(self, value: bytes) -> None:
        (file, line, number), _, group = unpacked(value)
        where = place(file, line, number) if file else None
        self._quality.observe_shown(group, where)


class Batch(NamedTuple):
    """Rows of a source, and whether the lines of their groups are wanted."""

    format: str
    source: str
    raws: list[Raw]
    write: bool


class Ready(NamedTuple):
    """Converted rows. kinds: a byte for each row, 0 for those to convert again.

    The lists hold what belongs to each of the others. lines: ``lines_apart`` of all of them where
    ``values`` are written out.
    """

    kinds: bytes
    votes: list[int]
    marks: list[int | None]
    keys: list[bytes]
    values: list[bytes]
    lines: bytes | None


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


def convert_ahead(settings: ImportSettings, batch: Batch) -> Ready:
    """What a worker does with a batch of rows."""
    ahead, convert = _Ahead(settings.options), format_named(batch.format).parse
    kinds, cast, marks = bytearray(), [], []
    made: list[tuple[Row, PreferenceGroup]] = []
    for row in finished(batch.raws, batch.source, settings.options):
        try:
            group = next(iter(convert([row], ahead)), None)
        except Exception:  # the parent meets it again
            group = None
        if group is None or not ahead.plain:
            kinds.append(0)
            continue
        shown = "lead_time" in group.meta or group.meta.get("display_order")
        kinds.append(PLAIN | (ESCAPES if _is_escaped(group) else 0) | (SHOWN if shown else 0))
        cast.append(ahead.cast)
        marks.append(ahead.mark)
        made.append((row, group))
    keys = [key_of(group) for _, group in made]
    if batch.write:
        items = [(where_of(row), cached_prompt_key(group.prompt), group) for row, group in made]
        lines = lines_of(settings, items, PerGroup(settings))
        if not lines.rejects:
            values = [written_out(row, r) for (row, _), r in zip(made, lines.records, strict=True)]
            return Ready(bytes(kinds), cast, marks, keys, values, lines_apart(lines))
    values = [packed(row, group) for row, group in made]
    return Ready(bytes(kinds), cast, marks, keys, values, None)


def _is_escaped(group: PreferenceGroup) -> bool:
    texts = [m.content for m in group.prompt]
    texts += [c.text for c in group.candidates]
    texts = [text for text in texts if "&" in text]
    return bool(texts) and any(map(ESCAPED.search, texts))
