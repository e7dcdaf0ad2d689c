"""Canonical groups: what ``import_annotations`` itself writes, so that imports can be merged."""

from __future__ import annotations

from types import NoneType
from typing import Any

from align.jsonl import short
from align.records import Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, row_by_row
from reward_models.annotations.fields import number


def matches(obj: Any) -> str | None:
    """Evidence that a row is a canonical group."""
    if isinstance(obj, dict) and {"prompt", "candidates", "judgements"} <= obj.keys():
        return "prompt, candidates and judgements"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One line → the same group, with its content key as id."""
    group = PreferenceGroup.from_json(obj)
    if not group.judgements:
        raise RecordError("no judgements", code="no_judgements")
    for judgement in group.judgements:
        _check(judgement)
    group = make_group(group.prompt, group.candidates, group.judgements, group.meta)
    # Judgements without an annotator would count twice if a file were given twice.
    if intake.seen("canonical", group.group_id, sorted(str(j.to_json()) for j in group.judgements)):
        raise RecordError("the same group stands earlier in the input", code="duplicate_row")
    for _ in group.judgements:
        intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """How many judgements a row holds."""
    judgements = obj.get("judgements") if isinstance(obj, dict) else None
    return len(judgements) if isinstance(judgements, list) else 0


def _check(judgement: Judgement) -> None:
    strength: Any = judgement.strength
    if strength is not None and number(strength) is None:
        raise RecordError(f"strength {short(strength)} is not a finite number", code="bad_value")
    if not isinstance(judgement.source, str) or not isinstance(judgement.suspect, (str, NoneType)):
        raise RecordError("source and suspect of a judgement must be text", code="bad_value")


FORMAT = Format(
    "canonical", "groups written by import_annotations", matches, row_by_row(convert, votes_in)
)
