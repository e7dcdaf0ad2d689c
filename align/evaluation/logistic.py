"""Logistic regression by Newton's method, for soft targets and a handful of features."""

from __future__ import annotations

import math

import numpy as np


def fit_logistic(
    x: np.ndarray,
    t: np.ndarray,
    ridge: float | np.ndarray,
    *,
    weight: np.ndarray | None = None,
    steps: int = 50,
) -> np.ndarray:
    """Coefficients w that minimise Σᵢ weightᵢ · H(tᵢ, σ(xᵢ·w)) + ½ Σⱼ ridgeⱼ · wⱼ².

    x: (n, k) features, of about unit size. t: (n,) targets in [0, 1]. ridge: one number or (k,),
    above 0, so that there is one finite optimum also for separable data. H is the cross-entropy.
    A Newton step is cut to 2 in its largest coordinate.
    """
    weight = np.ones(len(t)) if weight is None else weight
    penalty = np.broadcast_to(np.asarray(ridge, dtype=np.float64), x.shape[1:])
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -40, 40)))
        gradient = x.T @ (weight * (p - t)) + penalty * w
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        w -= step * min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return w


def sigmoid(z: float) -> float:
    """1 / (1 + e^−z), without overflow."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
