"""What scores owe to length, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.evaluation_length import MAX_POINTS, length_bias
from reward_models.evaluation_pairs import collect


def bias(rows, **more):
    """rows: (length of the winner, of the loser, score of the winner, of the loser)."""
    groups, scores = [], []
    for i, (a, b, first, second) in enumerate(rows):
        candidates = (Candidate("a", "字" * a), Candidate("b", "x" * b))
        votes = (Judgement(None, "pair", {"winner": "a", "loser": "b"}),)
        groups.append(PreferenceGroup(str(i), (Message("user", "q"),), candidates, votes))
        scores.append([first, second])
    return length_bias(collect(groups, scores), **more)


def value(found, name):
    return found[name]["value"]


def test_two_pairs_by_hand():
    # L = 1 and −2 hundred characters, Δ = 2 and −1.
    found = bias([(150, 50, 2.0, 0.0), (50, 250, 0.0, 1.0)])
    assert value(found, "slope") == pytest.approx((1 * 2 + 2 * 1) / (1 + 4))
    assert value(found, "correlation") == pytest.approx(4 / math.sqrt(5 * 5))
    # Δ = 1·L + 1·v holds for both.
    assert value(found, "slope_given_votes") == pytest.approx(1.0)
    assert value(found, "model_prefers_longer") == 1.0
    assert value(found, "votes_prefer_longer") == 0.5
    # Right, wrong; and the longer answer: right, wrong.
    assert value(found, "gain_over_length") == 0.0
    assert found["points"] == [[100.0, 2.0], [-200.0, -1.0]]
    assert found["unit"] == "score per 100 characters"


def test_the_order_of_a_pair_does_not_matter():
    rows = [(150, 50, 2.0, 0.5), (50, 250, 0.0, 1.0), (30, 20, 1.0, 1.5)]
    first = bias(rows)
    groups, scores = [], []
    for i, (a, b, high, low) in enumerate(rows):  # the winner is the second candidate
        candidates = (Candidate("b", "x" * b), Candidate("a", "x" * a))
        votes = (Judgement(None, "pair", {"winner": "a", "loser": "b"}),)
        groups.append(PreferenceGroup(str(i), (Message("user", "q"),), candidates, votes))
        scores.append([low, high])
    assert length_bias(collect(groups, scores)) == first


def test_a_model_of_length_alone():
    found = bias([(10 * n, 5, 0.1 * n, 0.05) for n in range(1, 30)])
    assert value(found, "slope") == pytest.approx(1.0)  # a hundredth a character
    assert found["slope"]["low"] == pytest.approx(1.0)
    assert value(found, "correlation") == pytest.approx(1.0)
    assert value(found, "gain_over_length") == 0.0


def test_length_alone_may_mean_the_shorter_answer():
    # The shorter one wins three of four; a model that always takes it has gained nothing.
    shorter = bias([(10, 90, 1.0, 0.0)] * 3 + [(90, 10, 0.0, 1.0)])
    assert value(shorter, "gain_over_length") == 0.0
    assert value(shorter, "votes_prefer_longer") == 0.25
    perfect = bias([(10, 90, 1.0, 0.0)] * 3 + [(90, 10, 1.0, 0.0)])
    assert value(perfect, "gain_over_length") == 0.25


def test_a_model_that_ignores_length_has_no_slope_beyond_the_votes():
    # Voters like length, the model follows the voters exactly: Δ = v.
    found = bias([(100 + n, 50, 1.0, 0.0) for n in range(20)] + [(50, 90, 1.0, 0.0)] * 3)
    assert value(found, "slope") > 0.1
    assert value(found, "slope_given_votes") == pytest.approx(0.0, abs=1e-9)


def test_votes_that_cannot_be_told_from_length_give_no_partial_slope():
    found = bias([(150, 50, 2.0, 0.0), (150, 50, 1.0, 0.0)])
    assert found["slope_given_votes"] == {"value": None, "low": None, "high": None}
    assert value(found, "slope") == pytest.approx(1.5)


def test_equal_lengths_or_equal_scores():
    assert bias([(5, 5, 1.0, 0.0)]) is None
    found = bias([(15, 5, 1.0, 1.0)])
    assert value(found, "slope") == 0.0
    assert value(found, "correlation") is None
    assert value(found, "model_prefers_longer") == 0.5


def test_the_interval_covers_the_slope_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits, runs = 0, 60
    for seed in range(runs):
        rows = []
        for _ in range(40):
            a, b = (int(n) for n in generator.integers(10, 400, 2))
            rows.append((a, b, 0.003 * (a - b) + generator.normal(), 0.0))
        found = bias(rows, seed=seed, resamples=200)["slope"]
        hits += found["low"] <= 0.3 <= found["high"]
    assert 0.8 <= hits / runs <= 1.0


def test_few_points_are_kept():
    found = bias([(n + 1, 1, 1.0, 0.0) for n in range(MAX_POINTS + 50)], resamples=2)
    assert len(found["points"]) == MAX_POINTS
    assert len({x for x, _ in found["points"]}) == MAX_POINTS
