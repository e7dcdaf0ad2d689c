"""How much of a reward model's preference is length."""

from __future__ import annotations

from typing import Any

import numpy as np

from reward_models.evaluation_pairs import Floats, Pairs, correct, interval, mean, resample

PER = 100.0
MAX_POINTS = 400


def length_bias(pairs: Pairs, seed: int = 0, resamples: int = 1000) -> dict[str, Any] | None:
    """What scores owe to length; None where no two compared answers differ in length.

    With L the difference of two answers in characters, Δ that of their scores and v = 2t − 1 that
    of their votes, weighted, over all pairs and through the origin, because a pair has no order:

    slope: β of Δ = β·L, score units per 100 characters. slope_given_votes: β of Δ = β·L + γ·v:
    what length adds where the votes are alike; null where L and v cannot be told apart.
    correlation: Σ L·Δ / √(Σ L² · Σ Δ²). model_prefers_longer, votes_prefer_longer: share of the
    pairs of unequal length. gain_over_length: accuracy minus that of length alone, which calls the
    longer answer better, or the shorter one where that is right more often.
    Each is {"value", "low", "high"}: 95 %, groups resampled. points: [L, Δ] of up to 400 pairs, of
    the preferred answer minus the other one.
    """
    unequal = pairs.longer != 0
    if not unequal.any():
        return None
    drawn = _statistics(resample(_columns(pairs), pairs.group, seed, resamples))
    value = _statistics(_columns(pairs).sum(axis=0, keepdims=True))
    found: dict[str, Any] = {"unit": f"score per {PER:.0f} characters"}
    for name, at in value.items():
        known = np.isfinite(at[0])
        low, high = interval(drawn[name]) if known else (None, None)
        found[name] = {"value": float(at[0]) if known else None, "low": low, "high": high}
    return {**found, "points": _points(pairs, seed)}


def _columns(pairs: Pairs) -> Floats:
    """Sums that all statistics are made of, (pairs, columns)."""
    w, d = pairs.weight, pairs.delta
    x, v = pairs.longer / PER, 2.0 * pairs.target - 1.0
    unequal, decided = pairs.longer != 0, pairs.decided
    longer = np.where(pairs.longer > 0, 1.0, -1.0)
    columns = (
        w * x * d,
        w * x * x,
        w * d * d,
        w * x * v,
        w * v * v,
        w * v * d,
        w * unequal,
        w * unequal * correct(longer * d),
        w * unequal * (1.0 + longer * v) / 2.0,
        w * decided,
        w * decided * correct(d),
        w * decided * correct(pairs.longer),
    )
    return np.stack(columns, axis=1)


def _statistics(sums: Floats) -> dict[str, Floats]:
    """The statistics of rows of sums; NaN where one has no value."""
    xd, xx, dd, xv, vv, vd, unequal, model, voted, decided, right, longer = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = xx * vv - xv * xv
        apart = determinant > 1e-9 * xx * vv
        partial = np.where(apart, (xd * vv - xv * vd) / determinant, np.nan)
        return {
            "slope": xd / xx,
            "slope_given_votes": partial,
            "correlation": np.where(dd > 0, xd / np.sqrt(xx * dd), np.nan),
            "model_prefers_longer": model / unequal,
            "votes_prefer_longer": voted / unequal,
            "gain_over_length": (right - np.maximum(longer, decided - longer)) / decided,
        }


def _points(pairs: Pairs, seed: int) -> list[list[float]]:
    n = len(pairs.delta)
    order = np.arange(n)
    if n > MAX_POINTS:
        order = np.sort(np.random.default_rng(seed).choice(n, MAX_POINTS, replace=False))
    return [[float(pairs.longer[i]), float(pairs.delta[i])] for i in order]


def length_baseline(pairs: Pairs) -> float:
    """Accuracy of "the longer answer is better" on decided pairs, equal lengths half."""
    at = pairs.decided
    return mean(correct(pairs.longer)[at], pairs.weight[at])
