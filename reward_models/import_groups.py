"""The groups of an import on disk, between its two passes.

A group lies there packed; or, where a worker has made its lines already, as its line of
preferences.jsonl. The lines of a batch are taken as they are if none of its groups turns out to
hold the same prompt and answers as another one; else its groups are read back and merged.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from align.json_text import loads
from align.records import Counts, PreferenceGroup
from reward_models.annotations.base import Row, cached_prompt_key, merge
from reward_models.annotations.packing import from_plain, pack, plain, unpack
from reward_models.annotations.spool import Spool, digest
from reward_models.quality import Quality
from reward_models.workers import Known

# Comparisons and bytes of a batch: much to do for each message, little memory.
BATCH, BATCH_BYTES = 128, 1 << 20
# File, line and number of a row.
Where = tuple[str | None, int | None, int | None]
T = TypeVar("T")
Item = tuple[Where, str, PreferenceGroup]


def in_batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in lists of BATCH, or fewer where they are large. size_of: bytes of one."""
    some: list[T] = []
    size = 0
    for item in items:
        some.append(item)
        size += size_of(item)
        if len(some) >= BATCH or size >= BATCH_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


@dataclass
class Written:
    """How many groups, pairs and records of each split were written."""

    groups: Counts = field(default_factory=Counts)
    splits: Counter[str] = field(default_factory=Counter)
    pairs: int = 0

    def add(self, more: Written) -> None:
        """Takes the counts of later groups."""
        self.groups += more.groups
        self.splits.update(more.splits)
        self.pairs += more.pairs


class Lines(NamedTuple):
    """What some comparisons become. splits: of each record, its place in ``SPLITS``.

    rejects: of comparisons that make no pair.
    """

    written: Written
    quality: Quality
    records: list[bytes]
    pairs: bytes
    splits: bytes
    rejects: list[dict[str, Any]]


class _Note(NamedTuple):
    """A batch of groups, the first and the last + 1, whose other lines lie somewhere."""

    first: int
    end: int
    place: int
    size: int


class Collected:
    """Groups in the order in which they were read, on disk."""

    def __init__(self, folder: Path):
        """folder: where the disk space is taken."""
        self._spool = Spool(folder)
        self._notes: list[_Note] = []
        self._lines, self._size = tempfile.TemporaryFile(dir=folder), 0  # noqa: SIM115 (see close)

    def add(self, key: bytes, value: bytes) -> None:
        """Keeps a group, ``packed`` or ``written_out``."""
        self._spool.add(key, value)

    def note(self, first: int, lines: bytes) -> None:
        """Keeps the other ``lines_apart`` of the groups added since ``first``, all written out."""
        self._notes.append(_Note(first, len(self), self._size, len(lines)))
        self._lines.write(lines)
        self._size += len(lines)

    def batches(self) -> Iterator[list[list[bytes]] | Known]:
        """Lists of comparisons: the values of each, to be ``merged``; or their Lines, if known.

        In order of first appearance.
        """
        self._lines.seek(0)
        notes = iter([*self._notes, _Note(end := len(self), end, 0, 0)])
        note, limit = next(notes), 0
        some: list[list[int]] = []
        for numbers in self._spool.numbers():
            first = numbers[0]
            if some and first >= limit:
                yield from self._batch(some, note)
                some = []
            if not some:
                while note.end <= first:
                    note = next(notes)
                limit = note.end if note.first <= first else min(first + BATCH, note.first)
            some.append(numbers)
        if some:
            yield from self._batch(some, note)

    def _batch(self, numbers: list[list[int]], note: _Note) -> Iterator[list[list[bytes]] | Known]:
        alone = len(numbers) == sum(map(len, numbers)) == note.end - note.first
        if alone and numbers[0][0] == note.first:
            self._lines.seek(note.place)
            values = [self._spool.read(i) for (i,) in numbers]
            yield Known(_joined(values, self._lines.read(note.size)))
            return
        read = ([self._spool.read(i) for i in parts] for parts in numbers)
        yield from in_batches(read, lambda values: sum(map(len, values)))

    def __len__(self) -> int:
        return len(self._spool)

    def close(self) -> None:
        """Frees the disk."""
        self._spool.close()
        self._lines.close()


def key_of(group: PreferenceGroup) -> bytes:
    """What a group is found by; equal where prompt and answers are."""
    return digest(group.group_id)


def packed(row: Row | None, group: PreferenceGroup) -> bytes:
    """A group as a value of ``Collected``. row: the (first) row that it came from."""
    return pack((where_of(row), cached_prompt_key(group.prompt), plain(group)))


def written_out(row: Row | None, record: bytes) -> bytes:
    """Like ``packed``, of a group's line of preferences.jsonl."""
    return record + pack(where_of(row))


def where_of(row: Row | None) -> Where:
    """Where a row stands; nowhere without one."""
    return (row.file, row.line, row.number) if row else (None, None, None)


def unpacked(value: bytes) -> Item:
    """(where its row stands, key of its prompt, group) of a value."""
    if not value.startswith(b"{"):  # which no packed tuple begins with
        where, key, fields = unpack(value)
        return where, key, from_plain(fields)
    record, _, where = value.partition(b"\n")
    group = PreferenceGroup.from_json(loads(record))
    return unpack(where), cached_prompt_key(group.prompt), group


def merged(parts: Sequence[bytes]) -> Item:
    """(where its first row stands, key of its prompt, group) of a comparison's values."""
    found = [unpacked(part) for part in parts]
    where, key, group = found[0]
    return where, key, group if len(found) == 1 else merge([group for *_, group in found])


def lines_apart(lines: Lines) -> bytes:
    """All of it but the records."""
    lengths = [len(record) for record in lines.records]
    return pickle.dumps((lines.written, lines.quality, lines.pairs, lines.splits, lengths), 5)


def _joined(values: Sequence[bytes], apart: bytes) -> Lines:
    """The inverse of ``lines_apart``. values: ``written_out``."""
    written, quality, pairs, splits, lengths = pickle.loads(apart)
    records = [value[:n] for value, n in zip(values, lengths, strict=True)]
    return Lines(written, quality, records, pairs, splits, [])
