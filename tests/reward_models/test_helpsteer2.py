"""Literal HelpSteer2 rows, ratings and preferences → the exact groups and targets."""

from __future__ import annotations

import pytest
from format_rows import fitting, run, trained
from hypothesis import given
from hypothesis import strategies as st

from align.records import Message, RecordError
from reward_models.annotations.helpsteer2 import FORMAT, prompt_turns
from reward_models.annotations.helpsteer2_preference import FORMAT as PREFERENCE
from reward_models.preferences import targets

NAMES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def row(response, *ratings, prompt="Q", **more):
    return {
        "prompt": prompt,
        "response": response,
        **dict(zip(NAMES, ratings, strict=True)),
        **more,
    }


def pair(strength, **more):
    made = {
        "split": "train", "prompt": "Q", "response_1": "A", "response_2": "B",
        "preference_strength": strength, "preference_statement": "Response 1 is …",
        "preference_elaboration": "…",
    }  # fmt: skip
    return {**made, **more}


def test_rows_of_one_prompt_become_one_group():
    (group,), intake = run(
        FORMAT, row("甲", 3, 4, 4, 2, 1, prompt="问"), row("乙", 4, 3, 4, 1, 2, prompt="问")
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [{"role": "user", "content": "问"}],
        "candidates": [
            {"id": "1", "content": "甲", "model": None},
            {"id": "2", "content": "乙", "model": None},
        ],
        "judgements": [
            {"annotator": None, "kind": "score", "value": {"1": 3.0, "2": 4.0}, "strength": None,
             "source": "helpsteer2:helpfulness", "suspect": None},
        ],
        "meta": {
            "source": "helpsteer2",
            "attributes": {
                "1": {"helpfulness": 3.0, "correctness": 4.0, "coherence": 4.0, "complexity": 2.0,
                      "verbosity": 1.0},
                "2": {"helpfulness": 4.0, "correctness": 3.0, "coherence": 4.0, "complexity": 1.0,
                      "verbosity": 2.0},
            },
        },
    }  # fmt: skip
    assert trained(group) == [("2", "1", 1.0, 1.0)]
    assert targets(group, margin=True)[0].margin == 1.0
    assert (intake.rows.used, intake.votes.used) == (2, 2)


def test_prompts_are_grouped_wherever_their_rows_stand():
    groups, _ = run(
        FORMAT,
        row("a", 1, 1, 1, 1, 1, prompt="first"),
        row("b", 2, 2, 2, 2, 2, prompt="second"),
        row("c", 3, 3, 3, 3, 3, prompt="first"),
        row("d", 0, 0, 0, 0, 0, prompt="second"),
        row("e", 3, 1, 1, 1, 1, prompt="first"),
    )
    assert [g.prompt[0].content for g in groups] == ["first", "second"]
    assert [[c.content for c in g.candidates] for g in groups] == [["a", "c", "e"], ["b", "d"]]
    third = 0.333333
    # Equal helpfulness stays a tie, whatever the other ratings say.
    assert trained(groups[0]) == [
        ("2", "1", 1.0, third), ("3", "1", 1.0, third), ("2", "3", 0.5, third),
    ]  # fmt: skip
    assert trained(groups[1]) == [("1", "2", 1.0, 1.0)]


def test_a_prompt_that_differs_in_white_space_is_another():
    groups, intake = run(FORMAT, row("a", 1, 1, 1, 1, 1), row("b", 2, 2, 2, 2, 2, prompt="Q "))
    assert groups == []
    assert dict(intake.rows.dropped) == {"one_candidate": 2}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (0, {"one_candidate": 2})


def test_an_answer_that_stands_there_twice():
    first = row("a", 1, 1, 1, 1, 1)
    (group,), intake = run(
        FORMAT, first, dict(first), row("a", 4, 4, 4, 4, 4), row("b", 2, 2, 2, 2, 2)
    )
    assert group.judgements[0].value == {"1": 1.0, "2": 2.0}
    assert dict(intake.rows.dropped) == {"duplicate_row": 1, "second_rating": 1}
    assert intake.rows.examples == {"duplicate_row": "in.jsonl:2", "second_rating": "in.jsonl:3"}
    assert intake.rows.used == 2
    assert (intake.votes.used, dict(intake.votes.dropped)) == (
        2,
        {"duplicate_row": 1, "second_rating": 1},
    )


def test_a_rating_may_be_missing_but_not_helpfulness():
    (group,), _ = run(FORMAT, row("a", 1, None, 1, 1, 1), row("b", 2.5, 2, 2, 2, 2, verbosity=None))
    assert group.meta["attributes"] == {
        "1": {"helpfulness": 1.0, "coherence": 1.0, "complexity": 1.0, "verbosity": 1.0},
        "2": {"helpfulness": 2.5, "correctness": 2.0, "coherence": 2.0, "complexity": 2.0},
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("c", None, 1, 1, 1, 1), "no_score"),
        (row("c", [3, 4], 1, 1, 1, 1), "no_score"),
        (row("c", True, 1, 1, 1, 1), "no_score"),
        (row("c", 1, "2", 1, 1, 1), "no_score"),
        (row("c", float("nan"), 1, 1, 1, 1), "no_score"),
        (row("c", 5, 1, 1, 1, 1), "bad_score"),
        (row("c", 1, 1, -1, 1, 1), "bad_score"),
        (row(" ", 1, 1, 1, 1, 1), "empty_candidate"),
        (row(None, 1, 1, 1, 1, 1), "not_text"),
        (row("c", 1, 1, 1, 1, 1, prompt=None), "not_text"),
        (row("c", 1, 1, 1, 1, 1, prompt=""), "no_prompt"),
        ({"prompt": "Q", "response": "c"}, "missing_field"),
        (3, "not_an_object"),
    ],
)
def test_a_bad_row_is_dropped_alone(bad, reason):
    good = row("a", 1, 1, 1, 1, 1), row("b", 2, 2, 2, 2, 2)
    groups, intake = run(FORMAT, good[0], bad, good[1])
    assert [len(g.candidates) for g in groups] == [2]
    assert dict(intake.rows.dropped) == {reason: 1}
    votes = 0 if bad == 3 else 1
    assert (intake.votes.used, sum(intake.votes.dropped.values())) == (2, votes)


def test_turns_of_a_long_prompt():
    turns = "Hi,\nyou\n<extra_id_1>Assistant\n你好！\n\n再见\n<extra_id_1>User\nMore?"
    assert prompt_turns(turns) == [
        Message("user", "Hi,\nyou"),
        Message("assistant", "你好！\n\n再见"),
        Message("user", "More?"),
    ]
    # One turn stays as it is, and a marker inside a line is text.
    assert list(prompt_turns("  say <extra_id_1>User\n ")) == [
        Message("user", "  say <extra_id_1>User\n ")
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\n<extra_id_1>Assistant\nb", "bad_role"),
        ("a\n<extra_id_1>Assistant", "bad_role"),
        ("a\n<extra_id_1>User\nb", "bad_role"),
        ("<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "bad_role"),
        ("a\n<extra_id_1>Assistant\n\n<extra_id_1>User\nc", "empty_turn"),
        ("", "no_prompt"),
    ],
)
def test_prompts_that_have_no_such_turns(text, reason):
    with pytest.raises(RecordError) as error:
        prompt_turns(text)
    assert error.value.code == reason


@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_change_what_is_trained(order):
    rows = [row(f"r{i}", i % 3, 1, 1, 1, i % 2, prompt=f"p{i % 2}") for i in range(6)]

    def by_text(given_rows):
        found = []
        for group in run(FORMAT, *given_rows)[0]:
            text = {c.id: c.content for c in group.candidates}
            pairs = [(text[a], text[b]) for a, b, *_ in trained(group)]
            verbosity = {text[i]: a["verbosity"] for i, a in group.meta["attributes"].items()}
            found.append((group.prompt[0].content, sorted(pairs), sorted(verbosity.items())))
        return sorted(found)

    assert by_text(rows) == by_text([rows[i] for i in order]) == [
        ("p0", [("r2", "r0"), ("r2", "r4"), ("r4", "r0")], [("r0", 0.0), ("r2", 0.0), ("r4", 0.0)]),
        ("p1", [("r1", "r3"), ("r5", "r1"), ("r5", "r3")], [("r1", 1.0), ("r3", 1.0), ("r5", 1.0)]),
    ]  # fmt: skip


# --- preference rows


@pytest.mark.parametrize(
    ("strength", "expected", "margin"),
    [
        (-3, [("response_1", "response_2", 1.0, 1.0)], 3.0),
        (-1, [("response_1", "response_2", 1.0, 1.0)], 1.0),
        (0, [("response_1", "response_2", 0.5, 1.0)], None),
        (2, [("response_2", "response_1", 1.0, 1.0)], 2.0),
    ],
)
def test_preference_below_zero_is_for_response_1(strength, expected, margin):
    (group,), intake = run(PREFERENCE, pair(strength))
    assert trained(group) == expected
    assert targets(group, margin=True)[0].margin == margin
    assert intake.votes.used == 1


def test_a_preference_row_becomes_one_group():
    (group,), _ = run(
        PREFERENCE, pair(2, prompt="甲\n<extra_id_1>Assistant\n乙\n<extra_id_1>User\n丙")
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [
            {"role": "user", "content": "甲"},
            {"role": "assistant", "content": "乙"},
            {"role": "user", "content": "丙"},
        ],
        "candidates": [
            {"id": "response_1", "content": "A", "model": None},
            {"id": "response_2", "content": "B", "model": None},
        ],
        "judgements": [
            {"annotator": None, "kind": "pair",
             "value": {"winner": "response_2", "loser": "response_1"}, "strength": 2.0,
             "source": "helpsteer2_preference", "suspect": None},
        ],
        "meta": {"source": "helpsteer2_preference"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (pair(None), "bad_score"),
        (pair(-100), "bad_score"),
        (pair("2"), "bad_score"),
        (pair(float("nan")), "bad_score"),
        (pair(1, response_2="A"), "identical_candidates"),
        (pair(1, response_1=""), "empty_candidate"),
        (pair(1, prompt=" "), "no_prompt"),
        ({"prompt": "Q", "response_1": "A", "response_2": "B"}, "missing_field"),
        ("Q", "not_an_object"),
    ],
)
def test_bad_preference_rows_are_dropped_by_name(bad, reason):
    groups, intake = run(PREFERENCE, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, intake.votes.total) == (0, int(isinstance(bad, dict)))


def test_the_same_preference_twice_counts_once_and_the_opposite_stays():
    groups, intake = run(PREFERENCE, pair(1), pair(1), pair(-1))
    assert len(groups) == 2
    assert groups[0].group_id == groups[1].group_id
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


def test_detection():
    assert fitting(row("a", 1, 1, 1, 1, 1)) == ["helpsteer2"]
    assert fitting(pair(1)) == ["helpsteer2_preference"]
