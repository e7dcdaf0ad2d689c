"""What the results of one Label Studio annotation say about a task's candidates.

Every result ends as part of a judgement, or gives a reason; an annotation whose results say nothing
about the candidates is not a vote. An annotation with contradicting results is none either: half of
it would be a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Judgement
from reward_models.annotations.label_config import LabelConfig, object_field

TIES = {
    "tie",
    "equal",
    "equally good",
    "same",
    "both",
    "both good",
    "no preference",
    "neither",
    "draw",
    "平局",
    "一样",
    "相同",
    "差不多",
    "都好",
    "一样好",
}
BOTH_BAD = {
    "both bad",
    "bothbad",
    "tie (bothbad)",
    "equally bad",
    "neither",
    "都不好",
    "都差",
    "一样差",
}
LABELS = re.compile(
    r"^(?:answer|response|output|candidate|option|回答|答案|回复|选项)?[\s_\-]*([a-z]|[0-9]{1,2})"
    r"(?:[\s_\-]+is[\s_\-]+better|更好)?$",
    re.IGNORECASE,
)

Read = tuple[list[Judgement], str | None]


@dataclass
class Task:
    """What a result is read against.

    ids: candidates in display order. meta: written to the group.
    """

    data: Mapping[str, Any]
    config: LabelConfig | None
    ids: tuple[str, ...]
    titles: dict[str, str]
    assumed: bool
    bucket_order: tuple[str, ...]
    meta: dict[str, Any]


def judgements_of(
    results: Sequence[Any], annotator: str | None, task: Task, warn: Callable[[str], None]
) -> Read:
    """All judgements of one annotation, or ([], reason)."""
    judgements: list[Judgement] = []
    reasons: list[str] = []
    ratings: dict[str, dict[str, float]] = {}
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            return [], "malformed_result"
        kind = result.get("type")
        if kind == "pairwise":
            found, reason = _pairwise(result, value, annotator, task, warn)
        elif kind == "ranker":
            found, reason = _ranker(result, value, annotator, task)
        elif kind == "choices":
            found, reason = _choices(result, value, annotator, task)
        elif kind in ("rating", "number"):
            found, reason = [], _rating(result, value, task, ratings)
        else:
            # Comments, labels on spans and the like are not about preference.
            found, reason = [], "other_result"
        if reason and reason != "other_result":
            return [], reason
        reasons += [reason] if reason else []
        judgements += found
    for control, scores in ratings.items():
        source = _source("rating", control)
        judgements.append(Judgement(annotator, "score", dict(scores), source=source))
    if _contradict(judgements):
        return [], "contradicting_results"
    return (judgements, None) if judgements else ([], reasons[0] if reasons else "empty_result")


def _pairwise(
    result: Mapping[str, Any],
    value: Mapping[str, Any],
    annotator: str | None,
    task: Task,
    warn: Callable[[str], None],
) -> Read:
    selected = value.get("selected")
    if selected not in ("left", "right"):
        return [], "unknown_winner"
    order = _sides(result, task)
    if order is None:
        return [], "unknown_sides"
    if task.assumed and not _confirmed(result, order):
        warn(f"left/right taken as {order[0]}/{order[1]}: no labelling config was given")
    winner, loser = order if selected == "left" else (order[1], order[0])
    source = _source("pairwise", result.get("from_name"))
    vote = Judgement(
        annotator,
        "pair",
        {"winner": winner, "loser": loser},
        source=source,
        suspect=_suspect(result),
    )
    return [vote], None


def _sides(result: Mapping[str, Any], task: Task) -> tuple[str, str] | None:
    """(left, right) candidate ids.

    By the config's ``toName`` order; else by the objects that ``to_name`` names (real exports name
    the first one only); else in the order of the data keys.
    """
    names: Sequence[str] = ()
    control = result.get("from_name")
    if task.config is not None and isinstance(control, str):
        names = task.config.targets.get(control, ())
    if not names and isinstance(result.get("to_name"), str):
        names = [n.strip() for n in result["to_name"].split(",")]
    fields = [object_field(task.config, n, task.data) for n in names]
    known = [f for f in fields if f in task.ids]
    if len(known) == 2 and known[0] != known[1]:
        return known[0], known[1]
    if len(task.ids) != 2:
        return None
    if len(known) == 1:
        other = task.ids[1] if task.ids[0] == known[0] else task.ids[0]
        return known[0], other
    return task.ids[0], task.ids[1]


def _confirmed(result: Mapping[str, Any], order: tuple[str, str]) -> bool:
    to_name = result.get("to_name")
    return isinstance(to_name, str) and order[0] == to_name.split(",")[0].strip()


def _ranker(
    result: Mapping[str, Any], value: Mapping[str, Any], annotator: str | None, task: Task
) -> Read:
    buckets = value.get("ranker")
    if not isinstance(buckets, dict) or not all(isinstance(v, list) for v in buckets.values()):
        return [], "malformed_result"
    listed = [str(i) for ids in buckets.values() for i in ids]
    if len(set(listed)) != len(listed):
        return [], "repeated_candidate"
    if not set(listed) <= set(task.ids):
        return [], "unknown_candidate"
    control = result.get("from_name")
    source = _source("ranker", control)
    ranks: dict[str, float | None] = dict.fromkeys(task.ids)
    suspect = _suspect(result)
    if _is_ranking(buckets, control, task.config):
        ranks.update({i: rank for rank, i in enumerate(listed, start=1)})
        # The ranker stores the display order when nobody touched it: no evidence of a preference.
        if listed == list(task.ids):
            suspect = suspect or "display_order"
    else:
        order = task.bucket_order
        if not order:
            return [], "buckets_without_order"
        if not (buckets.keys() - {"_"}) <= set(order):
            return [], "unknown_bucket"
        ranks.update(
            {str(i): order.index(b) + 1 for b, ids in buckets.items() if b != "_" for i in ids}
        )
    if sum(r is not None for r in ranks.values()) < 2:
        return [], "nothing_ranked"
    return [Judgement(annotator, "rank", ranks, source=source, suspect=suspect)], None


def _is_ranking(buckets: Mapping[str, Any], control: Any, config: LabelConfig | None) -> bool:
    """Whether this is one ranked column: its key is the control's own name, not a bucket's."""
    if config is not None and control in config.buckets:
        return not config.buckets[control]
    return len(buckets) == 1 and next(iter(buckets)) in (control, "rank", "ranker")


def _choices(
    result: Mapping[str, Any], value: Mapping[str, Any], annotator: str | None, task: Task
) -> Read:
    chosen = value.get("choices")
    chosen = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(chosen, list) or not all(isinstance(c, str) for c in chosen):
        return [], "malformed_result"
    source = _source("choices", result.get("from_name"))
    suspect = _suspect(result)
    named = [_candidate_named(c, task) for c in chosen]
    texts = [c.strip().lower() for c in chosen]
    if len(chosen) == 1 and texts[0] in TIES | BOTH_BAD and len(task.ids) == 2:
        if texts[0] in BOTH_BAD:
            task.meta["both_bad"] = task.meta.get("both_bad", 0) + 1
        vote = Judgement(annotator, "pair", {"tie": list(task.ids)}, source=source, suspect=suspect)
        return [vote], None
    if not any(named):
        return [], "other_result"
    if len(chosen) > 1 or named[0] is None:
        return [], "ambiguous_choice"
    losers = [i for i in task.ids if i != named[0]]
    return [
        Judgement(
            annotator, "pair", {"winner": named[0], "loser": i}, source=source, suspect=suspect
        )
        for i in losers
    ], None


def _candidate_named(choice: str, task: Task) -> str | None:
    """The candidate that a choice names: its id, title, side, letter or number."""
    text = choice.strip().lower()
    for candidate in task.ids:
        if text == candidate.lower():
            return candidate
    if text in task.titles:
        return task.titles[text]
    if text in ("left", "right", "左", "右") and len(task.ids) == 2:
        return task.ids[text in ("right", "右")]
    match = LABELS.match(text)
    if not match:
        return None
    suffix = match.group(1)
    same = [
        i for i in task.ids if re.search(rf"(?:^|[^0-9a-z]|(?<=[a-z])(?=\d)){suffix}$", i.lower())
    ]
    if len(same) == 1:
        return same[0]
    position = int(suffix) - 1 if suffix.isdigit() else ord(suffix) - ord("a")
    return task.ids[position] if 0 <= position < len(task.ids) else None


def _rating(
    result: Mapping[str, Any],
    value: Mapping[str, Any],
    task: Task,
    ratings: dict[str, dict[str, float]],
) -> str | None:
    """Adds one rating under its control's name; returns the reason where it cannot."""
    number = value.get("rating", value.get("number"))
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return "malformed_result"
    if not math.isfinite(number):
        return "not_finite"
    candidate = _rated(result, task)
    if candidate is None:
        return "unknown_candidate"
    control = str(result.get("from_name") or "rating")
    attribute = control.replace(candidate, "").strip("_-. ") or "rating"
    attribute = re.sub(r"[_\- ]?([0-9]{1,2}|[ab])$", "", attribute, flags=re.IGNORECASE) or "rating"
    scores = ratings.setdefault(attribute, {})
    if candidate in scores:
        return "repeated_candidate"
    scores[candidate] = float(number)
    return None


def _rated(result: Mapping[str, Any], task: Task) -> str | None:
    """The candidate behind ``to_name``, or the one whose name or suffix ``from_name`` carries."""
    to_name, control = result.get("to_name"), result.get("from_name")
    if isinstance(to_name, str):
        name = object_field(task.config, to_name, task.data)
        if name in task.ids:
            return name
    if not isinstance(control, str):
        return None
    inside = [i for i in task.ids if i in control]
    if len(inside) == 1:
        return inside[0]
    match = re.search(r"[_\-]?([0-9]{1,2}|(?<=[_\-])[a-z])$", control.lower())
    if not match:
        return None
    ends = [i for i in task.ids if re.search(rf"(?<![0-9]){match.group(1)}$", i.lower())]
    return ends[0] if len(ends) == 1 else None


def _contradict(judgements: Sequence[Judgement]) -> bool:
    """Whether one control of an annotation prefers both sides of a pair."""
    # Two controls may ask two questions (which is safer, which helps more): compare within one.
    wins = {
        (j.source, j.value["winner"], j.value["loser"])
        for j in judgements
        if j.kind == "pair" and "winner" in j.value
    }
    return any((source, b, a) in wins for source, a, b in wins)


def _suspect(result: Mapping[str, Any]) -> str | None:
    # The annotator submitted the model's own suggestion without touching it.
    return "accepted_prediction" if result.get("origin") == "prediction" else None


def _source(kind: str, control: Any) -> str:
    return f"label_studio:{kind}:{control}" if control else f"label_studio:{kind}"
