"""Figures of probabilities and of repeated tries: calibration, pass@k, worst cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WORST = (1, 5, 10)
"""Percentiles that stand for the worst cases of a score."""


def brier(probabilities: Sequence[float], labels: Sequence[float]) -> float:
    """Mean squared distance of probabilities to what happened (0 or 1), in [0, 1]. Brier 1950."""
    p, y = _both(probabilities, labels)
    return float(((p - y) ** 2).mean())


def expected_calibration_error(
    probabilities: Sequence[float], labels: Sequence[float], bins: int = 10
) -> float:
    """Σ_b n_b/n · |observed rate − mean probability| over equal-width bins, in [0, 1].

    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    from align.evaluation.judges import expected_calibration_error as ece

    return ece(*_both(probabilities, labels), bins=bins)


def _both(probabilities: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    if p.shape != y.shape or not p.size:
        raise ValueError(f"need equally many probabilities and labels, got {p.size} and {y.size}")
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(y, (0, 1)).all():
        raise ValueError("probabilities must lie in [0, 1] and labels be 0 or 1")
    return p, y


def pass_at_k(n: int, correct: int, k: int) -> float:
    """P(at least one of k samples is right), estimated without bias from n, of which c are right.

        1 − C(n − c, k) / C(n, k)

    Chen et al. 2021 (arXiv:2107.03374), eq. 1. Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass@{k} needs 1 ≤ k ≤ n and 0 ≤ c ≤ n, got n={n}, c={correct}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def tries(n: int) -> list[int]:
    """The k of pass@k that are reported for n samples: powers of two, and n."""
    return sorted({1 << i for i in range(n.bit_length()) if 1 << i <= n} | {n})


def worst_cases(scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """{"p1", "p5", "p10", "min"}: percentiles of scores, linear between neighbours."""
    values = np.asarray(scores, np.float64).ravel()
    found = {f"p{q}": float(np.percentile(values, q)) for q in WORST}
    return {**found, "min": float(values.min())}
