"""Literal SHP rows → the exact groups."""

from __future__ import annotations

import pytest

from align.records import Candidate, Message, prompt_key
from reward_models.annotations import Intake
from reward_models.annotations.base import Row
from reward_models.annotations.shp import FORMAT, matches
from reward_models.importing import split_of
from reward_models.preferences import targets

ROW = {
    "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "Why?",
    "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "score_A": 40, "score_B": 10,
    "human_ref_A": "because", "human_ref_B": "不知道", "labels": 1,
    "seconds_difference": 10.0, "score_ratio": 4.0,
}  # fmt: skip


def run(*rows):
    intake = Intake()
    groups = list(FORMAT.parse([Row("s.jsonl", i, i, r) for i, r in enumerate(rows, 1)], intake))
    assert intake.rows.total == len(rows)
    return groups, intake


def changed(**fields):
    return {**ROW, **fields}


def test_label_1_prefers_a():
    (group,), intake = run(ROW)
    assert group.prompt == (Message("user", "Why?"),)
    assert group.candidates == (Candidate("A", "because"), Candidate("B", "不知道"))
    (judgement,) = group.judgements
    assert (judgement.annotator, judgement.kind) == (None, "pair")
    assert judgement.value == {"winner": "A", "loser": "B"}
    assert judgement.strength == pytest.approx(1.3862944)  # log 4
    assert (judgement.source, judgement.suspect) == ("shp", None)
    assert group.meta == {
        "source": "shp", "post_id": "qt3nxl", "domain": "askculinary_train",
        "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "score_A": 40, "score_B": 10,
    }  # fmt: skip
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.target) == (0, 1, 1.0)
    assert pair.margin == pytest.approx(1.3862944)
    assert intake.votes.used == 1


def test_label_0_prefers_b_and_the_strength_stays_above_0():
    (group,), _ = run(changed(labels=0, score_A=10, score_B=40))
    assert group.judgements[0].value == {"winner": "B", "loser": "A"}
    assert group.judgements[0].strength == pytest.approx(1.3862944)


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({"score_A": None}, 1.3862944),  # score_ratio stands in
        ({"score_A": None, "score_ratio": None}, None),
        ({"score_A": None, "score_ratio": 0.25}, None),
        ({"score_B": 0}, None),
        ({"score_B": -3}, None),
        ({"score_A": 10}, 0.0),
    ],
)
def test_strength_without_usable_scores(fields, strength):
    (group,), _ = run(changed(**fields))
    assert group.judgements[0].strength == (strength and pytest.approx(strength))
    assert group.judgements[0].suspect is None


def test_a_label_against_the_scores_is_suspect_and_has_no_strength():
    (group,), _ = run(changed(labels=0))
    assert group.judgements[0].value == {"winner": "B", "loser": "A"}
    assert group.judgements[0].suspect == "rejected_scores_higher"
    assert group.judgements[0].strength is None
    assert targets(group, suspects="drop") == []


def test_pairs_of_one_post_are_groups_of_one_prompt_in_one_split():
    groups, _ = run(ROW, changed(human_ref_B="maybe"), changed(history=" why? ", human_ref_B="x"))
    assert len({g.group_id for g in groups}) == 3
    assert len({split_of(prompt_key(g.prompt), (0.5, 0.25, 0.25), 0) for g in groups}) == 1


def test_one_pair_given_twice_counts_once_also_with_its_sides_swapped():
    swapped = changed(human_ref_A="不知道", human_ref_B="because", labels=0, score_A=10, score_B=40)
    groups, intake = run(ROW, ROW, swapped)
    assert len(groups) == 1
    assert dict(intake.rows.dropped) == {"duplicate_row": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(labels=2), "unknown_winner"),
        (changed(labels=None), "unknown_winner"),
        (changed(labels=True), "unknown_winner"),
        (changed(labels="1"), "unknown_winner"),
        (changed(human_ref_A=" "), "empty_candidate"),
        (changed(human_ref_A="不知道"), "identical_candidates"),
        (changed(human_ref_A=None), "not_text"),
        (changed(history=""), "no_prompt"),
        (changed(history=None), "not_text"),
        ({"history": "Q", "labels": 1}, "missing_field"),
        (None, "not_an_object"),
    ],
)
def test_bad_rows_are_dropped_by_name(row, reason):
    groups, intake = run(row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == ({reason: 1} if isinstance(row, dict) else {})


def test_matching_says_what_it_saw():
    assert matches(ROW) == "history, human_ref_A, human_ref_B and labels"
    for other in ({"history": "Q", "labels": 1}, ["history"]):
        assert matches(other) is None
