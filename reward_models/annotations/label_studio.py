"""Label Studio's JSON export: pairwise, ranker (with buckets), rating and choices.

One task is one group. Human annotations are votes; cancelled annotations, empty results, drafts and
``predictions`` are not, and are counted by reason. What a result says is read in
``label_studio_results``; here a task's prompt and candidates are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from align.config_errors import UserError
from align.jsonl import short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.label_config import LabelConfig
from reward_models.annotations.label_studio_results import Task, judgements_of

PROMPT_FIELDS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "input",
    "context",
    "dialogue",
    "dialog",
    "conversation",
    "messages",
    "提示",
    "问题",
    "指令",
)
CANDIDATE_FIELD = re.compile(
    r"^(answer|response|output|completion|candidate|option|summary|reply|text|回答|答案|回复)"
    r"[_\- ]?([0-9]{1,2}|[a-z])$",
    re.IGNORECASE,
)
# What else a task holds that looks like annotations: field → reason.
NO_VOTES = {"predictions": "prediction", "drafts": "draft"}
SIDES = (("left", "right"), ("chosen", "rejected"), ("a", "b"))
LIST_FIELDS = ("items", "answers", "responses", "candidates", "options", "completions", "outputs")
ITEM_TEXT = ("body", "text", "content", "value", "html", "answer", "response", "title")


@dataclass(frozen=True)
class Layout:
    """Where a task keeps its prompt and answers. assumed: no config confirmed the order."""

    prompt: str | None
    candidates: tuple[str, ...]
    items: str | None
    assumed: bool


def matches(obj: Any) -> str | None:
    """Evidence that a row is a Label Studio task."""
    if not (isinstance(obj, dict) and isinstance(obj.get("data"), dict)):
        return None
    if isinstance(obj.get("annotations"), list):
        return "data and annotations"
    return "data and completions" if isinstance(obj.get("completions"), list) else None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One task → one group with the judgements of all its annotations."""
    if not isinstance(obj, dict) or not isinstance(obj.get("data"), dict):
        raise RecordError("expected an object with data", code="not_a_task")
    data = obj["data"]
    # Releases before 1.0 called annotations "completions".
    annotations = obj.get("annotations", obj.get("completions"))
    if not isinstance(annotations, list):
        raise RecordError("annotations is not a list", code="not_a_task")
    config = intake.options.label_config
    layout = find_layout(data, config)
    prompt = prompt_messages(data.get(layout.prompt) if layout.prompt else None, data.get("system"))
    candidates, titles = _candidates(data, layout)
    base = make_group(prompt, candidates, (), _meta(obj))
    task = Task(
        data=data,
        config=config,
        ids=tuple(c.id for c in candidates),
        titles=titles,
        assumed=layout.assumed,
        bucket_order=intake.options.bucket_order,
        meta=base.meta,
    )
    for name, reason in NO_VOTES.items():
        if _length(obj.get(name)):
            intake.drop_vote(reason, _length(obj[name]))
    judgements: list[Judgement] = []
    reasons: dict[str, None] = {}
    for annotation in annotations:
        votes, reason = _annotation(annotation, task, base.group_id, intake)
        judgements += votes
        if reason:
            reasons[reason] = None
            intake.drop_vote(reason)
        else:
            intake.vote()
    if not judgements:
        code = next(iter(reasons)) if len(reasons) == 1 else "no_usable_vote"
        why = ", ".join(reasons) if reasons else "no annotations"
        raise RecordError(f"no vote: {why}", code=code if reasons else "no_annotations")
    return replace(base, judgements=tuple(judgements))


def votes_in(obj: Any) -> int:
    """How many annotations, predictions and drafts a task holds."""
    if not isinstance(obj, dict):
        return 0
    annotations = obj.get("annotations", obj.get("completions"))
    return _length(annotations) + sum(_length(obj.get(name)) for name in NO_VOTES)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _annotation(
    annotation: Any, task: Task, group_id: str, intake: Intake
) -> tuple[list[Judgement], str | None]:
    """The judgements of one annotation, or the reason why it is no vote."""
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        return [], "malformed_annotation"
    if annotation.get("was_cancelled"):
        return [], "cancelled"
    identity, annotator = annotation.get("id"), annotator_of(annotation)
    # Ids are unique in one Label Studio only: two servers may give one id to two people's votes.
    key = ("label_studio", group_id, identity, annotator, annotation.get("created_at"))
    if identity is not None and intake.seen(*key):
        return [], "duplicate_annotation"
    if not annotation["result"]:
        return [], "empty_result"
    return judgements_of(annotation["result"], annotator, task, intake.warn)


def annotator_of(annotation: Mapping[str, Any]) -> str | None:
    """Who annotated: ``completed_by`` is an id, or a user object with id, email or username."""
    user = annotation.get("completed_by")
    if isinstance(user, dict):
        user = next((user[k] for k in ("id", "email", "username") if user.get(k) is not None), None)
    if user is None or isinstance(user, (bool, list, dict)):
        return None
    return str(user)


def find_layout(data: Mapping[str, Any], config: LabelConfig | None) -> Layout:
    """Prompt and candidate fields of a task, from the config and otherwise from its keys.

    UserError where two sets of fields could be the candidates: guessing would invert or mix pairs.
    """
    prompt = config.prompt if config and config.prompt else _first(PROMPT_FIELDS, data)
    if prompt is not None and prompt not in data:
        raise RecordError(f"no field {prompt} in data", code="no_prompt")
    if config and config.candidates:
        missing = [f for f in config.candidates if f not in data]
        if missing:
            raise RecordError(f"no field {', '.join(missing)} in data", code="missing_candidate")
        return Layout(_other_prompt(prompt, config.candidates), config.candidates, None, False)
    if config and config.items:
        if not isinstance(data.get(config.items), list):
            raise RecordError(f"data.{config.items} is not a list", code="missing_candidate")
        return Layout(prompt, (), config.items, False)
    found = _candidate_sets(data, prompt)
    if not found:
        raise RecordError(f"no candidates among {sorted(data)}", code="no_candidates")
    if len(found) > 1:
        sets = " or ".join("+".join(f) for f in found)
        raise UserError(
            "data",
            short(sorted(data), 200),
            f"could hold the candidates in {sets}",
            "Name them: --label_config left=FIELD,right=FIELD",
        )
    fields = found[0]
    if len(fields) == 1:
        return Layout(prompt, (), fields[0], False)
    return Layout(prompt, fields, None, True)


def _other_prompt(prompt: str | None, candidates: tuple[str, ...]) -> str | None:
    return None if prompt in candidates else prompt


def _candidate_sets(data: Mapping[str, Any], prompt: str | None) -> list[tuple[str, ...]]:
    """Every set of keys that looks like the answers; a list field is a set of one."""
    stems: dict[str, list[str]] = {}
    for key, value in data.items():
        match = CANDIDATE_FIELD.match(key)
        if match and key != prompt and isinstance(value, str):
            stems.setdefault(match.group(1).lower(), []).append(key)
    found = [tuple(sorted(keys, key=_suffix)) for keys in stems.values() if len(keys) > 1]
    found += [pair for pair in SIDES if all(isinstance(data.get(k), str) for k in pair)]
    found += [(k,) for k in LIST_FIELDS if k != prompt and isinstance(data.get(k), list)]
    return found


def _suffix(key: str) -> tuple[int, str]:
    match = CANDIDATE_FIELD.match(key)
    suffix = match.group(2).lower() if match else key
    return (int(suffix), "") if suffix.isdigit() else (0, suffix)


def _candidates(
    data: Mapping[str, Any], layout: Layout
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Candidates in display order, and what else names them (lower-cased title → id)."""
    if layout.items is None:
        for name in layout.candidates:
            if not isinstance(data[name], str):
                raise RecordError(f"data.{name} is not text", code="not_text")
        return tuple(Candidate(name, data[name]) for name in layout.candidates), {}
    found, titles = [], {}
    # Without an id of their own items are numbered as annotators count them, from 1.
    for position, item in enumerate(data[layout.items], start=1):
        if isinstance(item, str):
            found.append(Candidate(str(position), item))
            continue
        name = _first(ITEM_TEXT, item) if isinstance(item, dict) else None
        text = item[name] if name else None
        if not isinstance(text, str):
            raise RecordError(f"item {position} of {layout.items} has no text", code="not_text")
        model = item.get("model")
        candidate = Candidate(
            str(item.get("id", position)), text, model if isinstance(model, str) else None
        )
        found.append(candidate)
        if isinstance(item.get("title"), str) and item["title"].strip():
            titles[item["title"].strip().lower()] = candidate.id
    return tuple(found), titles


def _first(names: tuple[str, ...], data: Mapping[str, Any]) -> str | None:
    return next((n for n in names if data.get(n)), None)


def _meta(obj: Mapping[str, Any]) -> dict[str, Any]:
    # The candidates stand in the order in which they were shown: position bias can be measured.
    meta: dict[str, Any] = {"source": "label_studio", "display_order": True}
    if isinstance(obj.get("id"), (int, str)):
        meta["task_id"] = obj["id"]
    return meta


FORMAT = Format("label_studio", "Label Studio JSON export", matches, row_by_row(convert, votes_in))
