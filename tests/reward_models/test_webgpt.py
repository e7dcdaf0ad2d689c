"""Literal WebGPT comparisons → the exact groups."""

from __future__ import annotations

import json

import pytest

from align.records import Candidate, Judgement, Message
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.detect import detect
from reward_models.annotations.reading import read
from reward_models.annotations.webgpt import FORMAT, matches
from reward_models.preferences import targets

ROW = {
    "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": ["Sky (x.org)"], "extract": ["Light scatters."]},
    "answer_0": "Light scatters [1].",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": 0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "因为海是蓝的。",
    "tokens_1": {"prefix": [1], "completion": [3]},
    "score_1": -0.5,
}


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("w.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def changed(**fields):
    return {**ROW, **fields}


def test_a_comparison():
    (group,), intake = run(ROW)
    assert group.prompt == (Message("user", "Why is the sky blue?"),)
    assert group.candidates == (
        Candidate("0", "Light scatters [1]."), Candidate("1", "因为海是蓝的。"),
    )  # fmt: skip
    assert group.judgements == (
        Judgement(None, "pair", {"winner": "0", "loser": "1"}, 1.0, "webgpt"),
    )
    assert group.meta == {"source": "webgpt", "question_dataset": "eli5", "question_id": "q1"}
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.target, pair.margin) == (0, 1, 1.0, 1.0)
    assert intake.votes.used == 1


def test_the_second_answer_may_win():
    (group,), _ = run(changed(score_0=-0.25, score_1=0.25))
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.margin) == (1, 0, 0.5)


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_equal_scores_are_a_tie(zero):
    (group,), _ = run(changed(score_0=zero, score_1=0))
    assert group.judgements[0].value == {"tie": ["0", "1"]}
    assert targets(group)[0].target == 0.5
    assert targets(group, ties="drop") == []


def test_a_question_that_is_text():
    (group,), _ = run(changed(question="为什么？"))
    assert group.prompt == (Message("user", "为什么？"),)
    assert group.meta == {"source": "webgpt"}


def test_the_same_comparison_counts_once_also_with_its_sides_swapped():
    swapped = changed(answer_0=ROW["answer_1"], answer_1=ROW["answer_0"], score_0=-0.5, score_1=0.5)
    other = changed(score_0=1.0, score_1=-1.0)
    groups, intake = run(ROW, ROW, swapped, other)
    assert [g.judgements[0].strength for g in groups] == [1.0, 2.0]
    assert dict(intake.rows.dropped) == {"duplicate_row": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(score_0=None), "bad_score"),
        (changed(score_0=True, score_1=0), "bad_score"),
        (changed(score_0="0.5"), "bad_score"),
        (changed(score_1=float("nan")), "bad_score"),
        (changed(score_0=5, score_1=-5), "bad_score"),
        (changed(answer_1=""), "empty_candidate"),
        (changed(answer_1=ROW["answer_0"]), "identical_candidates"),
        (changed(answer_1=None), "not_text"),
        (changed(question={"full_text": ""}), "no_prompt"),
        (changed(question={"id": "q"}), "no_prompt"),
        (changed(question=["q"]), "not_text"),
        ({k: v for k, v in ROW.items() if k != "score_1"}, "missing_field"),
        ("q", "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == ({reason: 1} if isinstance(row, dict) else {})


def half(answer, score, question=ROW["question"]):
    return {"question": question, "quotes": {"title": [], "extract": []}, "answer": answer,
            "tokens": {"prefix": [1], "completion": [2]}, "score": score}  # fmt: skip


def test_the_authors_file_has_a_list_of_two_halves_on_each_line(tmp_path):
    lines = [
        [half("A", 0.5), half("B", -0.5)],
        [half("C", -1), half("D", 1)],
        [half("E", 0)],
        [half("F", 0.5), half("", -0.5)],
        [half("G", 0.5), half("H", -0.5, {"full_text": "another"})],
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert detect(path).format is FORMAT
    intake = Intake()
    groups = list(FORMAT.parse(read(path), intake))
    assert [[c.content for c in g.candidates] for g in groups] == [["A", "B"], ["C", "D"]]
    assert [g.judgements[0].value["winner"] for g in groups] == ["0", "1"]
    assert (intake.rows.used, intake.votes.used) == (4, 2)
    # E, G and H stand alone; F is dropped with its other half.
    assert dict(intake.rows.dropped) == {
        "missing_field": 3, "empty_candidate": 1, "other_half": 1,
    }  # fmt: skip


def test_matching_says_what_it_saw():
    assert matches(ROW) == "question, answer_0, score_0, answer_1 and score_1"
    assert matches(half("A", 1)) == (
        "halves of comparisons: question, quotes, answer, tokens and score"
    )
    for other in ({"question": "q", "answer": "a", "score": 1}, {"answer_0": "a"}, ["question"]):
        assert matches(other) is None
