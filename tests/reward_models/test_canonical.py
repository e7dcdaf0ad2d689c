"""Canonical groups are read back as they were written, or refused by name."""

from __future__ import annotations

import pytest

from align.records import RecordError
from reward_models.annotations import FORMATS, Intake
from reward_models.annotations.base import Row, row_by_row
from reward_models.annotations.canonical import FORMAT

GROUP = {
    "group_id": "old",
    "prompt": [{"role": "user", "content": "问"}],
    "candidates": [
        {"id": "a", "content": "甲", "model": "m"},
        {"id": "b", "content": [{"role": "assistant", "content": "乙"}], "model": None},
    ],
    "judgements": [
        {"annotator": "x", "kind": "pair", "value": {"winner": "a", "loser": "b"},
         "strength": 2.0, "source": "s", "suspect": "display_order"},
        {"annotator": None, "kind": "rank", "value": {"a": 1, "b": None},
         "strength": None, "source": "", "suspect": None},
    ],
    "meta": {"任务": [1, None]},
}  # fmt: skip


def run(*objects):
    intake = Intake()
    made = [Row("g.jsonl", i, i, obj) for i, obj in enumerate(objects, 1)]
    return list(FORMAT.parse(made, intake)), intake


def changed(**fields):
    return {**GROUP, **fields}


def judged(**fields):
    return changed(judgements=[{**GROUP["judgements"][0], **fields}])


def test_a_group_comes_back_whole_with_its_content_key():
    (group,), intake = run(GROUP)
    assert {**group.to_json(), "group_id": "old"} == GROUP
    assert len(group.group_id) == 32
    assert (intake.rows.used, intake.votes.used) == (1, 2)


def test_the_same_group_twice_counts_once_and_other_votes_on_it_stay():
    groups, intake = run(GROUP, GROUP, judged(annotator="y"))
    assert len(groups) == 2
    assert groups[0].group_id == groups[1].group_id
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (3, {"duplicate_row": 2})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(judgements=[]), "no_judgements"),
        (changed(candidates=GROUP["candidates"][:1], judgements=[]), "no_judgements"),
        (changed(prompt=[]), "empty_prompt"),
        (changed(prompt="  "), "no_prompt"),
        (changed(candidates=[{"id": "a", "content": "x"}] * 2), "duplicate_candidate_id"),
        (judged(value={"winner": "a", "loser": "c"}), "unknown_candidate"),
        (judged(value={"tie": [["a"], ["b"]]}), "bad_record"),
        (judged(kind="opinion"), "bad_kind"),
        (judged(strength=float("nan")), "bad_value"),
        (judged(strength="much"), "bad_value"),
        (judged(strength=10**400), "bad_value"),
        (judged(suspect=["x"]), "bad_value"),
        (changed(meta={"a": float("inf")}), "bad_value"),
        (changed(candidates=GROUP["candidates"][1:] * 2), "duplicate_candidate_id"),
        ([1], "not_an_object"),
    ],
)
def test_what_cannot_be_used_is_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert intake.votes.used == 0


def test_votes_counted_before_a_row_was_dropped_are_taken_back():
    def convert(obj, intake):
        intake.vote()
        intake.drop_vote("cancelled")
        if obj == "bad":
            raise RecordError("no prompt", code="no_prompt")
        return object()

    intake = Intake()
    rows = [Row("x", i, i, obj) for i, obj in enumerate(["good", "bad"], 1)]
    assert len(list(row_by_row(convert, lambda obj: 3)(rows, intake))) == 1
    assert intake.votes.used == 1
    assert dict(intake.votes.dropped) == {"cancelled": 2, "no_prompt": 2}
    assert intake.votes.examples["no_prompt"] == "x:2"


def test_format_names_are_unique_and_every_format_is_described():
    names = [f.name for f in FORMATS]
    assert len(set(names)) == len(names)
    assert all(f.description for f in FORMATS)
