"""Exposure: how much of a secret a model has kept, in bits. Numbers only, no model.

Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232). A canary is a fixed text with a secret
drawn from a space R. Among all texts with another secret of R, its rank by the model's
likelihood says how much easier it is to guess than by chance:

    exposure = log2 |R| − log2 rank

0 bits to log2 |R| bits (rank 1: the secret can be extracted). Of a model that has never seen the
secret the rank is uniform over 1 … |R|, and the expected exposure log2 |R| − (1/|R|) log2 |R|!,
which is close to log2 e = 1.44 bits: chance alone, not memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXPECTED = math.log2(math.e)
"""Exposure in bits that chance gives on average, for a large space."""
_ENOUGH = 10
"""Likelier candidates of a sample from which its share is taken as it is."""


class Exposure(NamedTuple):
    """bits: the exposure. rank: of the secret in the space (1: likeliest), may be estimated.

    method: "exact", "sampled" or "skew_normal".
    """

    bits: float
    rank: float
    method: str


def exposure(rank: float, space: int) -> float:
    """log2 |R| − log2 rank, bits. rank: 1 … space."""
    if not 1 <= rank <= space:
        raise ValueError(f"rank {rank} is not in 1 … {space}")
    return math.log2(space) - math.log2(rank)


def rank_of(score: float, others: Sequence[float] | np.ndarray) -> float:
    """1 + how many of the others are likelier, ties counting one half.

    score, others: log-likelihoods of the canary and of the texts with other secrets.
    """
    values = np.asarray(others, dtype=np.float64)
    return 1 + float((values > score).sum()) + 0.5 * float((values == score).sum())


def measure(score: float, others: Sequence[float] | np.ndarray, space: int) -> Exposure:
    """Exposure of a canary from the log-likelihoods of other members of its space.

    others: all of them (space − 1 values), which is exact; or a random sample without the canary.
    Of a sample in which at least ten are likelier, the rank is 1 + (|R| − 1) · share. With
    fewer the sample does not reach that far, and the share is the upper tail of a skew-normal
    distribution fitted to it (the paper's approximation by distribution modelling), cut off so
    that the rank is at least 1.
    """
    n = len(others)
    if n == space - 1:
        rank = rank_of(score, others)
        return Exposure(exposure(rank, space), rank, "exact")
    if not 3 <= n < space:
        raise ValueError(f"{n} candidates of a space of {space}")
    likelier = rank_of(score, others) - 1
    method = "sampled" if likelier >= _ENOUGH else "skew_normal"
    share = likelier / n if method == "sampled" else SkewNormal.fit(others).above(score)
    rank = 1 + (space - 1) * share
    return Exposure(exposure(rank, space), rank, method)


class SkewNormal(NamedTuple):
    """Density 2/ω · φ(z) · Φ(αz), z = (x − ξ)/ω (Azzalini 1985)."""

    location: float
    scale: float
    shape: float

    @classmethod
    def fit(cls, values: Sequence[float] | np.ndarray) -> SkewNormal:
        """By moments: mean, variance and skewness (cut to ±0.99, the family's limit is 0.9953).

        δ² = (π/2) |g|^(2/3) / (|g|^(2/3) + ((4 − π)/2)^(2/3)), α = δ/√(1 − δ²),
        ω² = s²/(1 − 2δ²/π), ξ = mean − ω δ √(2/π).
        """
        x = np.asarray(values, dtype=np.float64)
        mean, spread = float(x.mean()), float(x.std())
        if spread == 0:
            return cls(mean, 0.0, 0.0)
        skew = float(np.clip((((x - mean) / spread) ** 3).mean(), -0.99, 0.99))
        g = abs(skew) ** (2 / 3)
        delta = math.copysign(
            math.sqrt(math.pi / 2 * g / (g + ((4 - math.pi) / 2) ** (2 / 3))), skew
        )
        scale = spread / math.sqrt(1 - 2 * delta**2 / math.pi)
        shape = delta / math.sqrt(1 - delta**2)
        return cls(mean - scale * delta * math.sqrt(2 / math.pi), scale, shape)

    def above(self, x: float) -> float:
        """P(X > x), by Simpson's rule over forty scales."""
        if self.scale == 0:
            return 0.0 if x > self.location else 0.5 if x == self.location else 1.0
        z = (x - self.location) / self.scale
        low = max(z, -20.0)
        if low >= 20.0:
            return 0.0
        grid = np.linspace(low, 20.0, 4001)
        erf = np.array([math.erfc(-self.shape * t / math.sqrt(2)) for t in grid])  # 2 Φ(αt)
        density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * erf
        weights = np.ones(len(grid))
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        total = float((weights * density).sum() * (grid[1] - grid[0]) / 3)
        return min(1.0, max(0.0, total))


def expected_exposure(space: int) -> float:
    """Mean exposure of a uniform rank over 1 … space, bits: log2 |R| − log2(|R|!)/|R|."""
    return math.log2(space) - math.lgamma(space + 1) / math.log(2) / space
