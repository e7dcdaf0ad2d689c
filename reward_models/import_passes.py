"""The two passes of an import: all groups go to disk, then come back merged and are written.

What one group's targets are may depend on the votes of all the others (an annotator's reliability
is estimated from everything they said), so targets are asked for in the second pass only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from align.data.splits import assign
from align.jsonl import short
from align.records import Counts, PairTarget, PreferenceGroup
from reward_models.annotations.base import Row, cached_prompt_key, merge
from reward_models.annotations.intake import place as row_place
from reward_models.annotations.packing import from_plain, pack, plain, unpack
from reward_models.annotations.spool import Spool, digest
from reward_models.import_lines import GroupLines
from reward_models.preferences import Vote, targets, votes
from reward_models.quality import Quality
from reward_models.workers import Workers

if TYPE_CHECKING:
    from reward_models.importing import ImportSettings

SPLITS = ("train", "validation", "test")
BUFFER = 1 << 20
# Comparisons and bytes of a batch.
BATCH, BATCH_BYTES = 256, 1 << 20
# Votes by pair of candidates; file, line and number of a row.
Found = Mapping[tuple[int, int], Sequence[Vote]]
Where = tuple[str | None, int | None, int | None]

# Aggregates that need every vote before the first target: name in preferences.AGGREGATES →
# "module:factory". The factory takes the ImportSettings and returns an Aggregator; its module is
# imported when the aggregate is asked for.
AGGREGATORS: dict[str, str] = {
    "dawid_skene": "reward_models.aggregation:DawidSkene",
    "noisy_bt": "reward_models.aggregation:NoisyBradleyTerry",
}


class Aggregator(Protocol):
    """Targets from the votes of the whole import.

    Every merged group passes through ``observe`` once, then the same groups in the same order
    through ``targets``. Both see a group with all the judgements that any input file holds about
    it. ``targets`` returns no pair for a group that is to be dropped as ``no_pair``; it may add to
    the group's meta, which is written afterwards. Ties, alpha, suspects and min_annotators are in
    the settings that the factory got. UserError from either ends the import and leaves nothing
    behind. ``report`` goes into report.json as ``aggregation``.
    """

    def observe(self, group: PreferenceGroup) -> None:
        """Takes a group's votes."""

    def targets(self, group: PreferenceGroup) -> Sequence[PairTarget]:
        """The pairs to train on; a is the preferred candidate."""
        ...

    def report(self) -> dict[str, Any]:
        """What was found, as JSON values."""
        ...


class PerGroup:
    """The aggregates of ``preferences.targets``, which look at one group at a time."""

    def __init__(self, settings: ImportSettings):
        """settings: aggregate, ties, alpha, min_annotators and suspects are used."""
        self._settings = settings

        # Only then are the votes that make the targets those that the quality report looks at.
        self.takes_all = settings.ties == "half" and settings.suspects == "keep"

    def targets(self, group: PreferenceGroup, found: Found | None = None) -> list[PairTarget]:
        """See ``preferences.targets``. found: all votes of the group, where ``takes_all``."""
        given = self._settings
        return targets(
            group,
            aggregate=given.aggregate,
            ties=given.ties,
            alpha=given.alpha,
            margin=True,
            min_annotators=given.min_annotators,
            suspects=given.suspects,
            found=found,
        )


def aggregator_for(settings: ImportSettings) -> PerGroup | Aggregator:
    """What makes the targets under these settings."""
    name = AGGREGATORS.get(settings.aggregate)
    if name is None:
        return PerGroup(settings)
    module, _, factory = name.partition(":")
    return getattr(import_module(module), factory)(settings)


class Collected:
    """Groups in the order in which they were read, on disk."""

    def __init__(self, folder: Path):
        """folder: where the disk space is taken."""
        self._spool = Spool(folder)

    def add(self, key: bytes, value: bytes) -> None:
        """Keeps a group, ``packed``."""
        self._spool.add(key, value)

    def batches(self) -> Iterator[list[list[bytes]]]:
        """Lists of comparisons: the packed groups of each, to be ``merged``.

        In order of first appearance.
        """
        some: list[list[bytes]] = []
        size = 0
        for parts in self._spool.groups():
            some.append(parts)
            size += sum(map(len, parts))
            if len(some) >= BATCH or size >= BATCH_BYTES:
                yield some
                some, size = [], 0
        if some:
            yield some

    def __len__(self) -> int:
        return len(self._spool)

    def close(self) -> None:
        """Frees the disk."""
        self._spool.close()


def packed(row: Row | None, group: PreferenceGroup) -> tuple[bytes, bytes]:
    """(key, value) of a group for ``Collected``. row: the (first) row that it came from."""
    where: Where = (row.file, row.line, row.number) if row else (None, None, None)
    key = cached_prompt_key(group.prompt)
    return digest(group.group_id), pack((where, key, plain(group)))


def unpacked(value: bytes) -> tuple[Where, str, PreferenceGroup]:
    """(where its row stands, key of its prompt, group) of a ``packed`` value."""
    where, key, group = unpack(value)
    return where, key, from_plain(group)


def merged(parts: Sequence[bytes]) -> tuple[Where, str, PreferenceGroup]:
    """(where its first row stands, key of its prompt, group) of a comparison."""
    found = [unpacked(part) for part in parts]
    where, key, group = found[0]
    return where, key, group if len(found) == 1 else merge([group for *_, group in found])


@dataclass
class Written:
    """What the second pass wrote."""

    groups: Counts = field(default_factory=Counts)
    splits: Counter[str] = field(default_factory=Counter)
    pairs: int = 0

    def add(self, more: Written) -> None:
        """Takes the counts of later groups."""
        self.groups += more.groups
        self.splits.update(more.splits)
        self.pairs += more.pairs


def split_of(key: str, fractions: Sequence[float], seed: int) -> str:
    """The split of a prompt key; fractions need not add up to 1."""
    return assign(key, _parts(fractions), seed)


def _parts(fractions: Sequence[float]) -> dict[str, float]:
    return {n: f / sum(fractions) for n, f in zip(SPLITS, fractions, strict=True)}


def write_all(
    collected: Collected,
    aggregator: PerGroup | Aggregator,
    quality: Quality,
    work: Path,
    reject: Callable[[dict[str, Any]], None],
    workers: Workers,
) -> Written:
    """Second pass: groups, splits and pairs go to files in ``work``.

    workers: their setup is the ImportSettings.
    """
    batches = collected.batches()
    if isinstance(aggregator, PerGroup):
        made = (lines for _, lines in workers.map(lines_of, batches))
    else:
        for batch in collected.batches():
            for parts in batch:
                aggregator.observe(merged(parts)[2])
        made = (lines_of(workers.setup, batch, aggregator) for batch in batches)
    written = Written()
    with ExitStack() as stack:
        out = {
            name: stack.enter_context(open(work / f"{name}.jsonl", "wb", BUFFER))
            for name in ("preferences", "pairs", *SPLITS)
        }
        splits = [out[name] for name in SPLITS]
        for lines in made:
            written.add(lines.written)
            quality.add(lines.quality)
            for record in lines.rejects:
                reject(record)
            out["preferences"].write(lines.records)
            out["pairs"].write(lines.pairs)
            records, start = memoryview(lines.records), 0
            for split, end in zip(lines.splits, lines.ends, strict=True):
                splits[split].write(records[start:end])
                start = end
    return written


class Lines(NamedTuple):
    """What some comparisons become. splits, ends: of each record, its place in ``SPLITS``, its end.

    rejects: of comparisons that make no pair.
    """

    written: Written
    quality: Quality
    records: bytes
    pairs: bytes
    splits: bytes
    ends: list[int]
    rejects: list[dict[str, Any]]


def lines_of(
    settings: ImportSettings,
    batch: Sequence[Sequence[bytes]],
    aggregator: PerGroup | Aggregator | None = None,
) -> Lines:
    """The lines of some comparisons. aggregator: by default that of the settings."""
    aggregator = aggregator or PerGroup(settings)
    takes_all = isinstance(aggregator, PerGroup) and aggregator.takes_all
    written, quality, parts = Written(), Quality(part=True), _parts(settings.fractions)
    records, pairs, splits, ends, rejects, end = [], [], bytearray(), [], [], 0
    for packed_groups in batch:
        where, key, group = merged(packed_groups)
        file, line, number = where
        place = row_place(file, line, number) if file else None
        # Of an earlier import, whose votes were others.
        group.meta.pop("aggregated", None)
        found = votes(group)
        made = aggregator.targets(group, found) if takes_all else aggregator.targets(group)
        if not made:
            written.groups.drop("no_pair", where=place)
            rejects.append(_no_pair(where, group))
            continue
        split = assign(key, parts, settings.seed)
        written.groups.used += 1
        written.splits[split] += 1
        written.pairs += len(made)
        quality.observe(group, key, split, place, found)
        lines = GroupLines(group)
        record = lines.record()
        records.append(record)
        pairs.append(lines.pairs(made, split))
        splits.append(SPLITS.index(split))
        end += len(record)
        ends.append(end)
    return Lines(written, quality, b"".join(records), b"".join(pairs), bytes(splits), ends, rejects)


def _no_pair(where: Where, group: PreferenceGroup) -> dict[str, Any]:
    """The rejects.jsonl record of a group whose rows were read but whose votes make no pair."""
    file, line, number = where
    detail = f"its {len(group.judgements)} judgement(s) make no pair under these settings"
    return {
        "file": file,
        "line": line,
        "row": number,
        "reason": "no_pair",
        "detail": detail,
        "record": short(group.to_json(), 500),
    }
