"""What the results of one Label Studio annotation say about a task's candidates.

Every result ends as part of a judgement, or gives a reason; an annotation whose results say nothing
about the candidates is not a vote. An annotation with a broken or contradicting result is none
either: half of it would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Judgement
from reward_models.annotations.label_config import LabelConfig, object_field
from reward_models.annotations.label_studio_ratings import add_rating

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

# Reasons of results that may stand beside a vote.
BESIDE = ("other_result", "no_such_candidate")

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
    notes: list[str] = []
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
            found, reason = [], add_rating(result, value, task, ratings)
            if reason == "no_such_candidate":  # it may rate the prompt, or the annotator's effort
                notes.append(f"{kind} {result.get('from_name')!r} is about no candidate: left out")
        else:
            # Comments, labels on spans and the like are not about preference.
            found, reason = [], "other_result"
        if reason and reason not in BESIDE:
            return [], reason
        reasons += [reason] if reason else []
        judgements += found
    for control, scores in ratings.items():
        source = _source("rating", control)
        judgements.append(Judgement(annotator, "score", dict(scores), source=source))
    if _contradict(judgements):
        return [], "contradicting_results"
    if judgements:
        if any(_says_both_bad(result, task) for result in results):
            task.meta["both_bad"] = task.meta.get("both_bad", 0) + 1
        for note in notes:
            warn(note)
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
    order = _sides(result, task, warn)
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


def _sides(
    result: Mapping[str, Any], task: Task, warn: Callable[[str], None]
) -> tuple[str, str] | None:
    """(left, right) candidate ids.

    By the config's ``toName`` order, or the field names given instead of one; else by the objects
    that ``to_name`` names (real exports name the first one only); else in the order of the data
    keys.
    """
    control, to_name = result.get("from_name"), result.get("to_name")
    known = _known(to_name.split(",") if isinstance(to_name, str) else (), task)
    config = task.config
    if config is not None and config.targets:
        names = config.targets.get(control, ()) if isinstance(control, str) else ()
        known = _known(names, task) or known
        if not names:
            warn(f"the labelling config has no control {control!r}: is it this project's?")
    elif config is not None and len(config.candidates) == 2:
        if known and known[0] != config.candidates[0]:
            warn(f"to_name {to_name!r} says otherwise than --label_config, which was followed")
        return config.candidates[0], config.candidates[1]
    if len(known) == 2 and known[0] != known[1]:
        return known[0], known[1]
    if len(task.ids) != 2:
        return None
    if len(known) == 1:
        other = task.ids[1] if task.ids[0] == known[0] else task.ids[0]
        return known[0], other
    return task.ids[0], task.ids[1]


def _known(names: Sequence[str], task: Task) -> list[str]:
    """The candidates among the data fields behind these object names."""
    fields = [object_field(task.config, name.strip(), task.data) for name in names]
    return [field for field in fields if field in task.ids]


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


def _says_both_bad(result: Mapping[str, Any], task: Task) -> bool:
    chosen = result["value"].get("choices") if result.get("type") == "choices" else None
    text = chosen[0] if isinstance(chosen, list) and len(chosen) == 1 else chosen
    return isinstance(text, str) and text.strip().lower() in BOTH_BAD and len(task.ids) == 2


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
