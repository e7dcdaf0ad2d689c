"""Label Studio's JSON-MIN export: one row per annotation, data and results side by side.

    {"prompt": "Q", "answer1": "A", "answer2": "B", "id": 1, "comparison": [{"selected": "left"}],
     "annotator": 10, "annotation_id": 7, "created_at": "…", "updated_at": "…", "lead_time": 4.2}

The rows of one task merge by content. Cancelled annotations, drafts and predictions are not in the
file; a task that nobody annotated is a row without ``annotation_id``. The converter drops
``to_name`` and ``type`` and writes a single choice as bare text, or as a bare object where several
were chosen; a single text field becomes bare text too. With the labelling config (XML) each is read
as what it is. Without it, results are known by their form; bare text counts as a choice only where
it stands between ``id`` and ``annotator``, names a candidate, and no other result says anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.records import PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, row_by_row
from reward_models.annotations.fields import number
from reward_models.annotations.label_config import LabelConfig
from reward_models.annotations.label_studio import annotator_of, read_task
from reward_models.annotations.label_studio_results import Task, judgements_of
from reward_models.annotations.naming import candidate_named, is_tie
from reward_models.reading_speed import note_lead_time

# Written behind the data and the results.
BOOKKEEPING = (
    "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history",
)  # fmt: skip
# The key of a result's value → its type.
KINDS = {
    "selected": "pairwise",
    "ranker": "ranker",
    "rating": "rating",
    "number": "number",
    "choices": "choices",
}
# What may stand beside it.
EXTRAS = {"id", "parentID", "item_index", "original_width", "original_height"}


def matches(obj: Any) -> str | None:
    """Evidence that a row is an annotation of a JSON-MIN export."""
    names = {"annotator", "annotation_id", "lead_time"}
    if isinstance(obj, dict) and names <= obj.keys() and not isinstance(obj.get("data"), dict):
        return "annotator, annotation_id and lead_time"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One annotation → one group with its judgements."""
    if not isinstance(obj, dict) or "annotation_id" not in obj:
        raise RecordError("expected an object with annotation_id", code="not_an_annotation")
    if obj["annotation_id"] is None:
        raise RecordError("nobody annotated this task", code="no_annotations")
    config = intake.options.label_config
    base, task, results = _read(obj, config, intake)
    annotator = annotator_of({"completed_by": obj.get("annotator")})
    annotator = None if annotator == "None" else annotator
    # The same key as in the JSON export: the two of one project count once.
    key = (base.group_id, obj["annotation_id"], annotator, obj.get("created_at"))
    if intake.seen("label_studio", *key):
        raise RecordError("the same annotation stands earlier", code="duplicate_annotation")
    judgements, reason = judgements_of(results, annotator, task, intake.warn)
    if not judgements:
        raise RecordError(f"no vote: {reason}", code=reason or "empty_result")
    intake.vote()
    note_lead_time(base.meta, annotator, number(obj.get("lead_time")))
    return replace(base, judgements=tuple(judgements))


def votes_in(obj: Any) -> int:
    """A row is one annotation, or none at all."""
    return int(isinstance(obj, dict) and obj.get("annotation_id") is not None)


def _read(
    obj: Mapping[str, Any], config: LabelConfig | None, intake: Intake
) -> tuple[PreferenceGroup, Task, list[dict[str, Any]]]:
    """The group without judgements, what results are read against, and the results."""
    task_id = obj.get("id")
    data = {k: v for k, v in obj.items() if k not in BOOKKEEPING and k != "id"}
    named = {k for k in data if _is_control(k, config)}
    formed = {k for k, v in data.items() if k not in named and _has_form(v)}
    found = named | formed
    words = set() if named else {k for k in _behind_id(obj) if k not in found and _is_words(obj[k])}
    try:
        base, task = read_task(_without(data, found | words), task_id, intake)
    except RecordError:
        if not words:
            raise
        # The data has an id of its own: what stands behind it is data too.
        words = set()
        base, task = read_task(_without(data, found), task_id, intake)
    results = [r for k in data if k in found for r in _results(k, data[k], config)]
    for name in (k for k in data if k in words):
        said = _results(name, data[name], None)
        if not any(_speaks(r, task) for r in said):
            results += [{**r, "type": "remark"} for r in said]
        elif formed:
            intake.warn(f"{name!r} is a choice or a remark and was left out: give --label_config")
        else:
            intake.warn(f"{name!r} was read as a choice: no labelling config was given")
            results += said
    return base, task, results


def _is_control(name: str, config: LabelConfig | None) -> bool:
    """Whether the config has this control; the Repeater's have their index in the name."""
    if config is None:
        return False
    repeated = (re.split(r"\{\{.*?\}\}", control) for control in config.kinds)
    patterns = (r"[0-9]+".join(map(re.escape, parts)) for parts in repeated)
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _has_form(value: Any) -> bool:
    """Whether a value has the form of results: an object, or objects, with one known key."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(_kind(v) is not None for v in values)


def _kind(value: Any) -> str | None:
    keys = value.keys() - EXTRAS if isinstance(value, dict) else ()
    return KINDS.get(next(iter(keys))) if len(keys) == 1 else None


def _behind_id(obj: Mapping[str, Any]) -> list[str]:
    """The keys between ``id`` and ``annotator``, where the converter writes the results."""
    names = list(obj)
    begin = names.index("id") + 1 if "id" in obj else len(names)
    return names[begin : names.index("annotator") if "annotator" in obj else begin]


def _is_words(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(v, str) for v in values)


def _without(data: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k not in names}


def _results(name: str, value: Any, config: LabelConfig | None) -> list[dict[str, Any]]:
    """A control's value as the results of the JSON export that it was made from."""
    given = config.kinds.get(name) if config else None
    targets = config.targets.get(name, ()) if config else ()
    made = []
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str):
            kind = given or "choices"
            part = {"choices" if kind == "choices" else "text": [part]}
        else:
            kind = _kind(part) or given or "other"
        result = {"from_name": name, "to_name": ",".join(targets), "type": kind, "value": part}
        made.append(result)
    return made


def _speaks(result: Mapping[str, Any], task: Task) -> bool:
    """Whether a choice names a candidate or a tie."""
    words = result["value"]["choices"]
    return any(is_tie(w) or candidate_named(w, task.ids, task.titles) for w in words)


FORMAT = Format(
    "label_studio_min", "Label Studio JSON-MIN export", matches, row_by_row(convert, votes_in)
)
