"""What the results of one Label Studio annotation say about a task's candidates.

Every result ends as part of a judgement, or gives a reason; an annotation whose results say nothing
about the candidates is not a vote. An annotation with a broken or contradicting result is none
either: half of it would be a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Judgement, RecordError
from reward_models.annotations.label_config import LabelConfig, object_field
from reward_models.annotations.label_studio_ratings import Ratings
from reward_models.annotations.naming import candidate_named, read_words, says_both_bad

# Reasons of results that may stand beside a vote.
BESIDE = ("other_result", "no_such_candidate")

Read = tuple[list[Judgement], str | None]


@dataclass
class Task:
    """What a result is read against.

    ids: candidates in display order. titles: what else names them. numbered: ids are positions
    only. assumed: no config confirmed the order. meta: written to the group.
    """

    data: Mapping[str, Any]
    config: LabelConfig | None
    ids: tuple[str, ...]
    titles: Mapping[str, str]
    assumed: bool
    bucket_order: tuple[str, ...]
    meta: dict[str, Any]
    numbered: bool = False


def judgements_of(
    results: Sequence[Any], annotator: str | None, task: Task, warn: Callable[[str], None]
) -> Read:
    """All judgements of one annotation, or ([], reason)."""
    judgements: list[Judgement] = []
    reasons: list[str] = []
    notes: list[str] = []
    ratings = Ratings(task, results)
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
            found, reason = _choices(result, value, annotator, task, warn)
        elif kind in ("rating", "number"):
            found, reason = [], ratings.add(result, value)
            if reason == "no_such_candidate":  # it may rate the prompt, or the annotator's effort
                notes.append(f"{kind} {result.get('from_name')!r} is about no candidate: left out")
        else:
            # Comments, labels on spans and the like are not about preference.
            found, reason = [], "other_result"
        if reason and reason not in BESIDE:
            return [], reason
        reasons += [reason] if reason else []
        judgements += found
    for control, scores in ratings.scores.items():
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
    that ``to_name`` names, where it names any (Label Studio itself writes the control's own name
    there; results that were uploaded name the first object or both); else in the order of the data
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
        # Untouched, all items are stored in the default bucket, in display order.
        if [str(i) for ids in buckets.values() for i in ids] == list(task.ids) and (
            len({r for r in ranks.values() if r is not None}) == 1
        ):
            suspect = suspect or "display_order"
    if sum(r is not None for r in ranks.values()) < 2:
        return [], "nothing_ranked"
    return [Judgement(annotator, "rank", ranks, source=source, suspect=suspect)], None


def _is_ranking(buckets: Mapping[str, Any], control: Any, config: LabelConfig | None) -> bool:
    """Whether this is one ranked column: its key is the control's own name, not a bucket's."""
    if config is not None and control in config.buckets:
        return not config.buckets[control]
    return len(buckets) == 1 and next(iter(buckets)) in (control, "rank", "ranker")


def _choices(
    result: Mapping[str, Any],
    value: Mapping[str, Any],
    annotator: str | None,
    task: Task,
    warn: Callable[[str], None],
) -> Read:
    control = result.get("from_name")
    if _is_scale(control, task):
        return [], "other_result"
    try:
        pairs = read_words(value.get("choices"), task.ids, task.titles, question=control, warn=warn)
    except RecordError as error:
        return [], error.code
    source, suspect = _source("choices", control), _suspect(result)
    return [Judgement(annotator, "pair", p, source=source, suspect=suspect) for p in pairs], None


def _is_scale(control: Any, task: Task) -> bool:
    """Whether the config offers this control numbers that are no candidates', as from 1 to 5."""
    offered = task.config.choices.get(control, ()) if task.config else ()
    numbers = [word for word in offered if word.strip().isdigit()]
    return any(candidate_named(word, task.ids, task.titles) is None for word in numbers)


def _says_both_bad(result: Mapping[str, Any], task: Task) -> bool:
    kind, value = result.get("type"), result["value"]
    return kind == "choices" and says_both_bad(value.get("choices"), task.ids)


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
