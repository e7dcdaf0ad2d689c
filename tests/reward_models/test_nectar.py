"""Literal Nectar rows → the exact groups and targets."""

from __future__ import annotations

from itertools import combinations

import pytest
from format_rows import fitting, run, trained
from hypothesis import given
from hypothesis import strategies as st

from reward_models.annotations.nectar import FORMAT

PROMPT = "\n\nHuman: Q\n\nAssistant: "
MODELS = ("gpt-4", "gpt-3.5-turbo", "gpt-3.5-turbo-instruct", "llama-2-7b-chat", "mistral-7b",
          "gpt-4-0613", "anthropic")  # fmt: skip


def answers(*ranks):
    return [
        {"answer": f"answer {m}", "model": m, "rank": r}
        for m, r in zip(MODELS, ranks, strict=False)
    ]


def row(*ranks, **more):
    made = {
        "prompt": PROMPT, "answers": answers(*ranks), "turns": 1, "num_responses": len(ranks),
        "source": ["lmsys-chat-1m"], "good_natured": True,
    }  # fmt: skip
    return {**made, **more}


def test_a_row_becomes_one_group():
    (group,), intake = run(
        FORMAT,
        row(
            prompt="\n\nHuman: 你好\n\nAssistant: 你好！\n\nHuman: 讲个笑话\n\nAssistant: ",
            answers=[
                {"answer": "甲", "model": "gpt-4", "rank": 2.0},
                {"answer": "乙", "model": "mistral-7b", "rank": 1.0},
            ],
            good_natured=False,
        ),
    )
    assert {**group.to_json(), "group_id": None} == {
        "group_id": None,
        "prompt": [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "你好！"},
            {"role": "user", "content": "讲个笑话"},
        ],
        "candidates": [
            {"id": "1", "content": "甲", "model": "gpt-4"},
            {"id": "2", "content": "乙", "model": "mistral-7b"},
        ],
        "judgements": [
            {"annotator": "gpt-4", "kind": "rank", "value": {"1": 2.0, "2": 1.0}, "strength": None,
             "source": "nectar", "suspect": None},
        ],
        "meta": {"source": "nectar", "good_natured": False, "subset": ["lmsys-chat-1m"]},
    }  # fmt: skip
    assert trained(group) == [("2", "1", 1.0, 1.0)]
    assert intake.votes.used == 1


def test_seven_answers_in_any_order_make_21_pairs_by_rank():
    ranks = (5.0, 1.0, 7.0, 3.0, 2.0, 6.0, 4.0)
    (group,), _ = run(FORMAT, row(*ranks))
    made = trained(group)
    assert len(made) == 21
    assert {weight for *_, weight in made} == {round(1 / 21, 6)}
    rank = dict(zip("1234567", ranks, strict=True))
    assert {(better, worse) for better, worse, *_ in made} == {
        (a, b) if rank[a] < rank[b] else (b, a) for a, b in combinations("1234567", 2)
    }


def test_equal_ranks_tie_and_a_null_rank_makes_no_pair():
    (group,), _ = run(FORMAT, row(1.0, None, 1.0, 2.0))
    third = 0.333333
    assert trained(group) == [
        ("1", "3", 0.5, third), ("1", "4", 1.0, third), ("3", "4", 1.0, third),
    ]  # fmt: skip


def test_an_answer_without_text_is_left_out_and_said():
    found = row(3.0, 1.0, 2.0)
    found["answers"][1]["answer"] = " "
    (group,), intake = run(FORMAT, found)
    assert [c.id for c in group.candidates] == ["1", "3"]
    assert trained(group) == [("3", "1", 1.0, 1.0)]
    assert dict(intake.warnings) == {
        "nectar: an answer without text was left out of its ranking": 1
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(1.0, float("nan")), "bad_rank"),
        (row(1.0, "2"), "bad_rank"),
        (row(1.0, True), "bad_rank"),
        (row(1.0, None, None), "no_rank"),
        (row(1.0), "one_candidate"),
        (row(), "one_candidate"),
        (row(1.0, 2.0, answers=["a", "b"]), "not_an_object"),
        (row(1.0, 2.0, answers=[{"answer": "a"}]), "missing_field"),
        (row(1.0, 2.0, answers=[{"answer": 1, "rank": 1}]), "not_text"),
        (row(1.0, 2.0, answers="a"), "bad_record"),
        (row(1.0, 2.0, prompt="Q"), "no_turns"),
        (row(1.0, 2.0, prompt=""), "no_turns"),
        (row(1.0, 2.0, prompt="\n\nHuman: \n\nAssistant: "), "empty_turn"),
        (row(1.0, 2.0, prompt="\n\nHuman: \n"), "no_prompt"),
        (row(1.0, 2.0, prompt="\n\nHuman: Q\n\nAssistant: A"), "bad_role"),
        (row(1.0, 2.0, prompt="\n\nAssistant: "), "bad_role"),
        (row(1.0, 2.0, prompt=None), "not_text"),
        ({"prompt": PROMPT}, "missing_field"),
        ("Q", "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(bad, reason):
    groups, intake = run(FORMAT, bad)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert (intake.votes.used, intake.votes.total) == (0, int(isinstance(bad, dict)))


def test_the_same_row_twice_counts_once():
    groups, intake = run(FORMAT, row(1.0, 2.0), row(1.0, 2.0), row(2.0, 1.0))
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}
    assert (intake.votes.used, dict(intake.votes.dropped)) == (2, {"duplicate_row": 1})


def test_detection():
    assert fitting(row(1.0, 2.0)) == ["nectar"]


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, None]), min_size=2, max_size=7))
def test_no_pair_is_ever_inverted(ranks):
    groups, _ = run(FORMAT, row(*ranks))
    known = [r for r in ranks if r is not None]
    assert len(groups) == (len(known) > 1)
    for group in groups:
        made = trained(group)
        assert len(made) == len(known) * (len(known) - 1) // 2
        for better, worse, target, _ in made:
            above, below = ranks[int(better) - 1], ranks[int(worse) - 1]
            assert above < below if target == 1.0 else above == below
