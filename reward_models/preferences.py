"""Judgements → weighted soft pairs, the targets of reward, DPO and ORPO training.

Every judgement becomes votes on pairs of candidates: a pair or a tie one vote, a ranking or a set
of scores one vote per pair that it compares. n votes of which n_A (ties count half) prefer a give

    P(a beats b) = (n_A + alpha) / (n + 2 alpha).

alpha is 0 by default, so a single vote and a unanimous panel are the ordinary Bradley–Terry
target 1. With alpha > 0 a lone vote is trusted less than five equal ones: alpha = 1 gives 2/3 and
6/7, and the reward difference of a lone vote then converges to log 2 instead of growing.

A group's pairs weigh 1 / (number of compared pairs), 1/C(K,2) for a full ranking of K, so one
prompt counts as one batch element however many candidates it has (Ouyang et al. 2022,
arXiv:2203.02155, section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

from align.config_errors import UserError
from align.records import Judgement, PairTarget, PreferenceGroup, RecordError, short

# These two look at all groups at once: see reward_models.aggregation.
MODELS = ("dawid_skene", "noisy_bt")
AGGREGATES = ("soft", "majority", "per_annotator", *MODELS)
TIES = ("half", "drop")


class Vote(NamedTuple):
    """One annotator's opinion on candidates i < j. value: 1 i is better, 0 j is, 0.5 a tie.

    strength: how far apart, ≥ 0, in the unit of ``scale``, or None. both: the annotator preferred
    each side at some time, in the same kind of question.
    """

    annotator: str | None
    value: float
    strength: float | None = None
    scale: str = ""
    both: bool = False


def targets(
    group: PreferenceGroup,
    *,
    aggregate: str = "soft",
    ties: str = "half",
    alpha: float = 0.0,
    margin: bool = False,
    min_annotators: int = 1,
    suspects: str = "keep",
    found: Mapping[tuple[int, int], Sequence[Vote]] | None = None,
) -> list[PairTarget]:
    """The pairs to train on; a is the preferred candidate, so target ≥ 0.5.

    aggregate: ``soft`` the formula above; ``majority`` 1 for the side with more votes (an even
    split stays 0.5, or goes with ``ties="drop"``); ``per_annotator`` one pair per annotator, each
    with the pair's full weight, so that a group counts once per annotator; ``dawid_skene`` and
    ``noisy_bt`` what ``reward_models.aggregation`` found from all groups together and an import
    with this aggregate noted in ``meta["aggregated"]``: UserError where it is not there.
    ties: ``half`` a tie is half a vote for each side; ``drop`` a tie is no vote, and neither is
    what an annotator said both ways equally often. Annotators who disagree evenly are no tie.
    margin: fill ``PairTarget.margin`` with the mean strength of the votes for the winner; None
    where sources are mixed, whose units differ. min_annotators: pairs with fewer votes are left
    out.
    suspects: ``keep`` or ``drop`` judgements flagged at import. A null rank makes no pair.
    found: the group's ``votes`` with the same ties and suspects, where they are known already.
    """
    _check(aggregate, ties, alpha, suspects)
    if found is None:
        found = votes(group, ties=ties, suspects=suspects)
    noted = _noted(group, aggregate) if aggregate in MODELS else {}
    pairs: list[tuple[int, int, float, float | None]] = []
    compared = 0
    for (i, j), cast in found.items():
        if len(cast) < min_annotators:
            continue
        if aggregate in MODELS:
            p = noted.get((i, j))
            made = [] if p is None else [(p, _margin(cast, p) if margin else None)]
        else:
            made = _pair(cast, aggregate, ties, alpha, margin)
        compared += bool(made)
        pairs += [(i, j, target, gap) for target, gap in made]
    return [_oriented(i, j, target, 1.0 / compared, gap) for i, j, target, gap in pairs]


def note_aggregated(
    group: PreferenceGroup, aggregate: str, found: Mapping[tuple[int, int], float]
) -> None:
    """Writes P(i is better than j) of pairs i, j to ``group.meta["aggregated"][aggregate]``.

    As a list of [id, id, probability that the first is better], whatever becomes of the order.
    """
    ids = [c.id for c in group.candidates]
    noted = [[ids[i], ids[j], round(p, 6)] for (i, j), p in found.items()]
    group.meta.setdefault("aggregated", {})[aggregate] = noted


def _noted(group: PreferenceGroup, aggregate: str) -> dict[tuple[int, int], float]:
    index = {c.id: i for i, c in enumerate(group.candidates)}
    found = {}
    try:
        for first, second, p in group.meta["aggregated"][aggregate]:
            i, j = index[first], index[second]
            if not 0.0 <= p <= 1.0:
                raise ValueError(p)
            found[(i, j) if i < j else (j, i)] = float(p if i < j else 1.0 - p)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "aggregate",
            aggregate,
            f"is not in the meta of group {group.group_id}: it needs the votes of all groups",
            f"Import the annotations with --aggregate {aggregate}, or use soft",
        ) from None
    return found


def votes(
    group: PreferenceGroup, *, ties: str = "half", suspects: str = "keep"
) -> dict[tuple[int, int], list[Vote]]:
    """Votes per pair of candidate indices i < j, in index order.

    A named annotator has one vote per pair: the mean of what they said. Judgements without an
    annotator count as one annotator each.
    """
    index = {c.id: i for i, c in enumerate(group.candidates)}
    raw: dict[tuple[int, int], list[Vote]] = {}
    for judgement in group.judgements:
        if suspects == "drop" and judgement.suspect:
            continue
        annotator, scale = judgement.annotator, f"{judgement.kind}:{judgement.source}"
        for first, second, value, strength in _compared(judgement):
            if ties == "drop" and value == 0.5:
                continue
            i, j = index[first], index[second]
            if i > j:
                i, j, value = j, i, 1.0 - value
            raw.setdefault((i, j), []).append(Vote(annotator, value, strength, scale))
    found = {pair: _one_each(raw[pair]) for pair in (sorted(raw) if len(raw) > 1 else raw)}
    if ties == "drop":
        found = {pair: [v for v in cast if v.value != 0.5] for pair, cast in found.items()}
        return {pair: cast for pair, cast in found.items() if cast}
    return found


def pair_value(first: str, second: str, p: float) -> dict[str, Any]:
    """The value of a "pair" judgement that the candidate ``first`` is better with probability p.

    p 0.5 is a tie, 1 or 0 a plain vote; what lies between keeps its probability as "p" of the
    winner. RecordError (bad_value) where p is no probability.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0.0 <= p <= 1.0:
        raise RecordError(f"{short(p)} is not a probability", code="bad_value")
    p = round(p, 12)  # 2 - 1.4 is to be written as 0.6
    if p == 0.5:
        return {"tie": [first, second]}
    winner, loser = (first, second) if p > 0.5 else (second, first)
    p = round(max(p, 1.0 - p), 12)
    value: dict[str, Any] = {"winner": winner, "loser": loser}
    return value if p == 1.0 else {**value, "p": p}


def _compared(judgement: Judgement) -> list[tuple[str, str, float, float | None]]:
    """(first, second, P(first is better), strength) of every pair a judgement speaks about."""
    value = judgement.value
    if judgement.kind == "pair":
        strength = None if judgement.strength is None else abs(judgement.strength)
        if "tie" in value:
            return [(value["tie"][0], value["tie"][1], 0.5, strength)]
        return [(value["winner"], value["loser"], float(value.get("p", 1.0)), strength)]
    known = [(i, v) for i, v in value.items() if v is not None]
    if judgement.kind == "score":
        return [
            (a, b, 0.5 if high == low else float(high > low), abs(high - low))
            for (a, high), (b, low) in combinations(known, 2)
        ]
    # Score differences are strengths; rank differences are not (ranks have no unit).
    return [
        (a, b, 0.5 if high == low else float(high < low), None)
        for (a, high), (b, low) in combinations(known, 2)
    ]


def _one_each(cast: list[Vote]) -> list[Vote]:
    if len(cast) == 1:
        return cast
    names = [vote.annotator for vote in cast if vote.annotator is not None]
    if len(names) == len(set(names)):
        return cast
    named: dict[str, list[Vote]] = {}
    result: list[Vote | None] = []
    place: dict[str, int] = {}
    for vote in cast:
        if vote.annotator is None:
            result.append(vote)
            continue
        if vote.annotator not in named:
            place[vote.annotator] = len(result)
            result.append(None)
        named.setdefault(vote.annotator, []).append(vote)
    for annotator, said in named.items():
        result[place[annotator]] = said[0] if len(said) == 1 else _mean(annotator, said)
    return [v for v in result if v is not None]


def _mean(annotator: str, said: list[Vote]) -> Vote:
    scales = {v.scale for v in said}
    known = [v.strength for v in said if v.strength is not None]
    strength = fmean(known) if known and len(scales) == 1 else None
    sides = {(v.scale, v.value > 0.5) for v in said if v.value != 0.5}
    both = any((scale, not side) in sides for scale, side in sides)
    scale = scales.pop() if len(scales) == 1 else "mixed"
    return Vote(annotator, fmean(v.value for v in said), strength, scale, both)


def _pair(
    cast: Sequence[Vote], aggregate: str, ties: str, alpha: float, margin: bool
) -> list[tuple[float, float | None]]:
    """(P(i is better), margin) of each target that one pair's votes make."""
    if aggregate == "per_annotator":
        return [(v.value, v.strength if margin else None) for v in cast]
    n = len(cast)
    share = cast[0].value if n == 1 else sum(v.value for v in cast)
    target = (share + alpha) / (n + 2.0 * alpha)
    if aggregate == "majority":
        if share * 2.0 == n and ties == "drop":
            return []
        target = 0.5 if share * 2.0 == n else float(share * 2.0 > n)
    return [(target, _margin(cast, target) if margin else None)]


def _margin(cast: Sequence[Vote], target: float) -> float | None:
    winners = [v for v in cast if v.strength is not None and (v.value - 0.5) * (target - 0.5) > 0]
    if not winners:
        return None
    if len(winners) == 1:
        return winners[0].strength
    if len({v.scale for v in winners}) > 1:
        return None
    return fmean(v.strength for v in winners if v.strength is not None)


def _oriented(i: int, j: int, target: float, weight: float, gap: float | None) -> PairTarget:
    if target < 0.5:
        i, j, target = j, i, 1.0 - target
    return PairTarget(i, j, target, weight, gap)


@lru_cache(maxsize=64)
def _check(aggregate: str, ties: str, alpha: float, suspects: str) -> None:
    for field, value, known in (
        ("aggregate", aggregate, AGGREGATES),
        ("ties", ties, TIES),
        ("suspects", suspects, ("keep", "drop")),
    ):
        if value not in known:
            raise UserError(field, value, "is not known", f"Use one of {', '.join(known)}")
    if not 0.0 <= alpha < float("inf"):
        raise UserError("alpha", alpha, "is not a finite number ≥ 0", "Use 0 for no smoothing")
