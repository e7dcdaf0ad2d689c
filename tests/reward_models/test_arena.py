"""Literal Chatbot Arena battles → the exact groups."""

from __future__ import annotations

import json

import pytest

from align.records import Candidate, Judgement, Message
from reward_models.annotations import Intake
from reward_models.annotations.arena import FORMAT, matches
from reward_models.annotations.base import Row
from reward_models.preferences import targets

U, A = "user", "assistant"


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("a.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def msg(*turns):
    return [{"role": r, "content": c} for r, c in turns]


BATTLE = {
    "question_id": "q1", "model_a": "chatglm-6b", "model_b": "koala-13b", "winner": "model_b",
    "judge": "arena_user_973", "conversation_a": msg((U, "Q"), (A, "x")),
    "conversation_b": msg((U, "Q"), (A, "好")), "turn": 1, "anony": True, "language": "English",
    "tstamp": 1682351591.1322, "toxic_chat_tag": {"roberta-large": {"flagged": False}},
}  # fmt: skip
TABLE = {
    "id": 30192, "model_a": "gpt-4", "model_b": "vicuna", "prompt": '["Q1", "\\u95ee"]',
    "response_a": '["x1", "x2"]', "response_b": '["y1", "y2"]',
    "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
}  # fmt: skip


def battle(**fields):
    return {**BATTLE, **fields}


def table(**fields):
    return {**TABLE, **fields}


def test_a_battle_of_one_turn():
    (group,), intake = run(BATTLE)
    assert group.prompt == (Message(U, "Q"),)
    assert group.candidates == (
        Candidate("a", "x", "chatglm-6b"), Candidate("b", "好", "koala-13b"),
    )  # fmt: skip
    assert group.judgements == (
        Judgement("arena_user_973", "pair", {"winner": "b", "loser": "a"}, None, "arena"),
    )
    assert group.meta == {
        "source": "arena", "display_order": True, "question_id": "q1", "language": "English",
    }  # fmt: skip
    (pair,) = targets(group)
    assert (pair.a, pair.b, pair.target) == (1, 0, 1.0)
    assert intake.votes.used == 1


def test_answers_of_several_turns_are_whole_conversations():
    (group,), _ = run(
        battle(
            conversation_a=msg((U, "Q"), (A, "x1"), (U, "then?"), (A, "x2")),
            conversation_b=msg((U, "Q"), (A, "y1"), (U, "then?"), (A, "y2")),
        )
    )
    assert group.prompt == (Message(U, "Q"),)
    assert [c.content for c in group.candidates] == [
        (Message(A, "x1"), Message(U, "then?"), Message(A, "x2")),
        (Message(A, "y1"), Message(U, "then?"), Message(A, "y2")),
    ]


def test_what_both_models_said_alike_is_prompt():
    shared = ((U, "hi"), (A, "hello"), (U, "Q"))
    (group,), _ = run(
        battle(
            conversation_a=msg(*shared, (A, "x")),
            conversation_b=msg(*shared, (A, "y")),
        )
    )
    assert group.prompt == tuple(Message(*turn) for turn in shared)
    assert [c.content for c in group.candidates] == ["x", "y"]


@pytest.mark.parametrize(
    ("winner", "value", "both_bad"),
    [
        ("model_a", {"winner": "a", "loser": "b"}, None),
        ("model_b", {"winner": "b", "loser": "a"}, None),
        ("tie", {"tie": ["a", "b"]}, None),
        ("tie (bothbad)", {"tie": ["a", "b"]}, 1),
        ("both_bad", {"tie": ["a", "b"]}, 1),
    ],
)
def test_winners_and_ties(winner, value, both_bad):
    (group,), _ = run(battle(winner=winner))
    assert group.judgements[0].value == value
    assert group.meta.get("both_bad") == both_bad
    assert targets(group)[0].target == (0.5 if "tie" in value else 1.0)


def test_a_vote_with_the_names_visible_is_suspect():
    groups, _ = run(battle(anony=False), battle(question_id="q2", anony=None))
    assert [g.judgements[0].suspect for g in groups] == ["models_visible", None]
    assert targets(groups[0], suspects="drop") == []


def test_conversations_in_json_and_content_in_text_parts():
    def parts(text):
        return [{"type": "text", "text": text, "image": None, "mimeType": None}]

    later = {
        "id": "b2f1", "model_a": "x", "model_b": "y", "winner": "both_bad",
        "conversation_a": msg((U, parts("Q")), (A, parts("x"))),
        "conversation_b": msg((U, parts("Q")), (A, parts("y"))),
    }  # fmt: skip
    as_text = {**BATTLE, "conversation_a": json.dumps(BATTLE["conversation_a"])}
    groups, _ = run(later, as_text)
    assert [[c.content for c in g.candidates] for g in groups] == [["x", "y"], ["x", "好"]]
    assert groups[0].meta == {
        "source": "arena", "display_order": True, "id": "b2f1", "both_bad": 1,
    }  # fmt: skip


def test_the_table_with_one_list_a_column():
    (group,), _ = run(TABLE)
    assert group.prompt == (Message(U, "Q1"),)
    assert group.candidates == (
        Candidate("a", (Message(A, "x1"), Message(U, "问"), Message(A, "x2")), "gpt-4"),
        Candidate("b", (Message(A, "y1"), Message(U, "问"), Message(A, "y2")), "vicuna"),
    )
    assert group.judgements[0].annotator is None
    assert group.judgements[0].value == {"winner": "a", "loser": "b"}
    assert group.meta == {"source": "arena", "display_order": True, "id": 30192}


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ((0, 1, 0), {"winner": "b", "loser": "a"}),
        ((0, 0, 1), {"tie": ["a", "b"]}),
        (("1", "0", "0"), {"winner": "a", "loser": "b"}),
        (("0.0", "1.0", "0.0"), {"winner": "b", "loser": "a"}),
        ((False, False, True), {"tie": ["a", "b"]}),
    ],
)
def test_the_winner_columns(flags, value):
    (group,), _ = run(table(winner_model_a=flags[0], winner_model_b=flags[1], winner_tie=flags[2]))
    assert group.judgements[0].value == value


def test_plain_text_in_the_table_and_a_winner_column():
    plain = {"id": "x", "prompt": "[1] 是什么？", "response_a": "[\"a\"", "response_b": "b",
             "winner": "model_b"}  # fmt: skip
    (group,), _ = run(plain)
    assert group.prompt == (Message(U, "[1] 是什么？"),)
    assert [c.content for c in group.candidates] == ['["a"', "b"]
    assert group.judgements[0].value == {"winner": "b", "loser": "a"}


def test_one_vote_given_twice_counts_once_and_another_judge_stays():
    groups, intake = run(BATTLE, BATTLE, battle(judge="other"), battle(winner="model_a"))
    assert len(groups) == 3
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (battle(winner="model_c"), "unknown_winner"),
        (battle(winner=None), "unknown_winner"),
        (battle(winner=["model_a"]), "unknown_winner"),
        (table(winner_model_a=0), "unknown_winner"),
        (table(winner_tie=1), "unknown_winner"),
        (table(winner_tie=0.5), "unknown_winner"),
        (table(winner_tie="no"), "unknown_winner"),
        (table(winner_tie=None), "unknown_winner"),
        (battle(conversation_b=[]), "empty_candidate"),
        (battle(conversation_b=msg((U, "Q"))), "empty_candidate"),
        (battle(conversation_b=msg((U, "Q"), (A, ""))), "empty_candidate"),
        (battle(conversation_a=msg((U, "Q"), (A, ""), (U, "then"), (A, "x")),
                conversation_b=msg((U, "Q"), (A, "y"), (U, "then"), (A, "z"))), "empty_candidate"),
        (battle(conversation_b=BATTLE["conversation_a"]), "identical_candidates"),
        (battle(conversation_b=msg((U, "R"), (A, "y"))), "user_turns_differ"),
        (battle(conversation_b=msg((U, "Q"), (A, "y"), (U, "more"), (A, "z"))),
         "user_turns_differ"),
        (battle(conversation_a=msg((U, "Q"), (A, "x"), (U, "more")),
                conversation_b=msg((U, "Q"), (A, "y"), (U, "more"))), "bad_role"),
        (battle(conversation_a=msg((A, "x")), conversation_b=msg((A, "y"))), "no_prompt"),
        (battle(conversation_a=msg((U, " "), (A, "x")), conversation_b=msg((U, " "), (A, "y"))),
         "no_prompt"),
        (battle(conversation_b="[{"), "bad_message"),
        (battle(conversation_b=["Q", "A"]), "bad_message"),
        (battle(conversation_b=msg(("cat", "Q"), (A, "x"))), "bad_role"),
        (battle(conversation_b=msg((U, [{"type": "text", "text": "Q", "image": {"b": 1}}]),
                                   (A, "y"))), "not_text"),
        ({"conversation_a": [], "winner": "tie"}, "empty_candidate"),
        (battle(conversation_a=None), "bad_message"),
        (table(response_b='["y1"]'), "uneven_turns"),
        (table(prompt="Q"), "uneven_turns"),
        (table(response_b='["y1", null]'), "empty_candidate"),
        (table(prompt="[]", response_a="[]", response_b="[]"), "empty_candidate"),
        (table(response_b=None), "not_text"),
        (table(response_b=[1, 2]), "not_text"),
        ({"prompt": "Q", "response_a": "A"}, "missing_field"),
        ("Q", "not_an_object"),
    ],
)  # fmt: skip
def test_bad_rows_are_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == ({reason: 1} if isinstance(row, dict) else {})


def test_matching_says_what_it_saw():
    assert matches(BATTLE) == "conversation_a, conversation_b and winner"
    assert matches(TABLE) == (
        "prompt, response_a, response_b and winner_model_a, winner_model_b, winner_tie"
    )
    plain = {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "tie"}
    assert matches(plain) == "prompt, response_a, response_b and winner"
    # Without Arena's own words for the winner the columns are anybody's.
    for other in ({**plain, "winner": "A"}, {"prompt": "Q", "response_a": "A"}, ["prompt"]):
        assert matches(other) is None
