"""Rounds and when to stop: pure rules over what was measured after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.evaluation.metrics import Estimate, bootstrap


@dataclass(frozen=True)
class Decision:
    """best: the round whose policy is kept. change: the last round's judge against the best before.

    reason: why no further round is run; "" to go on.
    """

    best: int
    change: Estimate | None = None
    reason: str = ""


def decide(
    judged: Sequence[Sequence[Sequence[float]]], *, patience: int = 2, min_delta: float = 0.0
) -> Decision:
    """What follows from the judge's scores of round 0 (the first policy) up to the last.

    judged: for each round (prompts, seeds) scores, the same prompts and seeds in all; NaN where the
    judge gave none. After each round its scores are compared with the best round's so far, prompt
    by prompt. It takes the best round's place where the mean rises by more than min_delta. There is
    no further round when the 95 % interval of the change is below 0 (the judge falls), or when
    `patience` rounds one behind the other were no new best.
    """
    best, waited, change = 0, 0, None
    for number in range(1, len(judged)):
        change = paired_change(judged[number], judged[best])
        if change.value > min_delta:
            best, waited = number, 0
            continue
        waited += 1
        said = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        if change.high < 0:
            reason = f"The judge fell in round {number}: {said} against round {best}."
            return Decision(best, change, reason)
        if waited >= patience:
            reason = (
                f"No better round in {waited}: the judge moved by {said} from round {best} "
                f"to round {number}."
            )
            return Decision(best, change, reason)
    return Decision(best, change)


def paired_change(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> Estimate:
    """Mean difference over prompts with its interval; rows that either side lacks are left out."""
    gap = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    known = ~np.isnan(gap)
    rows = known.any(axis=1)
    if not rows.any():
        raise ValueError("the judge scored no prompt in both rounds")
    means = np.array([row[ok].mean() for row, ok in zip(gap[rows], known[rows], strict=True)])
    return bootstrap(means)
