"""The two passes of an import: all groups go to disk, then come back merged and are written.

What one group's targets are may depend on the votes of all the others (an annotator's reliability
is estimated from everything they said), so targets are asked for in the second pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.data.splits import assign
from align.jsonl import short
from align.records import PairTarget, PreferenceGroup
from reward_models.annotations.intake import place as row_place
from reward_models.import_groups import Collected, Item, Lines, Where, Written, merged
from reward_models.import_lines import GroupLines
from reward_models.preferences import Vote, targets, votes
from reward_models.quality import Quality
from reward_models.workers import Workers

if TYPE_CHECKING:
    from reward_models.importing import ImportSettings

SPLITS = ("train", "validation", "test")
BUFFER = 1 << 20
# Votes by pair of candidates.
Found = Mapping[tuple[int, int], Sequence[Vote]]

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
        made = (lines for _, lines in workers.map(merged_lines, batches))
    else:
        for batch in collected.batches():
            for parts in batch:
                aggregator.observe(merged(parts)[2])
        made = (lines_of(workers.setup, map(merged, batch), aggregator) for batch in batches)
    written = Written()
    with ExitStack() as stack:
        out = {
            name: stack.enter_context(open(work / f"{name}.jsonl", "wb", BUFFER))
            for name in ("preferences", "pairs", *SPLITS)
        }
        write_to = [out[name].write for name in SPLITS]
        for lines in made:
            written.add(lines.written)
            quality.add(lines.quality)
            for record in lines.rejects:
                reject(record)
            out["preferences"].writelines(lines.records)
            out["pairs"].write(lines.pairs)
            for split, record in zip(lines.splits, lines.records, strict=True):
                write_to[split](record)
    return written


def merged_lines(settings: ImportSettings, batch: Sequence[Sequence[bytes]]) -> Lines:
    """The lines of some comparisons, from their values in ``Collected``."""
    return lines_of(settings, map(merged, batch), PerGroup(settings))


def lines_of(
    settings: ImportSettings, items: Iterable[Item], aggregator: PerGroup | Aggregator
) -> Lines:
    """The lines of some comparisons."""
    written, quality, parts = Written(), Quality(part=True), _parts(settings.fractions)
    records, pairs, splits, rejects = [], [], bytearray(), []
    for where, key, group in items:
        file, line, number = where
        place = row_place(file, line, number) if file else None
        # Of an earlier import, whose votes were others.
        group.meta.pop("aggregated", None)
        found = votes(group)
        if isinstance(aggregator, PerGroup) and aggregator.takes_all:
            made = aggregator.targets(group, found)
        else:
            made = aggregator.targets(group)
        if not made:
            written.groups.drop("no_pair", where=place)
            rejects.append(_no_pair(where, group))
            continue
        split = assign(key, parts, settings.seed)
        written.groups.use()
        written.splits[split] += 1
        written.pairs += len(made)
        quality.observe(group, key, split, place, found)
        lines = GroupLines(group)
        records.append(lines.record())
        pairs.append(lines.pairs(made, split))
        splits.append(SPLITS.index(split))
    return Lines(written, quality, records, b"".join(pairs), bytes(splits), rejects)


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
