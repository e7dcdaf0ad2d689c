"""Best-of-n: how good, by a gold standard, is the answer that the model picks out of n."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from align.records import Judgement, PreferenceGroup
from reward_models.evaluation_pairs import Floats, interval, resample

SHARE = "share of the other answers beaten"


def best_of_n(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Sequence[float]],
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """One curve for each unit of gold that the groups have; see ``curve`` and ``gold_of``."""
    by_unit: dict[str, list[tuple[Floats, Floats, Floats]]] = defaultdict(list)
    for group, values in zip(groups, scores, strict=True):
        unit, gold = gold_of(group)
        known = [i for i, g in enumerate(gold) if g is not None]
        if len(known) < 2:
            continue
        length = [float(len(group.candidates[i].text)) for i in known]
        entry = ([values[i] for i in known], [gold[i] for i in known], length)
        by_unit[unit].append(tuple(np.array(e, dtype=np.float64) for e in entry))  # type: ignore[arg-type]
    return [
        {"unit": unit, "groups": len(entries), "curve": curve(entries, seed, resamples)}
        for unit, entries in sorted(by_unit.items(), key=lambda item: -len(item[1]))
    ]


def gold_of(group: PreferenceGroup) -> tuple[str, list[float | None]]:
    """(unit, gold of each candidate or None): higher is better.

    ``meta["gold"]``, a list in the candidates' order, else score judgements of one source: their
    mean. Rankings, and scores of several sources, whose units differ: the mean share of the other
    answers of the same judgement that an answer beats, equal ones half. No gold: all None.
    """
    given = group.meta.get("gold")
    if isinstance(given, (list, tuple)) and len(given) == len(group.candidates):
        return "gold", [_number(value) for value in given]
    judged = [j for j in group.judgements if j.kind in ("score", "rank")]
    sources = {(j.kind, j.source) for j in judged}
    plain = len(sources) == 1 and judged[0].kind == "score"
    found: dict[str, list[float]] = defaultdict(list)
    for judgement in judged:
        for name, value in (_known(judgement) if plain else _beaten(judgement)).items():
            found[name].append(value)
    unit = f"score: {judged[0].source or 'unknown'}" if plain else SHARE
    return unit, [
        math.fsum(found[c.id]) / len(found[c.id]) if c.id in found else None
        for c in group.candidates
    ]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _known(judgement: Judgement) -> dict[str, float]:
    return {name: float(v) for name, v in judgement.value.items() if v is not None}


def _beaten(judgement: Judgement) -> dict[str, float]:
    known = _known(judgement)
    if len(known) < 2:
        return {}
    sign = 1.0 if judgement.kind == "score" else -1.0
    names, shares = list(known), beaten(sign * np.array(list(known.values())))
    return dict(zip(names, shares.tolist(), strict=True))


def beaten(values: Floats) -> Floats:
    """Share of the others that each value is above, equal ones half. (K,) → (K,), K ≥ 2."""
    above = np.sign(values[:, None] - values[None, :]).sum(axis=1)
    return (above / (len(values) - 1) + 1.0) / 2.0


def curve(
    entries: Sequence[tuple[Floats, Floats, Floats]], seed: int = 0, resamples: int = 1000
) -> list[dict[str, Any]]:
    """Exact expectations over all ways to draw n of a group's K answers without replacement.

    entries: (model score, gold, length), each (K,), a group each. A point for each n up to the
    largest K (powers of two above 32): "gold", the mean gold of the answer that the model scores
    highest, with "low" and "high" (95 %, groups resampled); "random", "longest" and "oracle", of a
    random, the longest and the best answer; "gain", (gold − random) / (oracle − random), null where
    all answers are alike; "beats", the share of the group's other answers that the pick is better
    than; "groups", those with K ≥ n, over which all means go; "kl", log n − (n − 1)/n nats, the
    usual bound for n draws from a policy (Beirami et al. 2024, arXiv:2401.01879). Equal scores are
    chosen between at random.
    """
    points = []
    for n in sizes(max(len(gold) for _, gold, _ in entries)):
        rows = []
        for score, gold, length in entries:
            if len(gold) < n:
                continue
            share = beaten(gold)
            model = pick_probabilities(score, n)
            rows.append(
                (
                    1.0,
                    model @ gold,
                    gold.mean(),
                    pick_probabilities(length, n) @ gold,
                    pick_probabilities(gold, n) @ gold,
                    model @ share,
                )
            )
        table = np.array(rows, dtype=np.float64)
        drawn = resample(table[:, :2], np.arange(len(table)), seed, resamples)
        low, high = interval(drawn[:, 1] / drawn[:, 0])
        _, picked, random, longest, oracle, beats = (float(v) for v in table.mean(axis=0))
        room = oracle - random
        points.append(
            {
                "n": n,
                "groups": len(table),
                "gold": picked,
                "low": low,
                "high": high,
                "random": random,
                "longest": longest,
                "oracle": oracle,
                "gain": (picked - random) / room if room > 1e-12 else None,
                "beats": beats,
                "kl": math.log(n) - (n - 1) / n,
            }
        )
    return points


def sizes(largest: int) -> list[int]:
    """1, 2, … 32, then powers of two, and the largest."""
    powers = [2**k for k in range(6, largest.bit_length())]
    return sorted({n for n in [*range(1, 33), *powers, largest] if n <= largest})


def pick_probabilities(score: Floats, n: int) -> Floats:
    """Probability that each of K answers has the highest score of n drawn without replacement.

    The r-th best of K is the pick when it is drawn and none of the r − 1 better ones is:
    C(K − r, n − 1) / C(K, n). Answers of equal score share the sum of their places. (K,) → (K,).
    """
    order = np.argsort(-score, kind="stable")
    place = _places(len(score), n)
    _, block = np.unique(-score[order], return_inverse=True)
    shared = np.bincount(block, weights=place) / np.bincount(block)
    probability = np.empty(len(score))
    probability[order] = shared[block]
    return probability


@functools.lru_cache(maxsize=4096)
def _places(k: int, n: int) -> Floats:
    """C(K − r, n − 1) / C(K, n) for r = 1 … K."""
    place = np.zeros(k)
    place[0] = n / k
    for r in range(2, k - n + 2):
        place[r - 1] = place[r - 2] * (k - r - n + 2) / (k - r + 1)
    return place
