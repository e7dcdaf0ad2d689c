"""Literal AlpacaEval annotations → the exact groups and targets."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained
from hypothesis import given
from hypothesis import strategies as st

from align.records import Message
from reward_models.annotations.alpaca_eval import FORMAT

FIRST, SECOND = ("output_1", "output_2"), ("output_2", "output_1")


def row(preference=1, **more):
    made = {
        "instruction": "Q", "output_1": "A", "output_2": "B", "generator_1": "davinci",
        "generator_2": "gpt4", "annotator": "j", "preference": preference,
    }  # fmt: skip
    return {**made, **more}


def test_a_row_becomes_one_group():
    (group,), intake = run(
        FORMAT, row(1.4, instruction="写一句", output_1="甲", output_2="乙", dataset="koala")
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [{"role": "user", "content": "写一句"}],
        "candidates": [
            {"id": "output_1", "content": "甲", "model": "davinci"},
            {"id": "output_2", "content": "乙", "model": "gpt4"},
        ],
        "judgements": [
            {"annotator": "j", "kind": "pair",
             "value": {"winner": "output_1", "loser": "output_2", "p": 0.6}, "strength": None,
             "source": "alpaca_eval", "suspect": None},
        ],
        "meta": {"source": "alpaca_eval", "dataset": "koala"},
    }  # fmt: skip
    assert trained(group) == [(*FIRST, 0.6, 1.0)]
    assert intake.votes.used == 1


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (1, (*FIRST, 1.0, 1.0)),
        (2, (*SECOND, 1.0, 1.0)),
        (2.0, (*SECOND, 1.0, 1.0)),
        (1.5, (*FIRST, 0.5, 1.0)),
        (0, (*FIRST, 0.5, 1.0)),
        (0.0, (*FIRST, 0.5, 1.0)),
        (1.25, (*FIRST, 0.75, 1.0)),
        (1.9, (*SECOND, 0.9, 1.0)),
    ],
)
def test_what_a_preference_says(preference, expected):
    (group,), _ = run(FORMAT, row(preference))
    assert trained(group) == [expected]


@given(st.floats(1.0, 2.0))
def test_no_probability_is_rounded(preference):
    (group,), _ = run(FORMAT, row(preference))
    ((better, _, target, _),) = trained(group)
    second = target if better == "output_2" else 1.0 - target
    assert 1.0 + second == pytest.approx(preference, abs=1e-6)


def test_several_annotators_are_several_votes():
    groups, intake = run(FORMAT, row(1, annotator="j"), row(1, annotator="k"), row(2, annotator=3))
    assert {g.group_id for g in groups} == {groups[0].group_id}
    assert [g.judgements[0].annotator for g in groups] == ["j", "k", "3"]
    assert intake.votes.used == 3


def test_the_same_row_twice_counts_once():
    groups, intake = run(
        FORMAT,
        row(1),
        row(1),
        row(2),
        row(1, annotator_index=1),
        row(1, output_1="B", output_2="A"),
    )
    assert len(groups) == 4
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (4, {"duplicate_row": 1})


def test_an_input_field_belongs_to_the_instruction():
    (group,), _ = run(FORMAT, row(instruction="Translate.", input="你好"))
    assert group.prompt == (Message("user", "Translate.\n你好"),)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(None), "no_preference"),
        (row(float("nan")), "no_preference"),
        (row(float("inf")), "bad_preference"),
        (row("1"), "bad_preference"),
        (row(True), "bad_preference"),
        (row(3), "bad_preference"),
        (row(0.5), "bad_preference"),
        (row(-1), "bad_preference"),
        (row(output_2="A"), "identical_candidates"),
        (row(output_2="  "), "empty_candidate"),
        (row(output_2=None), "not_text"),
        (row(instruction=""), "no_prompt"),
        (row(instruction=None), "not_text"),
        ({"instruction": "Q", "output_1": "A", "output_2": "B"}, "missing_field"),
        ([row()], "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(bad, reason):
    groups, intake = run(FORMAT, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, intake.votes.total) == (0, int(isinstance(bad, dict)))


def test_detection():
    assert fitting(row()) == ["alpaca_eval"]
