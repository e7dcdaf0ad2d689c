"""Literal HelpSteer3 rows → the exact groups and targets."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained

from reward_models.annotations.helpsteer3 import FORMAT
from reward_models.preferences import targets

FIRST, SECOND = ("response1", "response2"), ("response2", "response1")


def row(overall=-2, *scores, **more):
    made = {
        "domain": "general", "language": "english",
        "context": [{"role": "user", "content": "Q"}],
        "response1": "A", "response2": "B", "overall_preference": overall,
        "individual_preference": [
            {"score": s, "reasoning": "…", "feedback1": "…", "feedback2": "…"} for s in scores
        ],
    }  # fmt: skip
    return {**made, **more}


def vote(winner, loser, strength):
    return {
        "annotator": None, "kind": "pair", "value": {"winner": winner, "loser": loser},
        "strength": strength, "source": "helpsteer3", "suspect": None,
    }  # fmt: skip


def test_a_row_becomes_one_group_with_a_vote_per_annotator():
    (group,), intake = run(
        FORMAT,
        row(
            1, 2, 1, -1,
            domain="multilingual",
            language="chinese",
            context=[
                {"role": "user", "content": "你好"},
                {"role": "assistant", "content": "你好！"},
                {"role": "user", "content": "讲个笑话"},
            ],
            response1="甲",
            response2="乙",
        ),
    )  # fmt: skip
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "你好！"},
            {"role": "user", "content": "讲个笑话"},
        ],
        "candidates": [
            {"id": "response1", "content": "甲", "model": None},
            {"id": "response2", "content": "乙", "model": None},
        ],
        "judgements": [vote(*SECOND, 2.0), vote(*SECOND, 1.0), vote(*FIRST, 1.0)],
        "meta": {
            "source": "helpsteer3",
            "domain": "multilingual",
            "language": "chinese",
            "overall_preference": 1,
        },
    }
    assert trained(group) == [(*SECOND, 0.666667, 1.0)]
    assert targets(group, margin=True)[0].margin == 1.5
    assert intake.votes.used == 3


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (-3, [(*FIRST, 1.0, 1.0)]),
        (-1, [(*FIRST, 1.0, 1.0)]),
        (0, [(*FIRST, 0.5, 1.0)]),
        (1, [(*SECOND, 1.0, 1.0)]),
        (3, [(*SECOND, 1.0, 1.0)]),
    ],
)
def test_below_zero_response_1_is_better_also_where_only_the_summary_is_given(score, expected):
    both = run(FORMAT, row(score, score))[0] + run(FORMAT, row(score))[0]
    assert [trained(group) for group in both] == [expected, expected]


def test_the_individual_votes_count_and_not_their_summary():
    # Two who find a tie and one who prefers response 1: (0.5 + 0.5 + 1) / 3.
    (group,), intake = run(FORMAT, row(2, 0, 0, -3))
    assert trained(group) == [(*FIRST, 0.666667, 1.0)]
    assert trained(group, ties="drop") == [(*FIRST, 1.0, 1.0)]
    assert intake.votes.used == 3


def test_votes_without_a_usable_score_are_counted():
    (group,), intake = run(FORMAT, row(-1, None, 4, "2", True, -2))
    assert [j.to_json() for j in group.judgements] == [vote(*FIRST, 2.0)]
    assert (intake.votes.used, dict(intake.votes.dropped)) == (1, {"no_score": 1, "bad_score": 3})
    # With none that is usable the summary is the vote.
    (group,), intake = run(FORMAT, row(-1, None, float("nan")))
    assert [j.to_json() for j in group.judgements] == [vote(*FIRST, 1.0)]
    assert (intake.votes.used, dict(intake.votes.dropped)) == (1, {"no_score": 1, "bad_score": 1})


@pytest.mark.parametrize(
    ("bad", "reason", "votes"),
    [
        (row(None), "no_score", {"no_score": 1}),
        (row(-4), "no_score", {"bad_score": 1}),
        (row(None, None, None), "no_score", {"no_score": 3}),
        (row(-1, individual_preference="x"), "bad_record", {"bad_record": 1}),
        (row(-1, 2, response2="A"), "identical_candidates", {"identical_candidates": 1}),
        (row(-1, 2, 1, response1="\n"), "empty_candidate", {"empty_candidate": 2}),
        (row(-1, response1=None), "not_text", {"not_text": 1}),
        (row(-1, context=[]), "no_prompt", {"no_prompt": 1}),
        (row(-1, context="[{'role': 'user'}]"), "bad_context", {"bad_context": 1}),
        (row(-1, context=None), "bad_context", {"bad_context": 1}),
        (row(-1, context=[{"role": "user"}]), "not_text", {"not_text": 1}),
        (row(-1, context=[{"role": "assistant", "content": "A"}]), "bad_role", {"bad_role": 1}),
        ({"context": [], "overall_preference": 1}, "missing_field", {"missing_field": 1}),
        ([], "not_an_object", {}),
    ],
)
def test_bad_rows_are_dropped_by_name(bad, reason, votes):
    groups, intake = run(FORMAT, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (0, votes)


def test_the_same_row_twice_counts_once_and_other_votes_on_the_pair_stay():
    groups, intake = run(FORMAT, row(1, 2, 0), row(1, 2, 0), row(1, 2, 1))
    assert len(groups) == 2
    assert groups[0].group_id == groups[1].group_id
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (4, {"duplicate_row": 2})


def test_detection():
    assert fitting(row()) == ["helpsteer3"]
    # The feedback subset has no preference.
    feedback = {"context": [], "response1": "A", "response2": "B", "feedback1": ["…"]}
    assert fitting(feedback) == []
