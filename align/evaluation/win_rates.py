"""Win rates among many runs: matrix, Bradley–Terry ranks, and the rate at equal length.

All three read `Comparison`s, whoever judged them, and resample prompts: comparisons on one prompt
are not independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from align.evaluation import metrics
from align.evaluation.judges.votes import Comparison
from align.evaluation.logistic import fit_logistic

ELO = 400.0  # points for odds of 10 to 1
PRIOR = 0.5  # drawn comparisons added to each pair of runs, so that every strength is finite
LENGTH_RIDGE = 1.0


def matrix(
    comparisons: Iterable[Comparison], names: Sequence[str], *, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """{a: {b: win rate of a against b}} for every ordered pair of names that met.

    A win counts 1, a tie ½. Several comparisons on one prompt are averaged first; value, low and
    high are the mean over prompts with its 95 % bootstrap interval, wins, ties and losses count
    comparisons.
    """
    met: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for c in comparisons:
        for a, b, value in ((c.a, c.b, c.outcome), (c.b, c.a, 1 - c.outcome)):
            met[a, b][c.prompt_id].append(value)
    out: dict[str, dict[str, dict[str, float]]] = {}
    for a in names:
        for b in names:
            prompts = met.get((a, b))
            if a != b and prompts:
                out.setdefault(a, {})[b] = _rate(prompts, seed)
    return out


def _rate(prompts: dict[str, list[float]], seed: int) -> dict[str, float]:
    outcomes = [v for values in prompts.values() for v in values]
    hard = {p: [_hard(v) for v in values] for p, values in prompts.items()}
    estimate = metrics.share(np.array([sum(v) / len(v) for v in hard.values()]), seed=seed)
    return {
        **estimate.to_json(),
        "wins": sum(v > 0.5 for v in outcomes),
        "ties": sum(v == 0.5 for v in outcomes),
        "losses": sum(v < 0.5 for v in outcomes),
    }


def _hard(outcome: float) -> float:
    return 1.0 if outcome > 0.5 else 0.0 if outcome < 0.5 else 0.5


def ranking(
    comparisons: Iterable[Comparison],
    names: Sequence[str],
    *,
    anchor: str | None = None,
    prior: float = PRIOR,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Bradley–Terry strengths of runs on Elo's scale, best first: {"rows", "note"}.

    P(a beats b) = sₐ / (sₐ + s_b), fitted by evalica, a tie counting half for each side;
    elo = 1000 + 400 · log₁₀(s / s_anchor), so that the anchor (default: the first name) has 1000.
    prior: drawn comparisons added to every pair of runs that both met anybody. low, high: 95 %
    percentile bootstrap over prompts. Without the package evalica there are no rows, and the note
    says what to install.
    """
    comparisons = list(comparisons)
    seen = {n for c in comparisons for n in (c.a, c.b)}
    known = [n for n in names if n in seen]
    if len(known) < 2:
        return {"rows": [], "note": "no two runs were compared"}
    try:
        import evalica  # noqa: F401
    except ImportError:
        return {"rows": [], "note": "for Bradley–Terry ranks: pip install 'align[eval]'"}
    anchor = anchor if anchor in known else known[0]
    pairs = list(combinations(known, 2))
    counts = _by_prompt(comparisons, pairs)
    point = _elo(counts.sum(axis=0), pairs, known, anchor, prior)
    rng = np.random.default_rng(seed)
    chance = np.full(len(counts), 1 / len(counts))
    drawn = []
    for _ in range(resamples):
        weight = rng.multinomial(len(counts), chance)
        total = np.tensordot(weight, counts, axes=1)
        drawn.append(_elo(total, pairs, known, anchor, prior))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    met = {n: sum(n in (c.a, c.b) for c in comparisons) for n in known}
    rows = [
        {"name": n, "elo": point[i], "low": float(low[i]), "high": float(high[i]), "votes": met[n]}
        for i, n in enumerate(known)
    ]  # fmt: skip
    rows.sort(key=lambda r: -r["elo"])
    return {"rows": rows, "note": None}


def _by_prompt(comparisons: Sequence[Comparison], pairs: list[tuple[str, str]]) -> np.ndarray:
    """(prompts, pairs, 3): wins of the pair's first, of its second, ties."""
    prompts = {p: i for i, p in enumerate(dict.fromkeys(c.prompt_id for c in comparisons))}
    place = {pair: k for k, pair in enumerate(pairs)}
    out = np.zeros((len(prompts), len(pairs), 3))
    for c in comparisons:
        a, b, value = c.a, c.b, _hard(c.outcome)
        if (a, b) not in place:
            a, b, value = b, a, 1 - value
        if (a, b) in place:
            column = {1.0: 0, 0.0: 1, 0.5: 2}[value]
            out[prompts[c.prompt_id], place[a, b], column] += 1
    return out


def _elo(
    counts: np.ndarray, pairs: list[tuple[str, str]], names: list[str], anchor: str, prior: float
) -> list[float]:
    """Elo points in the order of the names; counts: (pairs, 3)."""
    import evalica

    outcomes = (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)
    games = [
        (a, b, outcome, float(n))
        for (a, b), row in zip(pairs, counts + np.array([0, 0, prior]), strict=True)
        for outcome, n in zip(outcomes, row, strict=True)
        if n
    ]
    xs, ys, winners, weights = (list(column) for column in zip(*games, strict=True))
    found = evalica.bradley_terry(
        xs, ys, winners, weights=weights, tolerance=1e-8, limit=10_000
    ).scores.to_dict()  # fmt: skip
    base = found[anchor]
    return [1000 + ELO * math.log10(found[n] / base) for n in names]


def length_controlled(
    outcome: Sequence[float] | np.ndarray,
    length_gap: Sequence[float] | np.ndarray,
    prompt: Sequence[Any] | None = None,
    *,
    difficulty: Sequence[float] | np.ndarray | None = None,
    ridge: float = LENGTH_RIDGE,
    resamples: int = 300,
    seed: int = 0,
) -> dict[str, float]:
    """Win rate against the baseline that is left at equal length.

    Dubois et al. 2024 (arXiv:2404.04475), eq. 2, for one run m and its baseline b:

        P(m wins) = σ(θ + φ · tanh(Δ / std(Δ)) + ψ · γ),   Δ = len(m) − len(b),

    θ = θ_m − θ_b, and the length-controlled rate is the mean over x of σ(θ + ψ · γ): the same with
    Δ = 0. outcome: (n,) in [0, 1], a tie ½. length_gap: (n,) Δ. prompt: (n,) whose resampling gives
    low and high (default: each row its own). difficulty: (n,) γ, known before, or None: from one
    run's votes it cannot be told from θ, and a γ of mean 0 moves the rate only through σ's
    curvature. φ and ψ have the penalty ½ · ridge · φ², θ none that matters: where all lengths are
    equal the rate is the raw win rate. Returns value, low, high, length_effect (φ) and raw.
    """
    y = np.array([_hard(v) for v in np.asarray(outcome, dtype=np.float64).ravel()])
    gap = np.asarray(length_gap, dtype=np.float64).ravel()
    if y.shape != gap.shape or y.size == 0:
        raise ValueError(f"need equally many outcomes and length gaps, got {y.size} and {gap.size}")
    spread = float(gap.std())
    columns = [np.ones_like(y), np.tanh(gap / spread) if spread > 1e-12 else np.zeros_like(y)]
    gamma = np.zeros_like(y) if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    columns += [gamma] if difficulty is not None else []
    x = np.stack(columns, axis=1)
    penalty = np.array([1e-6, ridge, ridge][: x.shape[1]])
    ids = range(len(y)) if prompt is None else prompt
    number = {p: i for i, p in enumerate(dict.fromkeys(ids))}
    cluster = np.array([number[p] for p in ids])

    def rate(weight: np.ndarray) -> tuple[float, float]:
        w = fit_logistic(x, y, penalty, weight=weight)
        logit = w[0] + (w[2] * gamma if len(w) > 2 else 0.0 * gamma)
        shares = 1 / (1 + np.exp(-np.clip(logit, -40, 40)))
        return float((weight * shares).sum() / weight.sum()), float(w[1])

    value, effect = rate(np.ones_like(y))
    rng = np.random.default_rng(seed)
    chance = np.full(len(number), 1 / len(number))
    drawn = [
        rate(rng.multinomial(len(number), chance)[cluster].astype(np.float64))[0]
        for _ in range(resamples)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "value": value, "low": float(low), "high": float(high), "length_effect": effect,
        "raw": float(y.mean()),
    }  # fmt: skip
