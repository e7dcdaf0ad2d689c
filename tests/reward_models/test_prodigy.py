"""Literal Prodigy choice rows → the exact groups, votes, targets and counts."""

from __future__ import annotations

import json

import pytest
from samples import SAMPLES

from align.config_errors import UserError
from align.records import Message
from reward_models.annotations import Intake, Options
from reward_models.annotations.base import Row, merge
from reward_models.annotations.label_config import load_label_config
from reward_models.annotations.prodigy import FORMAT, matches
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

OPTIONS = [{"id": "A", "text": "first answer"}, {"id": "B", "text": "second answer"}]


def row(accept=("A",), answer="accept", options=OPTIONS, **more):
    return {
        "text": "Q", "options": options, "accept": [*accept], "answer": answer,
        "_input_hash": 1, "_task_hash": 2, "_session_id": "d-al", "_annotator_id": "d-al",
        "_view_id": "choice", "_timestamp": 1700000000, **more,
    }  # fmt: skip


def run(rows, **options):
    intake = Intake(Options(**options))
    made = [Row("x.jsonl", i, i, obj) for i, obj in enumerate(rows, 1)]
    groups = list(FORMAT.parse(made, intake))
    assert len(rows) == intake.rows.total
    assert intake.votes.total == sum(isinstance(obj, dict) for obj in rows)
    return groups, intake


def values(group):
    return [j.value for j in group.judgements]


def test_an_accepted_option_gives_the_exact_group():
    (group,), intake = run([row()])
    assert group.prompt == (Message("user", "Q"),)
    assert [c.to_json() for c in group.candidates] == [
        {"id": "A", "content": "first answer", "model": None},
        {"id": "B", "content": "second answer", "model": None},
    ]
    assert [j.to_json() for j in group.judgements] == [
        {
            "annotator": "d-al", "kind": "pair", "value": {"winner": "A", "loser": "B"},
            "strength": None, "source": "prodigy:choice", "suspect": None,
        },
    ]  # fmt: skip
    assert group.meta == {"source": "prodigy", "display_order": True}
    assert [p.to_json() for p in targets(group)] == [
        {"a": 0, "b": 1, "target": 1.0, "weight": 1.0, "margin": None}
    ]
    assert not intake.warnings


def test_the_best_of_three_beats_the_two_others():
    options = [{"id": 1, "text": "甲"}, {"id": 2, "text": "乙"}, {"id": 3, "text": "丙"}]
    (group,), intake = run([row([2], options=options, text="问")])
    assert values(group) == [{"winner": "2", "loser": "1"}, {"winner": "2", "loser": "3"}]
    assert [(p.a, p.b, p.weight) for p in targets(group)] == [(1, 0, 0.5), (1, 2, 0.5)]
    assert intake.votes.used == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "reject"}, "rejected"),  # also with an option marked
        ({"answer": "reject", "accept": []}, "rejected"),
        ({"answer": "ignore"}, "ignored"),
        ({"answer": "ignore", "accept": []}, "ignored"),
        ({"accept": []}, "empty_result"),
        ({"accept": None}, "empty_result"),
        ({"accept": ["A", "B"]}, "ambiguous_choice"),
        ({"accept": ["C"]}, "unknown_candidate"),
        ({"accept": [True]}, "unknown_candidate"),
        ({"accept": [["A"]]}, "unknown_candidate"),
        ({"accept": "A"}, "malformed_result"),
        ({"answer": "yes"}, "unknown_answer"),
        ({"answer": ["accept"]}, "unknown_answer"),
        ({"answer": None}, "unknown_answer"),
        ({"options": {}}, "not_a_task"),
        ({"options": OPTIONS[:1]}, "one_candidate"),
        ({"options": ["A", "B"]}, "malformed_option"),
        ({"options": [*OPTIONS, {"text": "x"}]}, "malformed_option"),
        ({"options": [*OPTIONS, {"id": "A", "text": "x"}]}, "duplicate_candidate_id"),
        ({"options": [*OPTIONS, {"id": "C", "image": "x.png"}]}, "not_text"),
        ({"options": [OPTIONS[0], {"id": "B", "text": "first answer"}]}, "identical_candidates"),
        ({"options": [OPTIONS[0], {"id": "B", "text": " "}]}, "empty_candidate"),
        ({"text": ""}, "no_prompt"),
    ],
)
def test_what_is_no_vote_is_counted(change, reason):
    groups, intake = run([{**row(), **change}])
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == {reason: 1}


def test_the_annotator_is_the_annotator_id_else_the_session():
    rows = [
        row(_annotator_id="d-bo"),
        row(_annotator_id=None, _session_id="d-ci"),
        row(_annotator_id=None, _session_id=None),
        row(_annotator_id=7),
    ]
    groups, _ = run(rows)
    assert [g.judgements[0].annotator for g in groups] == ["d-bo", "d-ci", None, "7"]


def test_annotators_of_a_task_merge_whatever_the_order_of_its_options():
    # A/B recipes shuffle the options; their ids stay with their texts.
    rows = [
        row(["A"], _annotator_id="x"),
        row(["A"], options=OPTIONS[::-1], _annotator_id="y"),
        row(["B"], options=OPTIONS[::-1], _annotator_id="z"),
    ]
    groups, _ = run(rows)
    merged = merge(groups)
    assert [(j.annotator, j.value["winner"]) for j in merged.judgements] == [
        ("x", "A"), ("y", "A"), ("z", "B"),
    ]  # fmt: skip
    assert targets(merged)[0].target == pytest.approx(2 / 3)
    assert merged.meta["display_order"] is False


def test_a_dataset_written_twice_counts_once_and_a_second_look_counts():
    again = row(["B"], _timestamp=1700000009)
    groups, intake = run([row(), again, row(), again])
    assert [g.judgements[0].value["winner"] for g in groups] == ["A", "B"]
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 2}


def test_a_verdict_is_no_candidate():
    options = [*OPTIONS, {"id": "tie", "text": "Equally good"}, {"id": "X", "text": "Both bad"}]
    (group,), _ = run([row(["tie"], options=options)])
    assert [c.id for c in group.candidates] == ["A", "B"]
    assert values(group) == [{"tie": ["A", "B"]}]
    assert "both_bad" not in group.meta
    (group,), _ = run([row(["X"], options=options)])
    assert values(group) == [{"tie": ["A", "B"]}]
    assert group.meta["both_bad"] == 1
    (same,), _ = run([row(["A"], options=options)])
    assert same.group_id == group.group_id
    three = [*options, {"id": "C", "text": "third answer"}]
    _, intake = run([row(["tie"], options=three)])
    assert dict(intake.rows.dropped) == {"other_result": 1}


LABELS = [{"id": 1, "text": "Answer A"}, {"id": 2, "text": "Answer B"}, {"id": 3, "text": "平局"}]


def test_options_that_name_fields_stand_for_them():
    fields = {"prompt": "问", "answer_a": "甲", "answer_b": "乙", "html": "<p>…</p>"}
    (group,), _ = run([row([2], options=LABELS, **fields)])
    assert group.prompt == (Message("user", "问"),)
    assert [(c.id, c.content) for c in group.candidates] == [("answer_a", "甲"), ("answer_b", "乙")]
    assert values(group) == [{"winner": "answer_b", "loser": "answer_a"}]
    assert group.meta == {"source": "prodigy"}
    (group,), _ = run([row([3], options=LABELS, **fields)])
    assert values(group) == [{"tie": ["answer_a", "answer_b"]}]
    (group,), _ = run([row([1], options=LABELS, text="问", answers=["甲", "乙"])])
    assert values(group) == [{"winner": "1", "loser": "2"}]
    assert [c.content for c in group.candidates] == ["甲", "乙"]
    named = load_label_config("prompt=text,left=甲方,right=乙方")
    sides = [{"id": "l", "text": "左"}, {"id": "r", "text": "右"}]
    given = row(["r"], options=sides, 甲方="甲", 乙方="乙")
    (group,), _ = run([given], label_config=named)
    assert values(group) == [{"winner": "乙方", "loser": "甲方"}]
    two = {**fields, "output_1": "丙", "output_2": "丁"}
    with pytest.raises(UserError, match=r"answer_a\+answer_b or output_1\+output_2"):
        run([row([1], options=LABELS, **two)])


def test_fields_beside_options_that_are_answers_change_nothing():
    kept = {"answer_a": "甲", "answer_b": "乙", "output_1": "丙", "output_2": "丁", "outputs": [1]}
    (group,), _ = run([row(**kept)])
    assert [c.content for c in group.candidates] == ["first answer", "second answer"]


def test_html_is_kept_and_said():
    options = [{"id": "A", "html": "<b>x</b> &amp; y"}, {"id": "B", "html": "plain"}]
    given = row(options=options, html="<h1>Q</h1>")
    del given["text"]
    (group,), intake = run([given])
    assert group.prompt == (Message("user", "<h1>Q</h1>"),)
    assert group.candidates[0].content == "<b>x</b> &amp; y"
    assert list(intake.warnings) == ["options hold HTML, which was kept as it stands"]
    (_,), intake = run([row(options=[{"id": "A", "text": "a < b & c > d"}, OPTIONS[1]])])
    assert not intake.warnings


def test_a_dataset_is_detected_and_imported(tmp_path):
    rows = [row(text=f"问题 {i}", _task_hash=i) for i in range(3)] + [row(answer="ignore")]
    rows += [row(["B"], text="问题 0", _task_hash=0, _annotator_id="d-bo")]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (tmp_path / "d.jsonl").write_text(text, "utf-8")
    settings = ImportSettings((str(tmp_path / "d.jsonl"),), tmp_path / "out")
    report = run_import(settings, say=lambda _: None)
    assert report["inputs"][0]["format"] == "prodigy"
    assert report["rows"]["dropped"] == {"ignored": 1}
    assert (report["groups"]["used"], report["votes"]["used"]) == (3, 4)


def test_evidence():
    for sample in SAMPLES["prodigy"]:
        assert matches(sample) == "options and an answer of accept, reject or ignore"
    assert matches({"options": ["x"], "answer": "accept"}) is None
    assert matches({"text": "Q", "options": OPTIONS, "answer": "B", "accept": 1}) is None
