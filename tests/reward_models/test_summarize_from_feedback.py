"""Literal comparisons of summaries → the exact groups."""

from __future__ import annotations

import pytest

from align.records import Candidate, Judgement, Message
from reward_models.annotations import Intake
from reward_models.annotations.base import Row, merge
from reward_models.annotations.summarize_from_feedback import FORMAT, matches
from reward_models.preferences import targets

ROW = {
    "info": {"id": "t3_1", "post": "My cat\nleft.", "title": "Help", "subreddit": "cats",
             "site": None, "article": None},
    "summaries": [
        {"text": " cat gone", "policy": "sup2", "note": "unclear"},
        {"text": " my cat left ", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "w1",
    "batch": "batch9",
    "split": "train",
    "extra": {"confidence": 8},
}  # fmt: skip
AXIS = {
    "info": {"id": "a1", "site": "cnn", "title": "T", "article": "Text."},
    "split": "test",
    "summary": {"text": "short", "policy": "ref", "note": "", "axes": {"overall": 3}},
    "worker": "w1",
    "batch": "cnndm1",
}


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("s.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def changed(**fields):
    return {**ROW, **fields}


def test_a_comparison():
    (group,), intake = run(ROW)
    assert group.prompt == (
        Message("user", "SUBREDDIT: r/cats\n\nTITLE: Help\n\nPOST: My cat\nleft.\n\nTL;DR:"),
    )
    assert group.candidates == (
        Candidate("0", "cat gone", "sup2"), Candidate("1", "my cat left", "ref"),
    )  # fmt: skip
    assert group.judgements == (
        Judgement("w1", "pair", {"winner": "1", "loser": "0"}, None, "summarize_from_feedback"),
    )
    assert group.meta == {
        "source": "summarize_from_feedback", "post_id": "t3_1", "batch": "batch9",
        "source_split": "train", "confidence": 8,
    }  # fmt: skip
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.target, pair.weight, pair.margin) == (1, 0, 1.0, 1.0, None)
    assert intake.votes.used == 1


def test_choice_0_prefers_the_first():
    (group,), _ = run(changed(choice=0))
    assert group.judgements[0].value == {"winner": "0", "loser": "1"}


def test_an_article_and_a_chinese_post_without_title():
    groups, _ = run(
        changed(info={"id": "a", "article": "News.", "title": "T", "post": None}),
        changed(info={"id": "b", "post": "猫走了。", "subreddit": None}),
    )
    assert [g.prompt[0].content for g in groups] == [
        "Article:\nNews.\n\nTL;DR:", "POST: 猫走了。\n\nTL;DR:",
    ]  # fmt: skip


def test_several_workers_on_one_comparison_are_one_group_of_votes():
    swapped = changed(worker="w3", choice=0, summaries=ROW["summaries"][::-1])
    groups, _ = run(ROW, changed(worker="w2", choice=0), swapped)
    assert len({g.group_id for g in groups}) == 1
    merged = merge(groups)
    assert [(j.annotator, j.value["winner"]) for j in merged.judgements] == [
        ("w1", "1"), ("w2", "0"), ("w3", "1"),
    ]  # fmt: skip
    assert targets(merged)[0].target == pytest.approx(2 / 3)


def test_one_vote_given_twice_counts_once():
    groups, intake = run(ROW, ROW, changed(worker="w2"))
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_row": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (AXIS, "single_summary"),
        (changed(choice=2), "unknown_winner"),
        (changed(choice=True), "unknown_winner"),
        (changed(choice=None), "unknown_winner"),
        (changed(choice=[1]), "unknown_winner"),
        (changed(summaries=ROW["summaries"][:1]), "not_a_pair"),
        (changed(summaries=ROW["summaries"] * 2), "not_a_pair"),
        (changed(summaries=None), "not_a_pair"),
        (changed(summaries=[{"text": "a"}, {"text": " a"}]), "identical_candidates"),
        (changed(summaries=[{"text": "a"}, {"text": " "}]), "empty_candidate"),
        (changed(summaries=[{"text": "a"}, {"text": None}]), "not_text"),
        (changed(summaries=[{"text": "a"}, {"policy": "x"}]), "missing_field"),
        (changed(summaries=["a", "b"]), "not_an_object"),
        (changed(info={"id": "x", "title": "T"}), "no_prompt"),
        (changed(info="post"), "not_an_object"),
        (changed(extra={"confidence": float("nan")}), "bad_value"),
        ({"info": {}, "summaries": []}, "missing_field"),
        (3, "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == ({reason: 1} if isinstance(row, dict) else {})


def test_matching_says_what_it_saw():
    assert matches(ROW) == "info, summaries and choice"
    assert matches(AXIS) == "info and a summary with axes (ratings, no comparisons)"
    for other in ({"info": {}, "summary": "x"}, {"summaries": [], "choice": 0}, [1]):
        assert matches(other) is None
