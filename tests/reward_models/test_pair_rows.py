"""Literal pair rows → the exact groups."""

from __future__ import annotations

import pytest

from align.records import Message
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.pairs import FORMAT, matches
from reward_models.preferences import targets

U, A = "user", "assistant"


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("p.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def msg(*turns):
    return [{"role": r, "content": c} for r, c in turns]


def test_strings_zh_and_en():
    groups, _ = run(
        {"prompt": "写一句", "chosen": "好", "rejected": "坏"},
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": 2},
    )
    assert groups[0].prompt == (Message(U, "写一句"),)
    assert [c.to_json() for c in groups[0].candidates] == [
        {"id": "chosen", "content": "好", "model": None},
        {"id": "rejected", "content": "坏", "model": None},
    ]
    assert groups[0].judgements[0].value == {"winner": "chosen", "loser": "rejected"}
    (pair,) = targets(groups[1], margin=True)
    assert (pair.a, pair.b, pair.target, pair.weight, pair.margin) == (0, 1, 1.0, 1.0, 2.0)


def test_a_shared_beginning_goes_to_the_prompt():
    shared = [(U, "q1"), (A, "a1"), (U, "q2")]
    (group,), _ = run({"chosen": msg(*shared, (A, "good")), "rejected": msg(*shared, (A, "bad"))})
    assert group.prompt == tuple(Message(*t) for t in shared)
    assert [c.content for c in group.candidates] == ["good", "bad"]


def test_a_prompt_repeated_in_both_answers_is_not_doubled():
    prompt = [(U, "q")]
    (group,), _ = run(
        {
            "prompt": msg(*prompt),
            "chosen": msg(*prompt, (A, "good")),
            "rejected": msg(*prompt, (A, "bad")),
        }
    )
    assert group.prompt == (Message(U, "q"),)
    assert [c.content for c in group.candidates] == ["good", "bad"]


def test_answers_that_diverge_early_keep_their_turns():
    (group,), _ = run(
        {
            "chosen": msg((U, "q"), (A, "x"), (U, "more"), (A, "good")),
            "rejected": msg((U, "q"), (A, "y"), (U, "why"), (A, "bad")),
        }
    )
    assert group.prompt == (Message(U, "q"),)
    assert group.candidates[0].content == (
        Message(A, "x"), Message(U, "more"), Message(A, "good"),
    )  # fmt: skip


def test_sharegpt_and_alpaca_rows():
    groups, _ = run(
        {
            "conversations": [{"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        {"instruction": "Say", "input": "hi", "chosen": "a", "rejected": "b", "system": "S"},
    )
    assert groups[0].prompt == (Message(U, "问"),)
    assert groups[1].prompt == (Message("system", "S"), Message(U, "Say\nhi"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "missing_field"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "no_prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical_candidates"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty_candidate"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "bad_message"),
        ({"chosen": msg((A, "a")), "rejected": msg((A, "b"))}, "no_prompt"),
        ({"chosen": msg((U, "q"), (A, "a")), "rejected": msg((U, "q"))}, "bad_role"),
        ({"prompt": "q", "chosen": [], "rejected": []}, "empty_candidate"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "target": 0.75}, "soft_target"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "target": True}, "soft_target"),
        ({"chosen": msg((U, "q"), (A, "a")), "rejected": msg((U, "r"), (A, "b"))}, "bad_role"),
        (["q", "a", "b"], "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}


def test_the_same_pair_twice_counts_once_and_the_opposite_stays():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    groups, intake = run(row, dict(row), {"prompt": "q", "chosen": "b", "rejected": "a"})
    assert len(groups) == 2
    assert groups[0].group_id == groups[1].group_id
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


def test_answers_that_part_at_a_question_share_less():
    (group,), _ = run(
        {
            "chosen": msg((U, "q"), (A, "x"), (U, "more"), (A, "good")),
            "rejected": msg((U, "q"), (A, "x"), (U, "why"), (A, "bad")),
        }
    )
    assert group.prompt == (Message(U, "q"),)
    assert [c.content[1].content for c in group.candidates] == ["more", "why"]


def test_scores_against_the_label_are_suspect_and_give_no_margin():
    groups, _ = run(
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 7, "score_rejected": 4.5},
        {"prompt": "q", "chosen": "c", "rejected": "d", "score_chosen": 1, "score_rejected": 3},
        {"prompt": "q", "chosen": "e", "rejected": "f", "margin": 10**400},
    )
    assert [(j.strength, j.suspect) for g in groups for j in g.judgements] == [
        (2.5, None),
        (None, "rejected_scores_higher"),
        (None, None),
    ]
    assert targets(groups[1], suspects="drop") == []


def test_a_derived_row_of_a_tie_is_a_tie():
    groups, _ = run(
        {"prompt": "q", "chosen": "a", "rejected": "b", "target": 0.5},
        {"prompt": "q", "chosen": "c", "rejected": "d", "target": 1.0},
        {"prompt": "q", "chosen": "e", "rejected": "f", "target": None},
    )
    assert [targets(g)[0].target for g in groups] == [0.5, 1.0, 1.0]


def test_matching_says_what_it_saw():
    assert matches({"prompt": "q", "chosen": "a", "rejected": "b"}) == "prompt, chosen and rejected"
    # A transcript without a prompt field is another format: guessing its turns would invert pairs.
    assert matches({"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"}) is None
