"""doccano 1.8 text classification, exported as JSONL or JSON inside a zip.

    {"id": 1, "text": "Q", "label": ["A"], "Comments": [], "answer_a": "…", "answer_b": "…"}

doccano knows texts and labels only: the answers are columns of the imported data, which come back
beside ``text``, and the label names one of them or a tie. A collaborative project gives
``all.jsonl``, where nothing says who labelled; any other project gives one file per member, named
by the username. So the annotator is the name of the row's file, and rows of ``all`` have none.
Every member's file holds all texts of the project; those without a label are no votes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.records import Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.layout import (
    PROMPT_FIELDS,
    answers_of,
    candidate_sets,
    find_layout,
)
from reward_models.annotations.naming import read_words, says_both_bad

# The whole task may be in "text"; a column of its own tells the prompt better.
PROMPTS = (*PROMPT_FIELDS, "text")
EVERYBODY = "all"
INTERFACE = ("id", "label", "cats", "Comments")


def matches(obj: Any) -> str | None:
    """Evidence that a row is a labelled text of doccano."""
    if not isinstance(obj, dict) or not isinstance(obj.get("text"), str):
        return None
    labels = obj.get("label", obj.get("cats"))
    if not isinstance(labels, list):
        return None
    if isinstance(obj.get("Comments"), list):
        return "text, a list of labels and Comments"
    if "id" in obj and candidate_sets(_data(obj), "text"):
        return "id, text, a list of labels and answers"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One labelled text → one group with one vote."""
    if not isinstance(obj, dict) or not isinstance(obj.get("label", obj.get("cats")), list):
        raise RecordError("expected an object with a list of labels", code="not_a_task")
    data, config = _data(obj), intake.options.label_config
    layout = find_layout(data, config, PROMPTS)
    prompt = prompt_messages(data.get(layout.prompt) if layout.prompt else None, data.get("system"))
    answers = answers_of(data, layout)
    meta: dict[str, Any] = {"source": "doccano"}
    if isinstance(obj.get("id"), (int, str)):
        meta["example_id"] = obj["id"]
    labels = obj.get("label", obj.get("cats"))
    if not labels:
        raise RecordError("nobody labelled this text", code="no_annotations")
    pairs = read_words(labels, answers.ids, answers.titles, question="label", warn=intake.warn)
    if says_both_bad(labels, answers.ids):
        meta["both_bad"] = 1
    annotator = _annotator(intake)
    votes = [Judgement(annotator, "pair", pair, source="doccano:label") for pair in pairs]
    group = make_group(prompt, answers.candidates, votes, meta)
    if intake.seen("doccano", group.group_id, obj.get("id"), annotator):
        raise RecordError("the same text and annotator stand earlier", code="duplicate_annotation")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote, unless it has no label."""
    return int(isinstance(obj, dict) and bool(obj.get("label", obj.get("cats"))))


def _data(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in obj.items() if k not in INTERFACE}


def _annotator(intake: Intake) -> str | None:
    stem = intake.row.stem if intake.row else ""
    if stem in ("", EVERYBODY):
        intake.warn("all.jsonl of a collaborative project does not say who labelled")
        return None
    return stem


FORMAT = Format("doccano", "doccano text classification", matches, row_by_row(convert, votes_in))
