"""Splits that depend on nothing but a key, so every stage holds out the same prompts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


def assign(key: str, fractions: Mapping[str, float], seed: int = 0) -> str:
    """The split of one key: its hash is a point in [0, 1) and the fractions cut that line.

    Neither other keys nor their order matter. The first split ends at the same point when later
    fractions change. Raises ValueError unless the fractions are ≥ 0 and add up to 1.
    """
    if not fractions or min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1):
        raise ValueError(f"fractions must be ≥ 0 and add up to 1, got {dict(fractions)}")
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode("utf-8", "surrogatepass")).digest()
    point = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: never rounds to 1
    end = 0.0
    for name, fraction in fractions.items():
        end += fraction
        if point < end:
            return name
    # The sum of the fractions may fall short of 1 by rounding.
    return next(name for name, fraction in reversed(list(fractions.items())) if fraction > 0)


def split_by_key(
    keys: Iterable[str], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[int]]:
    """Indices of ``keys`` in each split, in order; equal keys are always in the same split."""
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for i, key in enumerate(keys):
        parts[assign(key, fractions, seed)].append(i)
    return parts
