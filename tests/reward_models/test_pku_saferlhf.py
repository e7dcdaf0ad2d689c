"""Literal PKU-SafeRLHF rows → the exact groups and targets."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained

from reward_models.annotations.pku_saferlhf import FORMAT

ZERO, ONE = "response_0", "response_1"


def row(better=0, safer=1, **more):
    made = {
        "prompt": "Q", "response_0": "A", "response_1": "B",
        "is_response_0_safe": False, "is_response_1_safe": True,
        "better_response_id": better, "safer_response_id": safer,
    }  # fmt: skip
    return {**made, **more}


def test_a_row_becomes_one_group():
    (group,), intake = run(
        FORMAT,
        row(
            prompt="怎么开锁？",
            response_0="甲",
            response_1="乙",
            prompt_source="BeaverTails",
            response_0_source="Alpaca-7B",
            response_1_source="Alpaca3-8B",
            response_0_severity_level=2,
            response_1_severity_level=0,
            response_0_harm_category={"Cybercrime": True},
        ),
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [{"role": "user", "content": "怎么开锁？"}],
        "candidates": [
            {"id": ZERO, "content": "甲", "model": "Alpaca-7B"},
            {"id": ONE, "content": "乙", "model": "Alpaca3-8B"},
        ],
        "judgements": [
            {"annotator": None, "kind": "pair", "value": {"winner": ZERO, "loser": ONE},
             "strength": None, "source": "pku_saferlhf:better", "suspect": None},
        ],
        "meta": {
            "source": "pku_saferlhf",
            "criterion": "better",
            "prompt_source": "BeaverTails",
            "attributes": {
                ZERO: {"better": 1.0, "safer": 0.0, "safe": 0.0, "severity": 2.0},
                ONE: {"better": 0.0, "safer": 1.0, "safe": 1.0, "severity": 0.0},
            },
        },
    }  # fmt: skip
    assert trained(group) == [(ZERO, ONE, 1.0, 1.0)]
    assert intake.votes.used == 1


@pytest.mark.parametrize(("better", "winner"), [(0, ZERO), (1, ONE), (1.0, ONE), (0.0, ZERO)])
@pytest.mark.parametrize("safer", [0, 1, None])
def test_the_more_helpful_answer_wins_whichever_is_safer(better, winner, safer):
    (group,), _ = run(FORMAT, row(better, safer))
    assert group.judgements[0].value["winner"] == winner
    assert ("safer" in group.meta["attributes"][ZERO]) == (safer is not None)


def test_a_set_of_one_criterion_is_read():
    single = {"prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": 1}
    (group,), _ = run(FORMAT, single)
    assert trained(group) == [(ONE, ZERO, 1.0, 1.0)]
    assert group.meta["attributes"] == {ZERO: {"better": 0.0}, ONE: {"better": 1.0}}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(None), "no_preference"),
        (row(2), "unknown_winner"),
        (row(-1), "unknown_winner"),
        (row("0"), "unknown_winner"),
        (row(True), "unknown_winner"),
        (row(0.5), "unknown_winner"),
        (row(response_1="A"), "identical_candidates"),
        (row(response_1=""), "empty_candidate"),
        (row(response_1=["B"]), "not_text"),
        (row(prompt=None), "not_text"),
        (row(prompt=""), "no_prompt"),
        ({"prompt": "Q", ZERO: "A", ONE: "B", "safer_response_id": 1}, "missing_field"),
        (0, "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(bad, reason):
    groups, intake = run(FORMAT, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, intake.votes.total) == (0, int(isinstance(bad, dict)))


def test_the_same_row_twice_counts_once_and_the_opposite_stays():
    groups, intake = run(FORMAT, row(0), row(0), row(1))
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


def test_detection():
    assert fitting(row()) == ["pku_saferlhf"]
    # A row that only says which answer is safer is recognised, and its rows are dropped by name.
    assert fitting({"prompt": "Q", ZERO: "A", ONE: "B", "safer_response_id": 1}) == ["pku_saferlhf"]
