"""How far two reward models agree, and where they disagree most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from align.records import PreferenceGroup
from reward_models.evaluation import excerpt
from reward_models.evaluation_pairs import Floats, collect, correct, interval, resample

MAX_ROWS = 20
Scores = Sequence[Sequence[float]]


def compare_scores(
    groups: Sequence[PreferenceGroup],
    a: Scores,
    b: Scores,
    *,
    aggregate: str = "soft",
    ties: str = "half",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Agreement of the scores a and b, (groups, candidates), on all pairs of a group's candidates.

    Every group counts once. pair_agreement: share of pairs in the same order; equal scores of one
    model alone count half. kappa: Cohen's, of "first higher", "second higher" and "equal", each
    pair taken both ways round, so that the candidates' order does not matter; without equal scores
    it is 2 · pair_agreement − 1. spearman, kendall: mean over groups of three or more candidates of
    ρ and τ-b; groups where a model scores all alike are left out. longer: share of pairs of unequal
    length where a model scores the longer answer higher. On pairs that the votes decide: accuracy
    of each, their difference (b − a), and error_consistency, κ of being right (Geirhos et al. 2020,
    arXiv:2006.16736): 0 where errors coincide as often as independent ones.
    disagreements: the pairs ordered oppositely by both most surely, at most 20.
    Each figure is {"value", "low", "high"}: 95 %, groups resampled.
    Raises ValueError for scores that are not finite.
    """
    if not all(math.isfinite(s) for rows in (a, b) for row in rows for s in row):
        raise ValueError("a model gives scores that are not finite")
    where, table = _table(groups, a, b)
    run = (seed, resamples)
    result: dict[str, Any] = {"groups": len(groups), "pairs": len(table)}
    result |= _figures(_columns(table), table[:, 0], _agreement, *run)
    result |= _rank_agreement(a, b, *run)
    voted = _voted(groups, a, b, aggregate, ties, *run)
    return {**result, "votes": voted, "disagreements": _rows(groups, a, b, where, table)}


def _table(
    groups: Sequence[PreferenceGroup], a: Scores, b: Scores
) -> tuple[list[tuple[int, int]], Floats]:
    """(candidates of each pair, (pairs, 5): group, weight, Δ of a, Δ of b, length difference)."""
    where, rows = [], []
    for g, group in enumerate(groups):
        length = [len(c.text) for c in group.candidates]
        pairs = list(combinations(range(len(length)), 2))
        for i, j in pairs:
            where.append((i, j))
            longer = length[i] - length[j]
            rows.append((g, 1.0 / len(pairs), a[g][i] - a[g][j], b[g][i] - b[g][j], longer))
    return where, np.array(rows, dtype=np.float64).reshape(-1, 5)


def _columns(table: Floats) -> Floats:
    """Sums that ``_agreement`` is made of, (pairs, columns)."""
    _, w, da, db, longer = table.T
    first, second, unequal = np.sign(da), np.sign(db), longer != 0
    half = (first == 0) != (second == 0)
    return np.stack(
        [
            w,
            w * ((first == second) + 0.5 * half),
            w * (first == second),
            w * (first == 0),
            w * (second == 0),
            w * unequal,
            w * unequal * correct(np.sign(longer) * da),
            w * unequal * correct(np.sign(longer) * db),
        ],
        axis=1,
    )


def _agreement(sums: Floats) -> dict[str, Floats]:
    total, agreed, same, *shares = sums.T
    equal_a, equal_b = shares[0] / total, shares[1] / total
    chance = (1 - equal_a) * (1 - equal_b) / 2 + equal_a * equal_b
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "pair_agreement": agreed / total,
            "kappa": (same / total - chance) / (1 - chance),
            "longer_a": shares[3] / shares[2],
            "longer_b": shares[4] / shares[2],
        }


def _figures(columns: Floats, group: Floats, statistics: Any, seed: int, n: int) -> dict[str, Any]:
    value = statistics(columns.sum(axis=0, keepdims=True))
    drawn = statistics(resample(columns, group, seed, n))
    return {name: _figure(float(at[0]), drawn[name]) for name, at in value.items()}


def _figure(value: float, drawn: Floats) -> dict[str, float | None]:
    if not math.isfinite(value):
        return {"value": None, "low": None, "high": None}
    low, high = interval(drawn)
    return {"value": value, "low": low, "high": high}


def _rank_agreement(a: Scores, b: Scores, seed: int, resamples: int) -> dict[str, Any]:
    pairs = [(np.array(x), np.array(y)) for x, y in zip(a, b, strict=True) if len(x) > 2]
    known = [(x, y) for x, y in pairs if x.std() > 0 and y.std() > 0]
    left_out = len(pairs) - len(known)
    if not known:
        nothing = {"value": None, "low": None, "high": None, "groups": 0, "left_out": left_out}
        return {"spearman": nothing, "kendall": dict(nothing)}
    table = np.array([(1.0, spearman(x, y), kendall(x, y)) for x, y in known])
    drawn = resample(table, np.arange(len(table)), seed, resamples)
    return {
        name: {
            **_figure(float(table[:, i].mean()), drawn[:, i] / drawn[:, 0]),
            "groups": len(known),
            "left_out": left_out,
        }
        for i, name in enumerate(("spearman", "kendall"), 1)
    }


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's ρ: the correlation of ranks, equal values sharing their mean rank. (K,), (K,)."""
    ranks = [np.sign(v[:, None] - v[None, :]).sum(axis=1) for v in (x, y)]
    return float(ranks[0] @ ranks[1] / math.sqrt(ranks[0] @ ranks[0] * (ranks[1] @ ranks[1])))


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's τ-b: concordant less discordant pairs, corrected for equal values. (K,), (K,)."""
    signs = [np.sign(v[:, None] - v[None, :]).ravel() for v in (x, y)]
    return float(signs[0] @ signs[1] / math.sqrt(signs[0] @ signs[0] * (signs[1] @ signs[1])))


def _voted(
    groups: Sequence[PreferenceGroup],
    a: Scores,
    b: Scores,
    aggregate: str,
    ties: str,
    seed: int,
    resamples: int,
) -> dict[str, Any] | None:
    """Figures on the pairs that the votes decide; None without any."""
    pairs = [collect(groups, s, aggregate=aggregate, ties=ties) for s in (a, b)]
    at = pairs[0].decided
    if not at.any():
        return None
    w, group = pairs[0].weight[at], pairs[0].group[at]
    x, y = (correct(p.delta)[at] for p in pairs)
    columns = np.stack([w, w * x, w * y, w * (x * y + (1 - x) * (1 - y))], axis=1)
    found = _figures(columns, group.astype(np.float64), _correctness, seed, resamples)
    return {"pairs": int(at.sum()), **found}


def _correctness(sums: Floats) -> dict[str, Floats]:
    total, x, y, both = sums.T
    x, y = x / total, y / total
    chance = x * y + (1 - x) * (1 - y)
    with np.errstate(divide="ignore", invalid="ignore"):
        consistency = (both / total - chance) / (1 - chance)
    return {
        "accuracy_a": x,
        "accuracy_b": y,
        "difference": y - x,
        "error_consistency": consistency,
    }


def _rows(
    groups: Sequence[PreferenceGroup],
    a: Scores,
    b: Scores,
    where: Sequence[tuple[int, int]],
    table: Floats,
) -> list[dict[str, Any]]:
    """Pairs in opposite order, those first where the less sure model is surest.

    How sure: Δ in units of the model's root mean square Δ, because models differ in scale.
    """
    deltas = table[:, 2:4]
    scale = np.sqrt((deltas**2).mean(axis=0)) if len(table) else np.ones(2)
    sure = np.abs(deltas / np.where(scale > 0, scale, 1.0)).min(axis=1)
    opposite = np.flatnonzero(deltas[:, 0] * deltas[:, 1] < 0)
    worst = opposite[np.argsort(-sure[opposite], kind="stable")][:MAX_ROWS]
    found = []
    for n in worst.tolist():
        g, (i, j) = int(table[n, 0]), where[n]
        if deltas[n, 0] < 0:
            i, j = j, i
        found.append(
            {
                **excerpt(groups[g], i, j, ("a_prefers", "b_prefers")),
                "scores_a": [a[g][i], a[g][j]],
                "scores_b": [b[g][i], b[g][j]],
                "surety": float(sure[n]),
            }
        )
    return found
