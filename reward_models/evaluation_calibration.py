"""Whether a score difference means the probability that it claims: loss, bins, temperature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reward_models.evaluation_pairs import Floats, mean

BINS = 10


def loss(delta: Floats, target: Floats, weight: Floats) -> float:
    """Weighted mean of −p·log σ(Δ) − (1−p)·log σ(−Δ)."""
    each = target * np.logaddexp(0.0, -delta) + (1.0 - target) * np.logaddexp(0.0, delta)
    return mean(each, weight)


def ece(delta: Floats, target: Floats, weight: Floats, bins: int = BINS) -> float:
    """Expected calibration error of the winner's probability σ(|Δ|) over equal bins of [0.5, 1].

    Σ (bin weight / total) · |mean confidence − mean outcome| (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence, outcome, place = _binned(delta, target, bins)
    gap = np.bincount(place, weights=(confidence - outcome) * weight, minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


def reliability(
    delta: Floats, target: Floats, weight: Floats, bins: int = BINS
) -> list[dict[str, Any]]:
    """The bins of ``ece`` that hold pairs, for a reliability plot.

    Each: "from" and "to" (the bin's edges), "confidence" and "outcome" (weighted means), "share" of
    all weight, "pairs", and "low" and "high", the outcome's 95 % Wilson interval as a proportion.
    """
    confidence, outcome, place = _binned(delta, target, bins)
    found = []
    for k in range(bins):
        at = place == k
        if not at.any():
            continue
        observed, n = mean(outcome[at], weight[at]), int(at.sum())
        low, high = wilson(observed, n)
        found.append(
            {
                "from": 0.5 + k / (2 * bins),
                "to": 0.5 + (k + 1) / (2 * bins),
                "confidence": mean(confidence[at], weight[at]),
                "outcome": observed,
                "low": low,
                "high": high,
                "share": float(weight[at].sum() / weight.sum()),
                "pairs": n,
            }
        )
    return found


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a proportion p of n (Wilson 1927). z: normal quantile, by default of 95 %."""
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _binned(delta: Floats, target: Floats, bins: int) -> tuple[Floats, Floats, Any]:
    """(σ(|Δ|), probability that the side with the higher score wins, index of the bin)."""
    confidence = 1.0 / (1.0 + np.exp(-np.minimum(np.abs(delta), 500.0)))
    outcome = np.where(delta >= 0.0, target, 1.0 - target)
    outcome = np.where(delta == 0.0, 0.5, outcome)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return confidence, outcome, place


def fit_temperature(delta: Floats, target: Floats, weight: Floats) -> float:
    """T in [0.001, 1000] that minimises the loss of σ(Δ/T).

    The loss is convex in 1/T, so a search over log T that keeps the better part finds the minimum.
    An order without any mistake drives T to the lower end. 1 where all scores are equal.
    """
    if not delta.any():
        return 1.0
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(100):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if loss(delta / np.exp(a), target, weight) <= loss(delta / np.exp(b), target, weight):
            high = b
        else:
            low = a
    return float(np.exp((low + high) / 2))
