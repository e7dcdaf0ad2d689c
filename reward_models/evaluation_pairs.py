"""The pairs of an evaluation set as arrays, their accuracy, and intervals that resample groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.records import PreferenceGroup
from reward_models.language import language
from reward_models.preferences import targets, votes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
MAX_SLICES = 20


@dataclass(frozen=True)
class Pairs:
    """All pairs of an evaluation set, one entry each.

    group: index of the group. a, b: indices of the preferred candidate and the other one.
    delta: score of a minus score of b. target: P(a beats b) ≥ 0.5. weight: > 0.
    margin, spread: NaN where unknown; spread is the standard deviation (n − 1) of delta over the
    members of an ensemble.
    longer: characters of a minus characters of b. size: their mean. votes: how many made the
    target. language: of prompt and answers. source: of the votes.
    """

    group: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    delta: Floats
    target: Floats
    weight: Floats
    margin: Floats
    spread: Floats
    longer: Floats
    size: Floats
    votes: NDArray[np.int64]
    language: NDArray[np.str_]
    source: NDArray[np.str_]

    @property
    def decided(self) -> Mask:
        """Where the votes prefer one side."""
        return self.target != 0.5


def collect(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Sequence[float]],
    *,
    heads: Sequence[Sequence[Sequence[float]]] | None = None,
    aggregate: str = "soft",
    ties: str = "half",
) -> Pairs:
    """The pairs of all groups with their score differences.

    scores: (groups, candidates). heads: (groups, candidates, members), two or more of an ensemble.
    """
    numbers: list[tuple[float, ...]] = []
    words: list[tuple[str, str]] = []
    for g, (group, values) in enumerate(zip(groups, scores, strict=True)):
        length = [len(c.text) for c in group.candidates]
        cast = votes(group, ties=ties)
        script = language("\n".join([m.content for m in group.prompt] + _texts(group)))
        for pair in targets(group, aggregate=aggregate, ties=ties, margin=True):
            a, b = pair.a, pair.b
            numbers.append(
                (
                    g,
                    a,
                    b,
                    len(cast.get((min(a, b), max(a, b)), ())),
                    values[a] - values[b],
                    pair.target,
                    pair.weight,
                    np.nan if pair.margin is None else pair.margin,
                    np.nan if heads is None else _spread(heads[g][a], heads[g][b]),
                    length[a] - length[b],
                    (length[a] + length[b]) / 2,
                )
            )
            words.append((script, _source(group, a, b)))
    table = np.array(numbers, dtype=np.float64).reshape(-1, 11)
    text = np.array(words, dtype=np.str_).reshape(-1, 2)
    whole = [table[:, i].astype(np.int64) for i in range(4)]
    real = [table[:, i] for i in range(4, 11)]
    delta, target, weight, margin, spread, longer, size = real
    return Pairs(
        whole[0], whole[1], whole[2], delta, target, weight, margin, spread, longer, size,
        whole[3], text[:, 0], text[:, 1],
    )  # fmt: skip


def _spread(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.std(np.subtract(a, b), ddof=1))


def _texts(group: PreferenceGroup) -> list[str]:
    return [c.text for c in group.candidates]


def _source(group: PreferenceGroup, a: int, b: int) -> str:
    """The sources of the judgements about a pair, else the group's, joined by +."""
    ids = {group.candidates[a].id, group.candidates[b].id}
    found = {j.source for j in group.judgements if ids <= set(j.ids)} - {""}
    return "+".join(sorted(found)) or str(group.meta.get("source") or "unknown")


def correct(delta: Floats) -> Floats:
    """1 where a scores higher, 0.5 where both score the same, 0 otherwise."""
    return (np.sign(delta) + 1.0) / 2.0


def mean(values: Floats, weight: Floats) -> float:
    """Weighted mean."""
    return float(np.sum(values * weight) / np.sum(weight))


def resample(columns: Floats, group: NDArray[Any], seed: int, resamples: int) -> Floats:
    """Sums of columns over groups drawn with replacement, (resamples, columns).

    columns: (rows, columns). group: (rows,), any labels; as many groups are drawn as there are.
    """
    _, index = np.unique(group, return_inverse=True)
    n = int(index.max()) + 1
    sums = np.stack([np.bincount(index, weights=c, minlength=n) for c in columns.T], axis=1)
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, sums.shape[1]))
    for i in range(resamples):
        drawn[i] = np.bincount(generator.integers(0, n, n), minlength=n) @ sums
    return drawn


def interval(values: Floats) -> tuple[float | None, float | None]:
    """The middle 95 % of resampled values; values that are not finite are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def bootstrap(
    values: Floats, weight: Floats, group: NDArray[Any], seed: int, resamples: int
) -> tuple[float, float]:
    """95 % percentile interval of the weighted mean, whole groups drawn with replacement."""
    drawn = resample(np.stack([values * weight, weight], axis=1), group, seed, resamples)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def slices(pairs: Pairs, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Accuracy of the decided pairs in parts, {breakdown: {part: figures}}.

    Figures: "accuracy" with "low" and "high" (95 %, groups resampled), "pairs", "groups" and
    "length_baseline", the accuracy of "the longer answer is better". Breakdowns: "length" (which
    side is longer), "answer_length" (thirds of the mean number of characters), "agreement",
    "margin" and "uncertainty" (thirds; only where known), "language", "source".
    """
    right, by_length = correct(pairs.delta), correct(pairs.longer)
    found = {}
    for name, parts in _parts(pairs).items():
        made = {}
        for label, mask in parts.items():
            at = mask & pairs.decided
            if not at.any():
                continue
            weight, group = pairs.weight[at], pairs.group[at]
            low, high = bootstrap(right[at], weight, group, seed, resamples)
            made[label] = {
                "accuracy": mean(right[at], weight),
                "low": low,
                "high": high,
                "pairs": int(at.sum()),
                "groups": len(np.unique(group)),
                "length_baseline": mean(by_length[at], weight),
            }
        if made:
            found[name] = made
    return found


def _parts(pairs: Pairs) -> dict[str, dict[str, Mask]]:
    lone = pairs.votes == 1
    parts: dict[str, dict[str, Mask]] = {
        "length": {
            "longer wins": pairs.longer > 0,
            "shorter wins": pairs.longer < 0,
            "equal": pairs.longer == 0,
        },
        "answer_length": _thirds(pairs.size, pairs.decided),
        "agreement": {
            "one vote": lone,
            "unanimous": ~lone & (pairs.target == 1.0),
            "split": ~lone & (pairs.target < 1.0),
        },
        "margin": _thirds(pairs.margin, pairs.decided),
        "uncertainty": _thirds(pairs.spread, pairs.decided),
    }
    for name, labels in (("language", pairs.language), ("source", pairs.source)):
        parts[name] = _named(labels, pairs.decided)
    return parts


def _thirds(values: Floats, decided: Mask) -> dict[str, Mask]:
    """Parts below the first, between and above the second tercile; none where nothing is known."""
    known = np.isfinite(values) & decided
    if not known.any():
        return {}
    first, second = np.quantile(values[known], [1 / 3, 2 / 3])
    if first == second:
        return {f"up to {first:.3g}": values <= first, f"over {first:.3g}": values > first}
    return {
        f"up to {first:.3g}": values <= first,
        f"up to {second:.3g}": (values > first) & (values <= second),
        f"over {second:.3g}": values > second,
    }


def _named(labels: NDArray[np.str_], decided: Mask) -> dict[str, Mask]:
    """One part a label, largest first; the rest together where there are many."""
    names, counts = np.unique(labels[decided], return_counts=True)
    order = [str(n) for n in names[np.argsort(-counts, kind="stable")]]
    shown = order if len(order) <= MAX_SLICES else order[: MAX_SLICES - 1]
    parts = {name: labels == name for name in shown}
    if len(order) > len(shown):
        parts["(others)"] = ~np.isin(labels, shown)
    return parts
