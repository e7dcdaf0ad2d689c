"""Preference rows of every shape become groups; the rest is counted by reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config import UserError
from align.data.pairs import common_prompt, load_preferences, parse_group
from align.records import Judgement, Message, RecordError


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def shape(group):
    prompt = [m.content for m in group.prompt]
    return prompt, [c.content for c in group.candidates]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "写诗", "chosen": "好", "rejected": "坏"},
        {"prompt": [user("写诗")], "chosen": [bot("好")], "rejected": [bot("坏")]},
        {
            "prompt": "写诗",
            "chosen": [user("写诗"), bot("好")],
            "rejected": [user("写诗"), bot("坏")],
        },
        {"chosen": [user("写诗"), bot("好")], "rejected": [user("写诗"), bot("坏")]},
        {
            "conversations": [{"from": "human", "value": "写诗"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        {"instruction": "写诗", "input": "", "chosen": "好", "rejected": "坏"},
        {"prompt": "写诗", "chosen": [bot("好"), user("谢谢")], "rejected": "坏"},
        {
            "prompt": "写诗",
            "candidates": [{"id": "x", "content": "好"}, {"id": "y", "content": "坏"}],
            "judgements": [{"kind": "rank", "value": {"x": 1, "y": 2}}],
        },
    ],
)
def test_shapes(row):
    assert shape(parse_group(row, "f:1")) == (["写诗"], ["好", "坏"])


def test_pair_row_becomes_a_judgement_and_keeps_what_it_does_not_know():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2, "source": "s", "id": 7}
    group = parse_group(row, "f:1")
    verdict = {"winner": "chosen", "loser": "rejected"}
    assert group.judgements == (
        Judgement(None, "pair", verdict, strength=2, source="chosen_rejected"),
    )
    assert group.group_id == "7"
    assert group.meta == {"source": "s"}


def test_common_prefix_of_turns_goes_to_the_prompt():
    head = [user("1"), bot("2"), user("3")]
    group = parse_group({"chosen": [*head, bot("好")], "rejected": [*head, bot("坏")]}, "f:1")
    assert shape(group) == (["1", "2", "3"], ["好", "坏"])


def test_turns_that_diverge_early_stay_in_the_candidates():
    chosen = [user("1"), bot("2"), user("3"), bot("4")]
    rejected = [user("1"), bot("2"), user("5"), bot("6")]
    group = parse_group({"chosen": chosen, "rejected": rejected}, "f:1")
    # The user turns differ, so the shared answer before them must stay in both candidates.
    assert [m.content for m in group.prompt] == ["1"]
    assert [[m.content for m in c.messages] for c in group.candidates] == [
        ["2", "3", "4"],
        ["2", "5", "6"],
    ]


def test_one_answer_that_continues_the_other():
    chosen = [user("1"), bot("2"), user("3"), bot("4")]
    group = parse_group({"chosen": chosen, "rejected": chosen[:2]}, "f:1")
    assert [m.content for m in group.prompt] == ["1"]
    assert group.candidates[1].content == "2"
    assert [m.content for m in group.candidates[0].messages] == ["2", "3", "4"]


def test_system_column():
    row = {"system": "简短", "prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse_group(row, "f:1").prompt == (Message("system", "简短"), Message("user", "q"))
    turns = [user("q"), bot("a")], [user("q"), bot("b")]
    row = {"system": "简短", "chosen": turns[0], "rejected": turns[1]}
    assert [m.role for m in parse_group(row, "f:1").prompt] == ["system", "user"]


def two(**change):
    row = {
        "prompt": "q",
        "candidates": [{"id": "x", "content": "好"}, {"id": "y", "content": "坏"}],
        "judgements": [{"kind": "rank", "value": {"x": 1, "y": 2}}],
    }
    return {**row, **change}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "identical"),
        ({"prompt": "q", "chosen": [bot("a")], "rejected": [bot("a ")]}, "identical"),
        ({"prompt": "q", "chosen": "  ", "rejected": "a"}, "empty_completion"),
        ({"prompt": [user("q")], "chosen": [user("q")], "rejected": "a"}, "empty_completion"),
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, "empty_prompt"),
        ({"chosen": "a", "rejected": "b"}, "no_prompt"),
        ({"prompt": "q", "chosen": [user("a")], "rejected": [user("b")]}, "no_assistant"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "bad_message"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "bad_margin"),
        ({"prompt": "q", "answer": "a"}, "unknown_format"),
        (
            two(candidates=[{"id": "x", "content": "好"}], judgements=[]),
            "fewer_than_two_candidates",
        ),
        (two(judgements=[]), "no_judgement"),
        (two(candidates=[{"id": k, "content": "好"} for k in "xy"]), "identical"),
        (two(candidates=[{"id": k, "content": ""} for k in "xy"]), "empty_completion"),
        (two(judgements=[{"kind": "score", "value": {"z": 1}}]), "unknown_candidate"),
    ],
)
def test_reasons(row, reason):
    with pytest.raises(RecordError) as caught:
        parse_group(row, "f:1")
    assert caught.value.code == reason


@pytest.mark.parametrize("array", [True, False])
def test_every_row_is_accounted_for(tmp_path, array):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "", "rejected": "a"},
        {"prompt": "q", "chosen": "c", "rejected": "c"},
        two(),
    ]
    path = tmp_path / "p.json"
    text = json.dumps(rows) if array else "\n".join(json.dumps(row) for row in rows)
    path.write_text(text)
    groups, counts = load_preferences(path)
    assert [g.group_id for g in groups] == ["p.json:1", "p.json:5"]
    assert counts.to_json() == {
        "file": str(path),
        "used": 2,
        "dropped": {"empty_completion": 1, "identical": 2},
        "truncated": 0,
        "truncated_by": {},
        "examples": {"empty_completion": f"{path}:3", "identical": f"{path}:2"},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"prompt": "q", "chosen": "a", "rejected": "a"}', "no usable row: identical 1"),
        ('{"prompt": "q"', r"p\.jsonl:1: not JSON"),
        ('"text"', "expected an object"),
        ('[{"a": 1}, 3]', "expected an object"),
    ],
)
def test_unusable_files(tmp_path, text, words):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_preferences(path)
    assert caught.value.field == "data.preferences"


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        load_preferences(tmp_path / "none.jsonl")


turns = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), st.sampled_from(["甲", "b"])),
    max_size=6,
).map(tuple)


@given(turns, turns)
def test_common_prompt_loses_nothing(chosen, rejected):
    prompt, a, b = common_prompt(chosen, rejected)
    assert (prompt + a, prompt + b) == (chosen, rejected)
    if prompt:
        assert a[0].role == b[0].role == "assistant"
