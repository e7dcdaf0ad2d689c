"""From a model's raw outputs to its score, the spread of its heads, and its attributes.

A comparison model has one output a head. With attributes the outputs are members × attributes,
member after member, in standard deviations of the ratings it was trained on:

    attribute_j = mean_j + std_j · output_j          score = Σ_j weight_j · attribute_j

Several members (heads, or heads for every attribute) are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reward_models.contract import Contract


def member_scores(contract: Contract, row: Sequence[float]) -> list[float]:
    """The score of each member, from the raw outputs of one text."""
    if not contract.attributes:
        return list(row)
    n, weights = len(contract.attributes), contract.attribute_weights
    values = _values(contract, row)
    return [
        sum(w * v for w, v in zip(weights, values[m : m + n], strict=True))
        for m in range(0, len(row), n)
    ]


def score(contract: Contract, row: Sequence[float]) -> float:
    """The mean over members."""
    members = member_scores(contract, row)
    return sum(members) / len(members)


def spread(contract: Contract, row: Sequence[float]) -> float | None:
    """Standard deviation (n − 1) of the members' scores, None with one; in units of the score.

    Comparisons fix only differences of scores, so a head's level is its own: the mean of each head
    over the reference samples is subtracted first where the contract has it.
    """
    members = member_scores(contract, row)
    if len(members) < 2:
        return None
    levels = contract.head_means or [0.0] * len(members)
    apart = [m - level for m, level in zip(members, levels, strict=True)]
    middle = sum(apart) / len(apart)
    return math.sqrt(sum((x - middle) ** 2 for x in apart) / (len(apart) - 1))


def attributes(contract: Contract, row: Sequence[float]) -> dict[str, float]:
    """{attribute: value in the unit of its ratings}, mean over members; {} without attributes."""
    values, n = _values(contract, row), len(contract.attributes)
    return {name: sum(values[j::n]) * n / len(row) for j, name in enumerate(contract.attributes)}


def _values(contract: Contract, row: Sequence[float]) -> list[float]:
    """Raw outputs in the unit of their ratings."""
    n, mean, std = len(contract.attributes), contract.attribute_mean, contract.attribute_std
    return [mean[i % n] + std[i % n] * x for i, x in enumerate(row)] if n else []
