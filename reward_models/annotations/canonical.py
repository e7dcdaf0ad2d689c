"""Canonical groups: what ``import_annotations`` itself writes, so that imports can be merged."""

from __future__ import annotations

from typing import Any

from align.records import PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, row_by_row


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
    for _ in group.judgements:
        intake.vote()
    return make_group(group.prompt, group.candidates, group.judgements, group.meta)


FORMAT = Format("canonical", "groups written by import_annotations", matches, row_by_row(convert))
