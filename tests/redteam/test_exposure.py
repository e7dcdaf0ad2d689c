"""Exposure: hand-worked ranks, what chance gives, and the approximation against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import skewnorm

from align.redteam.exposure import (
    EXPECTED,
    SkewNormal,
    expected_exposure,
    exposure,
    measure,
    rank_of,
)


@pytest.mark.parametrize(
    ("rank", "space", "bits"),
    [(1, 1024, 10.0), (1024, 1024, 0.0), (4, 1024, 8.0), (2, 10**6, 18.9316)],
)  # fmt: skip
def test_ranks_by_hand(rank, space, bits):
    assert exposure(rank, space) == pytest.approx(bits, abs=1e-4)


def test_a_rank_outside_the_space():
    for rank in (0.5, 11):
        with pytest.raises(ValueError, match=r"is not in 1 … 10"):
            exposure(rank, 10)


def test_ties_count_one_half():
    assert rank_of(-3.0, [-1.0, -2.0, -3.0, -3.0, -9.0]) == 4.0
    flat = measure(-1.0, [-1.0] * 7, 8)  # all alike: the middle rank, 4.5
    assert (flat.rank, flat.method) == (4.5, "exact")
    assert flat.bits == pytest.approx(math.log2(8 / 4.5))


def test_a_whole_space_is_exact():
    found = measure(0.0, [-1.0, 2.0, -3.0], 4)
    assert (found.rank, found.bits, found.method) == (2.0, 1.0, "exact")
    assert measure(9.0, [-1.0, 2.0, -3.0], 4).bits == 2.0


def test_what_chance_gives():
    """Mean of log2 N − log2 r over r = 1 … N; 1.4427 bits in the limit."""
    assert expected_exposure(4) == pytest.approx((2 + 1 + (2 - math.log2(3)) + 0) / 4)
    every = np.mean([exposure(r, 1000) for r in range(1, 1001)])
    assert expected_exposure(1000) == pytest.approx(every)
    assert abs(expected_exposure(10**6) - EXPECTED) < 1e-4
    assert pytest.approx(1.442695, abs=1e-6) == EXPECTED


@pytest.mark.parametrize("shape", [-6.0, 0.0, 0.7, 4.0])
def test_the_tail_of_a_skew_normal_is_scipys(shape):
    ours = SkewNormal(-3.0, 2.0, shape)
    for x in (-30.0, -6.0, -3.0, -1.0, 2.0, 5.0):
        assert ours.above(x) == pytest.approx(skewnorm.sf(x, shape, -3.0, 2.0), rel=1e-6, abs=1e-12)
    assert SkewNormal(0.0, 0.0, 0.0).above(1.0) == 0.0
    assert SkewNormal(0.0, 0.0, 0.0).above(-1.0) == 1.0


def test_fitting_finds_the_moments():
    drawn = skewnorm.rvs(3.0, loc=1.0, scale=2.0, size=50_000, random_state=0)
    fitted = SkewNormal.fit(drawn)
    mean, var, skew = skewnorm.stats(fitted.shape, fitted.location, fitted.scale, moments="mvs")
    assert mean == pytest.approx(drawn.mean(), rel=1e-6)
    assert var == pytest.approx(drawn.var(), rel=1e-6)
    assert fitted.shape == pytest.approx(3.0, rel=0.15)
    assert skew == pytest.approx(skewnorm.stats(3.0, moments="s"), abs=0.05)


def test_a_sample_says_what_the_whole_space_would():
    """A million normal likelihoods of which 2,000 are seen; bits are −log2 of the normal tail.

    The tails at 0.5, 2.5, 3.5 and 4.5 standard deviations are 0.30854, 6.2097e-3, 2.3263e-4 and
    3.3977e-6: 1.696, 7.331, 12.070 and 18.167 bits.
    """
    seen = np.random.default_rng(0).normal(-30.0, 4.0, 2_000)
    for z, bits, method, within in (
        (0.5, 1.696, "sampled", 0.15), (2.5, 7.331, "skew_normal", 0.7),
        (3.5, 12.070, "skew_normal", 1.0), (4.5, 18.167, "skew_normal", 2.0),
    ):  # fmt: skip
        found = measure(-30.0 + 4.0 * z, seen, 10**6)
        assert found.method == method
        assert found.bits == pytest.approx(bits, abs=within)


def test_beyond_any_candidate_the_rank_is_one():
    found = measure(500.0, np.random.default_rng(0).normal(size=200), 10**6)
    assert found.rank == pytest.approx(1.0)
    assert found.bits == pytest.approx(math.log2(10**6))
    with pytest.raises(ValueError, match="2 candidates"):
        measure(0.0, [1.0, 2.0], 1000)
