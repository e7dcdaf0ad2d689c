"""The two passes of an import: all groups go to disk, then come back merged and are written.

What one group's targets are may depend on the votes of all the others (an annotator's reliability
is estimated from everything they said), so targets are asked for in the second pass only.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from align.records import PairTarget, PreferenceGroup
from reward_models.annotations.base import Row, merge
from reward_models.annotations.spool import Spool, digest
from reward_models.preferences import targets

if TYPE_CHECKING:
    from reward_models.importing import ImportSettings

# file, line, row number
Where = tuple[str | None, int | None, int | None]

# Aggregates that need every vote before the first target: name in preferences.AGGREGATES →
# "module:factory". The factory takes the ImportSettings and returns an Aggregator; its module is
# imported when the aggregate is asked for.
AGGREGATORS: dict[str, str] = {}


@runtime_checkable
class Aggregator(Protocol):
    """Targets from the votes of the whole import.

    Every merged group passes through ``observe`` once, then the same groups in the same order
    through ``targets``. Both see a group with all the judgements that any input file holds about
    it. ``targets`` returns no pair for a group that is to be dropped as ``no_pair``; ties,
    alpha, suspects, min_annotators are in the settings that the factory got. UserError from either
    ends the import and leaves nothing behind.
    """

    def observe(self, group: PreferenceGroup) -> None:
        """Takes a group's votes."""

    def targets(self, group: PreferenceGroup) -> Sequence[PairTarget]:
        """The pairs to train on; a is the preferred candidate."""
        ...


class PerGroup:
    """The aggregates of ``preferences.targets``, which look at one group at a time."""

    def __init__(self, settings: ImportSettings):
        """settings: aggregate, ties, alpha, min_annotators and suspects are used."""
        self._settings = settings

    def targets(self, group: PreferenceGroup) -> list[PairTarget]:
        """See ``preferences.targets``."""
        given = self._settings
        return targets(
            group,
            aggregate=given.aggregate,
            ties=given.ties,
            alpha=given.alpha,
            margin=True,
            min_annotators=given.min_annotators,
            suspects=given.suspects,
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

    def add(self, row: Row | None, group: PreferenceGroup) -> None:
        """Keeps a group. row: the (first) row that it came from."""
        where: Where = (row.file, row.line, row.number) if row else (None, None, None)
        self._spool.add(digest(group.group_id), pickle.dumps((where, group), 5))

    def merged(self) -> Iterator[tuple[Where, PreferenceGroup]]:
        """(where its first row stands, group) of each comparison, in order of first appearance."""
        for parts in self._spool.groups():
            found = [pickle.loads(part) for part in parts]
            yield found[0][0], merge([group for _, group in found])

    def close(self) -> None:
        """Frees the disk."""
        self._spool.close()
