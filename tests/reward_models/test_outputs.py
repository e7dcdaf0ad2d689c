"""Raw outputs into score, uncertainty and attributes, by hand."""

from __future__ import annotations

import math

import pytest

from reward_models.contract import Contract
from reward_models.outputs import attributes, member_scores, score, spread

ONE = Contract("t", "k")
THREE = Contract("t", "k", heads=3, head_means=(1.0, 2.0, 3.0))
RATED = Contract(
    "t", "k", heads=4,
    attributes=("helpfulness", "verbosity"), attribute_weights=(0.75, -0.25),
    attribute_mean=(3.0, 2.0), attribute_std=(0.5, 2.0),
)  # fmt: skip


def test_heads_are_averaged():
    assert score(ONE, [2.5]) == 2.5
    assert member_scores(THREE, [1.0, 2.0, 6.0]) == [1.0, 2.0, 6.0]
    assert score(THREE, [1.0, 2.0, 6.0]) == 3.0


def test_a_heads_own_level_is_no_disagreement():
    assert spread(ONE, [2.5]) is None
    assert spread(THREE, [11.0, 12.0, 13.0]) == 0.0
    # 0, 0 and 3 apart: deviations −1, −1, 2 around 1, squares 6, over n − 1.
    assert spread(THREE, [1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(3))
    plain = Contract("t", "k", heads=2)
    assert spread(plain, [1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_attributes_in_their_own_unit_and_their_weighted_sum():
    row = [1.0, 0.0, 3.0, 1.0]
    # First member: 3.5 and 2, second: 4.5 and 4.
    assert attributes(RATED, row) == {"helpfulness": 4.0, "verbosity": 3.0}
    assert member_scores(RATED, row) == [2.125, 2.375]
    assert score(RATED, row) == 2.25
    assert spread(RATED, row) == pytest.approx(0.25 / math.sqrt(2))
    assert attributes(ONE, [2.5]) == {}


def test_the_score_is_the_weighted_sum_of_the_attributes():
    found = attributes(RATED, [0.3, -1.2, 2.0, 0.7])
    weighted = 0.75 * found["helpfulness"] - 0.25 * found["verbosity"]
    assert score(RATED, [0.3, -1.2, 2.0, 0.7]) == pytest.approx(weighted, abs=1e-12)


def test_outputs_that_are_not_finite_make_no_exception():
    assert math.isnan(score(THREE, [math.nan, 0.0, 0.0]))
    assert math.isnan(spread(THREE, [math.inf, 0.0, 0.0]))
    assert math.isnan(score(RATED, [math.inf, 0.0, -math.inf, 0.0]))
    assert math.isnan(attributes(RATED, [math.inf, 0.0, -math.inf, 0.0])["helpfulness"])
