"""What the votes of a panel say about it: agreement, circles, and which models win.

Only counts are kept, so that an import of any length needs little memory.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reward_models.preferences import Vote

REPLICATES = 1000
MAX_MODEL_PAIRS = 20_000
SHARE_BINS = ("50 %", "50–60 %", "60–70 %", "70–80 %", "80–90 %", "90–99 %", "100 %")

# Pairable values, observed disagreement, values that are ties.
Sums = tuple[float, float, float]
Found = Mapping[tuple[int, int], Sequence[Vote]]


def nominal_alpha(units: Mapping[tuple[int, ...], int]) -> float | None:
    """Krippendorff's alpha for nominal values, α = 1 − D_o/D_e; None without any disagreement.

    units: how often each tuple of counts occurs, one count a value; units of one value are left
    out. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): with n_uc values c in
    unit u, m_u = Σ_c n_uc, n = Σ m_u and n_c = Σ_u n_uc,

        D_o = Σ_u Σ_c n_uc (m_u − n_uc) / (m_u − 1) / n,  D_e = Σ_c n_c (n − n_c) / (n (n − 1)).
    """
    kept = {counts: times for counts, times in units.items() if sum(counts) > 1}
    apart = sum(times * disagreement(counts) for counts, times in kept.items())
    totals = [0.0] * max((len(counts) for counts in kept), default=0)
    for counts, times in kept.items():
        for c, count in enumerate(counts):
            totals[c] += times * count
    return _alpha(apart, totals)


def add_up(counts: list[Any], more: Sequence[Any]) -> None:
    """Adds numbers to those of the same place."""
    for k, n in enumerate(more):
        counts[k] += n


def disagreement(counts: Sequence[int]) -> float:
    """Σ_c n_c (m − n_c) / (m − 1): how much the values of one unit disagree."""
    m = sum(counts)
    return (m * m - sum(c * c for c in counts)) / (m - 1)


def _alpha(apart: Any, totals: Sequence[Any]) -> Any:
    n = sum(totals)
    expected = n * n - sum(t * t for t in totals)
    if n < 2 or expected <= 0:
        return None
    return 1.0 - (n - 1) * apart / expected


class Agreement:
    """Krippendorff's alpha over pairs with at least two votes; values: first, second, tie.

    Which candidate is called the first means nothing, so each pair counts in both orders: the
    figure is alpha of the panel's table beside its mirror image. An annotator who said both is a
    tie. The interval is a bootstrap of groups, whose pairs are not independent.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.groups: Counter[Sums] = Counter()
        self.pairs = 0
        self.shares = [0] * len(SHARE_BINS)

    def observe(self, found: Found) -> None:
        """Takes the votes of one group."""
        n = apart = ties = 0.0
        for cast in found.values():
            m = len(cast)
            if m < 2:
                continue
            first = sum(v.value > 0.5 for v in cast)
            tied = sum(v.value == 0.5 for v in cast)
            self.pairs += 1
            self.shares[_share_bin(sum(v.value for v in cast) / m)] += 1
            n, ties = n + m, ties + tied
            apart += disagreement((first, m - first - tied, tied))
        if n:
            self.groups[n, round(apart, 9), ties] += 1

    def merge(self, other: Agreement) -> None:
        """Takes the counts of later groups."""
        self.groups.update(other.groups)
        self.pairs += other.pairs
        add_up(self.shares, other.shares)

    def report(self, seed: int = 0) -> dict[str, Any]:
        """{"alpha", "low", "high", "pairs"}; the interval is None for a single group."""
        sums = [sum(s[k] * times for s, times in self.groups.items()) for k in range(3)]
        alpha = _mirrored(*sums) if self.groups else None
        low, high = self._interval(seed) if alpha is not None else (None, None)
        return {"alpha": _rounded(alpha), "low": low, "high": high, "pairs": self.pairs}

    def _interval(self, seed: int) -> tuple[float | None, float | None]:
        import numpy as np

        groups = sum(self.groups.values())
        if groups < 2:
            return None, None
        random = np.random.default_rng(seed)
        kinds = np.array(sorted(self.groups))
        share = np.array([self.groups[tuple(k)] for k in kinds]) / groups
        drawn = (random.multinomial(groups, share) @ kinds for _ in range(REPLICATES))
        alphas = [a for a in (_mirrored(*sums) for sums in drawn) if a is not None]
        low, high = np.quantile(alphas, [0.025, 0.975]) if alphas else (math.nan, math.nan)
        return _rounded(low), _rounded(high)


def _mirrored(n: float, apart: float, ties: float) -> float | None:
    """Alpha of a table beside its mirror image: "first" and "second" become equally frequent."""
    alpha = _alpha(2 * apart, (n - ties, n - ties, 2 * ties))
    return None if alpha is None else float(alpha)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 4)


def _share_bin(mean: float) -> int:
    winner = max(mean, 1.0 - mean)
    if winner == 0.5:
        return 0
    return 6 if winner == 1.0 else min(5, 1 + int((winner - 0.5) * 10 - 1e-9))


def in_circle(edges: Iterable[tuple[Any, Any]]) -> bool:
    """Whether "a is better than b" statements go round in a circle (a > b > c > a)."""
    left = set(edges)
    while left:
        beaten = {loser for _, loser in left}
        kept = {edge for edge in left if edge[0] in beaten}  # nobody beats the others' winners
        if len(kept) == len(left):
            return True
        left = kept
    return False


def majority_edges(found: Found) -> list[tuple[int, int]]:
    """(winner, loser) of every pair that the votes decide."""
    edges = []
    for (i, j), cast in found.items():
        balance = sum(v.value for v in cast) - 0.5 * len(cast)
        if balance:
            edges.append((i, j) if balance > 0 else (j, i))
    return edges


def own_circles(found: Found) -> list[str]:
    """The named annotators whose own votes in a group go round in a circle."""
    said: dict[str, list[tuple[int, int]]] = {}
    for (i, j), cast in found.items():
        for vote in cast:
            if vote.annotator is not None and vote.value != 0.5:
                edge = (i, j) if vote.value > 0.5 else (j, i)
                said.setdefault(vote.annotator, []).append(edge)
    return [name for name, edges in said.items() if len(edges) > 2 and in_circle(edges)]


class Leaderboard:
    """Wins between the models that wrote the candidates."""

    def __init__(self, limited: bool = True) -> None:
        """limited: to ``MAX_MODEL_PAIRS``; what is merged into another one need not be."""
        self.votes: dict[tuple[str, str], list[float]] = {}
        self.full, self._most = False, MAX_MODEL_PAIRS if limited else math.inf

    def observe(self, models: Sequence[str | None], found: Found) -> None:
        """Takes one group's votes. models: of each candidate."""
        for (i, j), cast in found.items():
            one, other = models[i], models[j]
            if not one or not other or one == other:
                continue
            swap = one > other
            counts = self._counts((other, one) if swap else (one, other))
            if counts is None:
                continue
            for vote in cast:
                side = 2 if vote.value == 0.5 else int((vote.value > 0.5) == swap)
                counts[side] += 1

    def _counts(self, key: tuple[str, str]) -> list[float] | None:
        counts = self.votes.get(key)
        if counts is None:
            if len(self.votes) >= self._most:
                self.full = True
                return None
            counts = self.votes[key] = [0.0, 0.0, 0.0]
        return counts

    def merge(self, other: Leaderboard) -> None:
        """Takes the counts of later groups."""
        for key, more in other.votes.items():
            counts = self._counts(key)
            if counts is not None:
                add_up(counts, more)

    def report(self) -> dict[str, Any]:
        """{"models": [{"model", "votes", "win_rate", "average_win_rate", "elo"}], "note"}.

        win_rate: of all votes, ties half. average_win_rate: mean over opponents, by evalica. elo:
        1000 + 400 log₁₀(strength / geometric mean) of evalica's Bradley–Terry strengths; None where
        they have no finite value (a model that never lost, or groups of models that never met).
        """
        if not self.votes:
            return {"models": [], "note": None}
        score: dict[str, float] = defaultdict(float)
        seen: dict[str, float] = defaultdict(float)
        for (a, b), (first, second, ties) in self.votes.items():
            score[a] += first + ties / 2
            score[b] += second + ties / 2
            for model in (a, b):
                seen[model] += first + second + ties
        average, elo, note = self._by_evalica(sorted(seen))
        if self.full:
            note = f"only the first {MAX_MODEL_PAIRS} pairs of models were counted"
        rows = [
            {
                "model": m,
                "votes": int(n),
                "win_rate": _rounded(score[m] / n),
                "average_win_rate": _rounded(average.get(m)),
                "elo": None if m not in elo else round(elo[m]),
            }
            for m, n in seen.items()
        ]
        rows.sort(key=lambda r: (-(elo.get(r["model"], 0.0)), -r["win_rate"], r["model"]))
        return {"models": rows, "note": note}

    def _by_evalica(
        self, models: list[str]
    ) -> tuple[dict[Any, float], dict[Any, float], str | None]:
        """(average win rates, Elo ratings, why there are no ratings)."""
        try:
            import evalica
        except ImportError:
            return {}, {}, "for Bradley–Terry ranks: pip install 'align[annotations]'"
        outcomes = (evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw)
        games = [
            (a, b, outcome, count)
            for (a, b), counts in sorted(self.votes.items())
            for outcome, count in zip(outcomes, counts, strict=True)
            if count
        ]
        xs, ys, winners, weights = (list(column) for column in zip(*games, strict=True))
        average = evalica.average_win_rate(xs, ys, winners, weights=weights).scores.to_dict()
        if not self._comparable(models):
            why = "some models never won or never lost against the others"
            return average, {}, f"no Bradley–Terry ranks: {why}"
        found = evalica.bradley_terry(
            xs, ys, winners, weights=weights, tolerance=1e-9, limit=10_000
        )
        logs = {m: math.log10(s) for m, s in found.scores.items()}
        mean = sum(logs.values()) / len(logs)
        return average, {m: 1000 + 400 * (v - mean) for m, v in logs.items()}, None

    def _comparable(self, models: list[str]) -> bool:
        """Whether every model beat, or tied with, every other one along some chain (Ford 1957)."""
        better: dict[str, set[str]] = {m: set() for m in models}
        worse: dict[str, set[str]] = {m: set() for m in models}
        for (a, b), (first, second, ties) in self.votes.items():
            for winner, loser, n in ((a, b, first + ties), (b, a, second + ties)):
                if n:
                    better[winner].add(loser)
                    worse[loser].add(winner)
        return all(_reached(graph, models[0]) == set(models) for graph in (better, worse))


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        new = graph[todo.pop()] - seen
        seen |= new
        todo += new
    return seen
