"""Literal doccano rows, by file → the exact groups, votes, targets and counts."""

from __future__ import annotations

import json
import shutil

import pytest
from samples import SAMPLES

from align.config_errors import UserError
from align.records import Message
from reward_models.annotations import Intake, Options
from reward_models.annotations.base import Row, merge
from reward_models.annotations.doccano import FORMAT, matches
from reward_models.annotations.label_config import load_label_config
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

NOBODY = "all.jsonl of a collaborative project does not say who labelled"


def row(*label, **more):
    answers = {"answer_a": "first", "answer_b": "second"}
    return {"id": 1, "text": "Q", **answers, **more, "label": [*label], "Comments": []}


def run(rows, file="export.zip/anna.jsonl", **options):
    intake = Intake(Options(**options))
    made = [Row(file, i, i, obj) for i, obj in enumerate(rows, 1)]
    groups = list(FORMAT.parse(made, intake))
    assert len(rows) == intake.rows.total
    return groups, intake


def test_a_label_gives_the_exact_group():
    (group,), intake = run([row("A")])
    assert group.prompt == (Message("user", "Q"),)
    assert [c.to_json() for c in group.candidates] == [
        {"id": "answer_a", "content": "first", "model": None},
        {"id": "answer_b", "content": "second", "model": None},
    ]
    assert [j.to_json() for j in group.judgements] == [
        {
            "annotator": "anna", "kind": "pair",
            "value": {"winner": "answer_a", "loser": "answer_b"},
            "strength": None, "source": "doccano:label", "suspect": None,
        },
    ]  # fmt: skip
    assert group.meta == {"source": "doccano", "example_id": 1}
    assert [p.to_json() for p in targets(group)] == [
        {"a": 0, "b": 1, "target": 1.0, "weight": 1.0, "margin": None}
    ]
    assert not intake.warnings


@pytest.mark.parametrize(
    ("file", "annotator"),
    [
        ("p.zip/anna.b@example.com.jsonl", "anna.b@example.com"),
        ("folder/王芳.jsonl", "王芳"),
        ("folder/all.jsonl", None),
        ("p.zip/all.jsonl", None),
        ("all.json", None),
    ],
)
def test_the_annotator_is_the_name_of_the_file(file, annotator):
    (group,), intake = run([row("A")], file)
    assert group.judgements[0].annotator == annotator
    assert list(intake.warnings) == ([] if annotator else [NOBODY])


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("answer_b", {"winner": "answer_b", "loser": "answer_a"}),
        ("B更好", {"winner": "answer_b", "loser": "answer_a"}),
        ("左", {"winner": "answer_a", "loser": "answer_b"}),
        ("平局", {"tie": ["answer_a", "answer_b"]}),
        ("Both bad", {"tie": ["answer_a", "answer_b"]}),
    ],
)
def test_what_a_label_says(label, value):
    (group,), _ = run([row(label)])
    assert [j.value for j in group.judgements] == [value]
    assert group.meta.get("both_bad") == (1 if label == "Both bad" else None)


def test_the_best_of_three():
    (group,), _ = run([row("answer_c", answer_c="third")])
    assert [(p.a, p.b, p.weight) for p in targets(group)] == [(2, 0, 0.5), (2, 1, 0.5)]


def test_a_column_of_its_own_is_the_prompt():
    (group,), _ = run([row("A", prompt="问", text="问\n甲\n乙")])
    assert group.prompt == (Message("user", "问"),)
    config = load_label_config("prompt=题,left=甲,right=乙")
    given = {
        "id": 3,
        "text": "…",
        "题": "问",
        "甲": "x",
        "乙": "y",
        "label": ["乙"],
        "Comments": [],
    }
    (group,), _ = run([given], label_config=config)
    assert group.prompt == (Message("user", "问"),)
    assert group.judgements[0].value == {"winner": "乙", "loser": "甲"}
    with pytest.raises(UserError, match=r"answer_a\+answer_b or output_1\+output_2"):
        run([row("A", output_1="x", output_2="y")])


@pytest.mark.parametrize(
    ("given", "reason", "votes"),
    [
        (row(), "no_annotations", 0),
        (row("A", "B"), "ambiguous_choice", 1),  # two members, or one in two minds
        (row("A", "funny"), "ambiguous_choice", 1),
        (row("funny"), "other_result", 1),
        (row([0, 1, "A"]), "malformed_result", 1),
        (row("A", answer_b=None), "no_candidates", 1),
        (row("A", answer_b="first"), "identical_candidates", 1),
        (row("A", text=""), "no_prompt", 1),
        ({"id": 1, "text": "Q", "label": "A"}, "not_a_task", 1),
        ({"id": 1, "text": "Q"}, "not_a_task", 0),
        (3, "not_a_task", 0),
    ],
)
def test_what_is_no_vote_is_counted(given, reason, votes):
    groups, intake = run([given])
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert sum(intake.votes.dropped.values()) == intake.votes.total == votes


def test_a_text_counts_once_per_annotator():
    intake = Intake()
    groups = []
    for file in ("p.zip/anna.jsonl", "p.zip/bo.jsonl", "p.zip/bo.jsonl", "p2.zip/bo.jsonl"):
        label = "A" if "anna" in file else "B"
        groups += FORMAT.parse([Row(file, 1, 1, row(label))], intake)
    assert [j.annotator for j in merge(groups).judgements] == ["anna", "bo"]
    assert targets(merge(groups))[0].target == 0.5
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 2}


def test_intent_detection_has_its_labels_under_cats():
    given = {"id": 1, "text": "Q", "answer_a": "x", "answer_b": "y", "cats": ["B"], "entities": []}
    (group,), _ = run([{**given, "Comments": []}])
    assert group.judgements[0].value == {"winner": "answer_b", "loser": "answer_a"}


@pytest.mark.parametrize("zipped", [False, True])
def test_files_named_by_members_are_imported(tmp_path, zipped):
    votes = {"anna": ["A", "B", None], "王芳": ["A", "A", "A"]}
    folder = tmp_path / "export"
    folder.mkdir()
    for name, labels in votes.items():
        rows = [row(*filter(None, [lab]), id=i, text=f"问题 {i}") for i, lab in enumerate(labels)]
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    source = shutil.make_archive(str(tmp_path / "p"), "zip", folder) if zipped else str(folder)
    report = run_import(ImportSettings((source,), tmp_path / "out"), say=lambda _: None)
    assert {i["format"] for i in report["inputs"]} == {"doccano"}
    assert (report["rows"]["used"], report["rows"]["dropped"]) == (5, {"no_annotations": 1})
    lines = (tmp_path / "out/preferences.jsonl").read_text("utf-8").splitlines()
    cast = {
        g["prompt"][0]["content"]: sorted(
            (j["annotator"], j["value"]["winner"]) for j in g["judgements"]
        )
        for g in map(json.loads, lines)
    }
    assert cast == {
        "问题 0": [("anna", "answer_a"), ("王芳", "answer_a")],
        "问题 1": [("anna", "answer_b"), ("王芳", "answer_a")],
        "问题 2": [("王芳", "answer_a")],
    }


def test_evidence():
    assert matches(SAMPLES["doccano"][0]) == "text, a list of labels and Comments"
    older = {k: v for k, v in row("A").items() if k != "Comments"}
    assert matches(older) == "id, text, a list of labels and answers"
    assert matches({"id": 1, "text": "Q", "label": ["x"]}) is None
    assert matches({"id": 1, "text": "Q", "label": 1, "Comments": []}) is None
