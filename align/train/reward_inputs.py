"""What a reward model reads of a group beside tokens and pairs: ratings, and who counts the group.

Both travel as the group's extras, one number a candidate, so a micro-batch carries its own and no
grouping, micro-batch size or number of ranks changes them. Fillers get zeros: no rating, no count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from align.config_errors import UserError, nearest
from align.groups import GroupBatch, TokenGroup
from align.records import PreferenceGroup, RecordError, short

if TYPE_CHECKING:
    from align.config import Config

RATED, RATING, COUNTED = "rated", "rating", "counted"


class Scale(NamedTuple):
    """Mean and standard deviation of each attribute's ratings, in their own unit."""

    mean: list[float]
    std: list[float]


class RewardInputs:
    """Makes the extras of groups, as config.reward asks."""

    def __init__(self, config: Config) -> None:
        reward = config.reward
        self.attributes = reward.attributes
        self.members = reward.members if reward.bootstrap else 1
        self.seed = int(config.train.args.get("seed", 42))

    def ratings(self, group: PreferenceGroup) -> dict[int, list[float | None]]:
        """{candidate index: a rating for each attribute, None where it has none}.

        Candidates without any are left out. RecordError (bad_attributes) where the group's
        meta["attributes"] is not {candidate id: {attribute: number or null}}.
        """
        given = group.meta.get("attributes") or {}
        if not isinstance(given, dict):
            raise RecordError(f"meta.attributes is {short(given)}", code="bad_attributes")
        unknown = sorted(given.keys() - {c.id for c in group.candidates})
        if unknown:
            raise RecordError(f"meta.attributes rates unknown {unknown}", code="bad_attributes")
        found = {}
        for i, candidate in enumerate(group.candidates):
            rated = given.get(candidate.id) or {}
            if not isinstance(rated, dict):
                raise RecordError(f"ratings are {short(rated)}", code="bad_attributes")
            row = [_number(rated.get(name)) for name in self.attributes]
            if any(value is not None for value in row):
                found[i] = row
        return found

    def extras(
        self, group_id: str, used: Sequence[int], ratings: dict[int, list[float | None]]
    ) -> dict[str, list[Any]]:
        """The extras of a group whose candidates `used` are trained on."""
        made: dict[str, list[Any]] = {}
        for j in range(len(self.attributes)):
            column = [ratings[i][j] if i in ratings else None for i in used]
            made[f"{RATED}_{j}"] = [float(x is not None) for x in column]
            made[f"{RATING}_{j}"] = [0.0 if x is None else x for x in column]
        if self.members > 1:
            for m in range(self.members):
                made[f"{COUNTED}_{m}"] = [drawn(group_id, m, self.seed)] * len(used)
        return made


def drawn(group_id: str, member: int, seed: int) -> float:
    """How often a member of an ensemble counts a group: Poisson(1), mean 1.

    The bootstrap without knowing the data's size (Oza and Russell 2001, "Online bagging and
    boosting"). A hash of the arguments decides, so it is the same in every process and run.
    """
    text = f"{seed}\x1f{member}\x1f{group_id}".encode("utf-8", "surrogatepass")
    u = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2.0**64
    count, p = 0, math.exp(-1.0)
    while u >= p and count < 12:  # 12 and more: one in 10⁹
        u -= p
        count += 1
        p /= count
    return float(count)


def column(batch: GroupBatch, name: str, n: int) -> Tensor:
    """(C, n): the n extras of one name, side by side."""
    return torch.stack([batch.extras[f"{name}_{i}"] for i in range(n)], dim=-1)


def scale_of(groups: Sequence[TokenGroup], n: int) -> Scale:
    """Mean and population standard deviation of n attributes; 1 where all ratings are equal."""
    mean, std = [], []
    for j in range(n):
        values = [value for group in groups for value in _rated(group, j)]
        middle = math.fsum(values) / max(1, len(values))
        square = math.fsum((v - middle) ** 2 for v in values) / max(1, len(values))
        mean.append(middle)
        std.append(math.sqrt(square) or 1.0)
    return Scale(mean, std)


def check_attributes(records: Sequence[PreferenceGroup], config: Config) -> None:
    """UserError for an attribute of reward.attributes that no record rates."""
    wanted = config.reward.attributes
    known = sorted({name for record in records for name in _names(record)}) if wanted else []
    for name in wanted:
        if name in known:
            continue
        reason = f"has {name!r}, which no group of {config.data.preferences} rates"
        fix = f"Rated there: {', '.join(known)}" if known else "Its groups need meta.attributes"
        close = nearest(name, known)
        fix = f"Did you mean {close!r}? {fix}" if close else fix
        raise UserError("reward.attributes", wanted, reason, fix)


def _rated(group: TokenGroup, j: int) -> list[float]:
    """Ratings of attribute j in a group."""
    both = zip(group.extras[f"{RATING}_{j}"], group.extras[f"{RATED}_{j}"], strict=True)
    return [rating for rating, rated in both if rated]


def _names(group: PreferenceGroup) -> set[str]:
    """Attributes that a group rates; none where its ratings cannot be read."""
    given = group.meta.get("attributes")
    rows = given.values() if isinstance(given, dict) else ()
    named = [item for row in rows if isinstance(row, dict) for item in row.items()]
    return {name for name, value in named if value is not None}


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(f"a rating is {short(value)}, not a number", code="bad_attributes")
    return float(value)
