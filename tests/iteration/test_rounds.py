"""When rounds end, and which is kept: scripted scores of a gold judge."""

from __future__ import annotations

import math

import pytest

from align.iteration.rounds import decide, paired_change

PROMPTS = [0.1, 0.4, 0.2, 0.8, 0.5, 0.6]


def judged(*levels, noise=0.0):
    """Rounds whose scores lie at these levels above what a prompt is worth; two seeds each.

    noise: half of the prompts moves up and half down, in every round after the first.
    """
    return [
        [[p + level + (-1) ** i * noise * (k > 0)] * 2 for i, p in enumerate(PROMPTS)]
        for k, level in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("levels", "best", "said"),
    [
        ([0.0], 0, ""),
        ([0.0, 0.1], 1, ""),
        ([0.0, 0.1, 0.2, 0.3], 3, ""),
        ([0.0, 0.1, 0.05], 1, "The judge fell in round 2: -0.050"),
        ([0.0, -0.1], 0, "The judge fell in round 1: -0.100"),
        ([0.0, 0.1, 0.3, 0.2], 2, "The judge fell in round 3: -0.100 [-0.100, -0.100] against"),
    ],
)
def test_a_judge_that_falls_ends_the_rounds_and_the_best_is_kept(levels, best, said):
    decision = decide(judged(*levels))
    assert decision.best == best
    assert decision.reason.startswith(said)
    assert bool(decision.reason) == bool(said)


def test_small_ups_and_downs_are_waited_for():
    # ± 0.3 of noise: no change of 0.01 is below 0 with certainty.
    flat = judged(0.0, -0.01, -0.01, -0.01, noise=0.3)
    assert decide(flat[:2]).reason == ""
    second = decide(flat[:3], patience=2)
    assert second.best == 0
    assert second.reason.startswith("No better round in 2: the judge moved by -0.010")
    # A round that equals the best is no better one either.
    assert decide(judged(0.0, 0.0), patience=1).reason.startswith("No better round in 1")
    assert decide(judged(0.0, 0.0, 0.1), patience=2).best == 2


def test_min_delta_is_what_counts_as_better():
    rising = judged(0.0, 0.02, 0.04, 0.06, 0.08)
    assert decide(rising).best == 4
    # 0.02 and 0.04 are not enough above round 0, 0.06 is.
    assert decide(rising, min_delta=0.05, patience=3).best == 3
    assert decide(rising, min_delta=0.05, patience=2).reason.startswith("No better round in 2")


def test_later_rounds_are_not_looked_at_after_an_end():
    falls = judged(0.0, 0.1, 0.0, 0.9)
    assert decide(falls).best == 1


def test_scores_that_are_missing_are_left_out_on_both_sides():
    nan = float("nan")
    before = [[0.0, 1.0], [0.5, nan], [nan, nan]]
    after = [[0.2, 1.2], [nan, 0.9], [3.0, 3.0]]
    # Only the first prompt has a seed that both know.
    found = paired_change(after, before)
    assert found.value == pytest.approx(0.2)
    with pytest.raises(ValueError, match="scored no prompt in both rounds"):
        paired_change([[nan]], [[1.0]])
    assert not math.isnan(decide([before, after]).change.value)
