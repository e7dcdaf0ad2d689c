"""Label Studio's JSON export: pairwise, ranker (with buckets), rating and choices.

One task is one group. Human annotations are votes; cancelled annotations, empty results, drafts and
``predictions`` are not, and are counted by reason. What a result says is read in
``label_studio_results``; here a task's prompt and candidates are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.records import Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import number
from reward_models.annotations.label_studio_results import Task, judgements_of
from reward_models.annotations.layout import answers_of, find_layout
from reward_models.reading_speed import note_lead_time

# What else a task holds that looks like annotations: field → reason.
NO_VOTES = {"predictions": "prediction", "drafts": "draft"}


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
    base, task = read_task(data, obj.get("id"), intake)
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
            note_lead_time(base.meta, annotator_of(annotation), number(annotation.get("lead_time")))
    if not judgements:
        code = next(iter(reasons)) if len(reasons) == 1 else "no_usable_vote"
        why = ", ".join(reasons) if reasons else "no annotations"
        raise RecordError(f"no vote: {why}", code=code if reasons else "no_annotations")
    return replace(base, judgements=tuple(judgements))


def read_task(
    data: Mapping[str, Any], task_id: Any, intake: Intake
) -> tuple[PreferenceGroup, Task]:
    """The group that a task's data makes, without judgements, and what results are read against."""
    config = intake.options.label_config
    layout = find_layout(data, config)
    prompt = prompt_messages(data.get(layout.prompt) if layout.prompt else None, data.get("system"))
    answers = answers_of(data, layout)
    # The candidates stand in the order in which they were shown: position bias can be measured.
    meta: dict[str, Any] = {"source": "label_studio", "display_order": True}
    if isinstance(task_id, (int, str)):
        meta["task_id"] = task_id
    group = make_group(prompt, answers.candidates, (), meta)
    task = Task(
        data=data,
        config=config,
        ids=answers.ids,
        titles=answers.titles,
        numbered=answers.numbered,
        assumed=layout.assumed,
        bucket_order=intake.options.bucket_order,
        meta=group.meta,
    )
    return group, task


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


FORMAT = Format("label_studio", "Label Studio JSON export", matches, row_by_row(convert, votes_in))
