"""Best of n: exact expectations, against counting by hand and against enumeration."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.evaluation_best_of_n import (
    SHARE,
    beaten,
    best_of_n,
    curve,
    gold_of,
    pick_probabilities,
    sizes,
)


def entry(score, gold, length=None):
    made = (score, gold, length or [1.0] * len(gold))
    return tuple(np.array(values, dtype=np.float64) for values in made)


def group(*judgements, n=3, meta=None):
    candidates = tuple(Candidate("abcdef"[i], "字" * (i + 1)) for i in range(n))
    return PreferenceGroup("g", (Message("user", "问"),), candidates, judgements, meta or {})


def score(**value):
    return Judgement(None, "score", value, source="s")


def rank(source="r", **value):
    return Judgement(None, "rank", value, source=source)


def test_three_answers_by_hand():
    # The model's order is the gold's worst, best, middle.
    one, two, three = curve([entry([3, 2, 1], [0, 10, 5], [1, 2, 3])])
    assert (one["gold"], one["random"], one["longest"], one["oracle"]) == (5, 5, 5, 5)
    # Of two: {1, 2} → 0, {1, 3} → 0, {2, 3} → 10. The longest: 10, 5, 5. The best: 10, 5, 10.
    assert two["gold"] == pytest.approx(10 / 3)
    assert two["longest"] == pytest.approx(20 / 3)
    assert two["oracle"] == pytest.approx(25 / 3)
    assert two["gain"] == pytest.approx(-1 / 2)  # (10/3 − 5) / (25/3 − 5)
    assert two["beats"] == pytest.approx(1 / 3)  # 0, 0 and both others
    assert (three["gold"], three["oracle"], three["beats"]) == (0, 10, 0)
    assert one["gain"] is None
    assert [p["kl"] for p in (one, two)] == [0.0, pytest.approx(math.log(2) - 1 / 2)]


def test_equal_scores_are_chosen_between_at_random():
    one, two, three = curve([entry([1, 1, 0], [4, 0, 2])])
    # {1, 2} → 2 on average, {1, 3} → 4, {2, 3} → 0.
    assert [p["gold"] for p in (one, two, three)] == pytest.approx([2, 2, 2])


def test_groups_with_fewer_answers_leave_the_curve_and_its_baselines():
    points = curve([entry([1, 0], [1, 0]), entry([2, 1, 0], [6, 3, 0])])
    assert [p["groups"] for p in points] == [2, 2, 1]
    assert points[1]["gold"] == pytest.approx((1 + 5) / 2)  # 1; 6, 6, 3
    assert points[2]["gold"] == 6
    assert points[2]["random"] == 3
    assert points[0]["low"] <= points[0]["gold"] <= points[0]["high"]


def enumerated(values, n):
    """P(pick) of each answer, by trying every draw."""
    found, draws = np.zeros(len(values)), list(combinations(range(len(values)), n))
    for draw in draws:
        top = max(values[i] for i in draw)
        best = [i for i in draw if values[i] == top]
        for i in best:
            found[i] += 1 / len(best) / len(draws)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_pick_probabilities_equal_enumeration(values, data):
    n = data.draw(st.integers(1, len(values)))
    found = pick_probabilities(np.array(values, dtype=np.float64), n)
    assert found == pytest.approx(enumerated(values, n))
    assert found.sum() == pytest.approx(1.0)


def test_large_groups_stay_exact():
    # The best of 300 is drawn into 150 with probability one half.
    found = pick_probabilities(np.arange(300.0), 150)
    assert found[-1] == pytest.approx(0.5)
    assert found.sum() == pytest.approx(1.0)
    assert sizes(300) == [*range(1, 33), 64, 128, 256, 300]
    assert sizes(3) == [1, 2, 3]


def test_more_answers_help_a_perfect_model_and_not_a_blind_one():
    generator = np.random.default_rng(0)
    gold = [generator.normal(size=8) for _ in range(30)]
    perfect = curve([entry(g, g) for g in gold], resamples=10)
    assert all(p["gain"] == pytest.approx(1.0) for p in perfect[1:])
    assert [p["gold"] for p in perfect] == sorted(p["gold"] for p in perfect)
    blind = curve([entry([0.0] * 8, g) for g in gold], resamples=10)
    assert all(p["gold"] == pytest.approx(blind[0]["random"]) for p in blind)
    assert all(p["beats"] == pytest.approx(0.5) for p in blind)


def test_beaten_by_hand():
    assert beaten(np.array([1.0, 5.0, 5.0, 9.0])).tolist() == [0.0, 0.5, 0.5, 1.0]


def test_gold_of_scores_is_their_mean():
    unit, gold = gold_of(group(score(a=1.0, b=3.0), score(a=3.0, b=3.0)))
    assert (unit, gold) == ("score: s", [2.0, 3.0, None])


def test_gold_of_rankings_is_the_share_beaten():
    # a beats both, then one of two: (1 + 1/2) / 2; c is last twice.
    unit, gold = gold_of(group(rank(a=1, b=2, c=3), rank(a=2, b=1, c=3)))
    assert (unit, gold) == (SHARE, [0.75, 0.75, 0.0])
    assert gold_of(group(rank(a=2, b=1, c=None)))[1] == [0.0, 1.0, None]


def test_scores_of_two_sources_are_not_averaged():
    ten = Judgement(None, "score", {"a": 10.0, "b": 90.0, "c": 50.0}, source="other")
    unit, gold = gold_of(group(score(a=1.0, b=3.0, c=2.0), ten))
    assert (unit, gold) == (SHARE, [0.0, 1.0, 0.5])


def test_gold_of_a_field_comes_first():
    given_too = group(rank(a=1, b=2, c=3), meta={"gold": [0.5, None, float("nan")]})
    assert gold_of(given_too) == ("gold", [0.5, None, None])
    assert gold_of(group(rank(a=1, b=2, c=3), meta={"gold": [1.0]}))[0] == SHARE  # not parallel


def test_pairs_alone_are_no_gold():
    vote = Judgement(None, "pair", {"winner": "a", "loser": "b"})
    assert gold_of(group(vote))[1] == [None, None, None]
    assert best_of_n([group(vote)], [[1.0, 2.0, 3.0]]) == []


def test_units_are_never_mixed():
    groups = [group(score(a=1.0, b=2.0, c=3.0)), group(rank(a=1, b=2, c=3)), group(rank(a=1, b=2))]
    curves = best_of_n(groups, [[1.0, 2.0, 3.0]] * 3, resamples=5)
    assert [(c["unit"], c["groups"], len(c["curve"])) for c in curves] == [
        (SHARE, 2, 3), ("score: s", 1, 3),
    ]  # fmt: skip
    assert curves[1]["curve"][2]["gold"] == 3.0
    # Of three ranked answers the model takes the worst; of two, the second, which is worse.
    assert curves[0]["curve"][1]["gold"] == pytest.approx((np.mean([0.5, 0.0, 0.0]) + 0.0) / 2)
