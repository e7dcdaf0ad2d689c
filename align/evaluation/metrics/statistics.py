"""Means with intervals, win rates and paired differences; no model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reward_models.evaluation_calibration import wilson


@dataclass(frozen=True)
class Estimate:
    """A mean with its percentile-bootstrap confidence interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain dict for summary.json."""
        return asdict(self)


def bootstrap(
    rows: Sequence[Sequence[float]] | np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap over clusters.

    rows: one cluster a row (a prompt), its members in the columns (the seeds), any equal width;
    a flat sequence is one member a cluster. Clusters are drawn, never single members, because
    samples of one prompt are not independent. statistic takes a (clusters, members) array; default:
    the mean.
    Returns the statistic on all rows with the central `level` interval of the resamples.
    """
    data = np.asarray(rows, dtype=np.float64)
    if data.ndim == 1:
        data = data[:, None]
    if data.size == 0:
        raise ValueError("bootstrap needs at least one value")
    statistic = statistic or (lambda a: float(a.mean()))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(data), size=(resamples, len(data)))
    values = np.array([statistic(data[d]) for d in draws])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Estimate(float(statistic(data)), float(low), float(high))


def share(rows: Sequence[Sequence[float]] | np.ndarray, **options: Any) -> Estimate:
    """Mean of outcomes in [0, 1] with a bootstrap interval, also where all outcomes are alike.

    rows, options: as of `bootstrap`. No resample varies outcomes that are all 0 or all 1, and an
    interval of no width would claim to be sure: there it is Wilson's, over the clusters, at 95 %.
    """
    data = np.asarray(rows, dtype=np.float64)
    if data.size and data.min() == data.max() and data.min() in (0.0, 1.0):
        value = float(data.min())
        return Estimate(value, *wilson(value, len(data)))
    return bootstrap(data, **options)


@dataclass(frozen=True)
class WinRate:
    """Share of pairs won, a tie counting one half, with its interval and the raw counts."""

    rate: Estimate
    wins: int
    ties: int
    losses: int

    def to_json(self) -> dict[str, float]:
        """Plain dict for summary.json."""
        counts = {"wins": self.wins, "ties": self.ties, "losses": self.losses}
        return {**self.rate.to_json(), **counts}


def win_rate(outcomes: Sequence[Sequence[float]] | np.ndarray, *, seed: int = 0, **kw) -> WinRate:
    """Win rate from outcomes: above 0.5 a win, 0.5 a tie, below a loss.

    outcomes: (prompts, seeds) or (prompts,) floats in [0, 1], P(ours wins). The rate is the mean
    of {1, ½, 0}; the interval resamples prompts (`share`).
    """
    data = np.asarray(outcomes, dtype=np.float64)
    if np.any((data < 0) | (data > 1)):
        raise ValueError("outcomes must lie in [0, 1]")
    hard = np.where(data > 0.5, 1.0, np.where(data < 0.5, 0.0, 0.5))
    return WinRate(
        share(hard, seed=seed, **kw),
        wins=int((hard == 1).sum()),
        ties=int((hard == 0.5).sum()),
        losses=int((hard == 0).sum()),
    )


def outcomes_from_scores(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, tie: float = 0.0
) -> np.ndarray:
    """1 where ours scores higher by more than `tie`, 0 where lower, 0.5 in between."""
    gap = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return np.where(gap > tie, 1.0, np.where(gap < -tie, 0.0, 0.5))


@dataclass(frozen=True)
class LengthControlled:
    """Reward gain at equal length, and what one more length unit is worth."""

    gain: float
    slope: float
    raw_gain: float

    def to_json(self) -> dict[str, float]:
        """Plain dict for summary.json."""
        return asdict(self)


def length_controlled(
    reward_gap: Sequence[float] | np.ndarray, length_gap: Sequence[float] | np.ndarray
) -> LengthControlled:
    """Reward gain that is left when the length difference is regressed out.

    Least squares over paired samples (same prompt, same seed) of

        reward_i − reward_i^sft = gain + slope · (length_i − length_i^sft) + error,

    so `gain` is the expected reward difference between answers of equal length. If all length
    differences are equal the slope is not identified: it is 0 and the gain is the raw mean.
    Needs few outliers and an effect linear in length; AlpacaEval's logistic form (Dubois et al.
    2024, arXiv:2404.04475) is its counterpart for votes.
    """
    d = np.asarray(reward_gap, dtype=np.float64).ravel()
    x = np.asarray(length_gap, dtype=np.float64).ravel()
    if d.shape != x.shape or d.size == 0:
        raise ValueError(f"need equally many reward and length gaps, got {d.size} and {x.size}")
    raw = float(d.mean())
    spread = float(((x - x.mean()) ** 2).sum())
    if spread <= 1e-12 * max(1.0, float((x**2).sum())):
        return LengthControlled(raw, 0.0, raw)
    slope = float(((x - x.mean()) * (d - raw)).sum()) / spread
    return LengthControlled(raw - slope * float(x.mean()), slope, raw)


def direction_agreement(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Share of pairs whose two differences have the same sign; pairs with a zero are left out.

    a, b: paired differences by two judges. 0.5 when no pair can be judged.
    """
    x, y = np.sign(np.asarray(a, dtype=np.float64)), np.sign(np.asarray(b, dtype=np.float64))
    known = (x != 0) & (y != 0)
    return float((x[known] == y[known]).mean()) if known.any() else 0.5
