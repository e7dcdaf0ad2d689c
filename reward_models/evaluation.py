"""How good a reward model is on held-out groups: accuracy, calibration, and length alone beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.records import PreferenceGroup
from reward_models.preferences import targets

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """All pairs of an evaluation set, one entry each.

    group: index of the group. delta: score of a minus score of b. target: P(a beats b) ≥ 0.5.
    margin: NaN where unknown. longer: characters of a minus characters of b.
    """

    group: NDArray[np.int64]
    delta: Floats
    target: Floats
    weight: Floats
    margin: Floats
    longer: Floats


def evaluate_groups(
    scorer: Any,
    groups: Sequence[PreferenceGroup],
    *,
    aggregate: str = "soft",
    ties: str = "half",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Scores every candidate and evaluates; see ``evaluate_scores``."""
    prompts = [g.prompt for g in groups for _ in g.candidates]
    flat = scorer.score(prompts, [c.content for g in groups for c in g.candidates])
    scores, start = [], 0
    for group in groups:
        scores.append(flat[start : start + len(group.candidates)])
        start += len(group.candidates)
    return evaluate_scores(
        groups, scores, aggregate=aggregate, ties=ties, seed=seed, resamples=resamples
    )


def evaluate_scores(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Sequence[float]],
    *,
    aggregate: str = "soft",
    ties: str = "half",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Figures of given scores, (groups, candidates).

    eval_accuracy: weighted share of decided pairs (target ≠ 0.5) whose order is right, equal scores
    count half; with a 95 % bootstrap interval over groups. eval_loss: soft Bradley–Terry, nats a
    pair. eval_ece: expected calibration error of σ(Δ), 10 bins. eval_temperature: T that minimises
    the loss of σ(Δ/T). eval_length_baseline: accuracy of "the longer answer is better".
    by: accuracy in slices, {name: {slice: {"accuracy", "pairs"}}}.
    Raises ValueError for scores that are not finite.
    """
    if not all(math.isfinite(score) for row in scores for score in row):
        raise ValueError("the model gives scores that are not finite")
    pairs = collect(groups, scores, aggregate=aggregate, ties=ties)
    decided = pairs.target != 0.5
    result: dict[str, Any] = {
        "eval_groups": len(set(pairs.group.tolist())),
        "eval_pairs": int(decided.sum()),
        "eval_ties": int((~decided).sum()),
    }
    if not decided.any():
        return {**result, "eval_accuracy": None}
    right = correct(pairs.delta)
    low, high = bootstrap(
        right[decided], pairs.weight[decided], pairs.group[decided], seed, resamples
    )
    temperature = fit_temperature(pairs.delta, pairs.target, pairs.weight)
    return {
        **result,
        "eval_accuracy": mean(right[decided], pairs.weight[decided]),
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_loss": loss(pairs.delta, pairs.target, pairs.weight),
        "eval_margin": mean(pairs.delta[decided], pairs.weight[decided]),
        "eval_ece": ece(pairs.delta, pairs.target, pairs.weight),
        "eval_temperature": temperature,
        "eval_ece_calibrated": ece(pairs.delta / temperature, pairs.target, pairs.weight),
        "eval_length_baseline": mean(correct(pairs.longer)[decided], pairs.weight[decided]),
        "by": _slices(pairs, right, decided),
    }


def collect(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Sequence[float]],
    *,
    aggregate: str = "soft",
    ties: str = "half",
) -> Pairs:
    """The pairs of all groups with their score differences."""
    rows = []
    for g, (group, values) in enumerate(zip(groups, scores, strict=True)):
        length = [len(c.text) for c in group.candidates]
        for pair in targets(group, aggregate=aggregate, ties=ties, margin=True):
            margin = float("nan") if pair.margin is None else pair.margin
            rows.append(
                (
                    g,
                    values[pair.a] - values[pair.b],
                    pair.target,
                    pair.weight,
                    margin,
                    length[pair.a] - length[pair.b],
                )
            )
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Pairs(table[:, 0].astype(np.int64), *(table[:, i] for i in range(1, 6)))


def correct(delta: Floats) -> Floats:
    """1 where a scores higher, 0.5 where both score the same, 0 otherwise."""
    return (np.sign(delta) + 1.0) / 2.0


def mean(values: Floats, weight: Floats) -> float:
    """Weighted mean."""
    return float(np.sum(values * weight) / np.sum(weight))


def bootstrap(
    values: Floats, weight: Floats, group: NDArray[np.int64], seed: int, resamples: int
) -> tuple[float, float]:
    """95 % percentile interval of the weighted mean, whole groups drawn with replacement."""
    _, index = np.unique(group, return_inverse=True)
    n = int(index.max()) + 1
    total = np.bincount(index, weights=values * weight, minlength=n)
    weights = np.bincount(index, weights=weight, minlength=n)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, n, n)
        means[i] = total[drawn].sum() / weights[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def loss(delta: Floats, target: Floats, weight: Floats) -> float:
    """Weighted mean of −p·log σ(Δ) − (1−p)·log σ(−Δ)."""
    each = target * np.logaddexp(0.0, -delta) + (1.0 - target) * np.logaddexp(0.0, delta)
    return mean(each, weight)


def ece(delta: Floats, target: Floats, weight: Floats, bins: int = 10) -> float:
    """Expected calibration error of the winner's probability σ(|Δ|) over equal bins of [0.5, 1].

    Σ (bin weight / total) · |mean confidence − mean outcome| (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence = 1.0 / (1.0 + np.exp(-np.minimum(np.abs(delta), 500.0)))
    outcome = np.where(delta >= 0.0, target, 1.0 - target)
    outcome = np.where(delta == 0.0, 0.5, outcome)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=(confidence - outcome) * weight, minlength=bins)
    return float(np.abs(gap).sum() / weight.sum())


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


def _slices(pairs: Pairs, right: Floats, decided: NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracy by length of the winner, agreement of the votes and size of the margin."""
    slices = {
        "length": {
            "longer wins": pairs.longer > 0,
            "shorter wins": pairs.longer < 0,
            "equal": pairs.longer == 0,
        },
        "agreement": {"unanimous": pairs.target == 1.0, "split": pairs.target < 1.0},
    }
    known = np.isfinite(pairs.margin) & decided
    if known.any():
        first, second = np.quantile(pairs.margin[known], [1 / 3, 2 / 3])
        slices["margin"] = {
            f"up to {first:.3g}": pairs.margin <= first,
            f"up to {second:.3g}": (pairs.margin > first) & (pairs.margin <= second),
            f"over {second:.3g}": pairs.margin > second,
        }
    return {
        name: {
            label: {
                "accuracy": mean(right[m & decided], pairs.weight[m & decided]),
                "pairs": int((m & decided).sum()),
            }
            for label, m in parts.items()
            if (m & decided).any()
        }
        for name, parts in slices.items()
    }
