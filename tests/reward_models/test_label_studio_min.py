"""Literal JSON-MIN rows → the exact groups, votes, targets and counts."""

from __future__ import annotations

import json

import pytest
from samples import SAMPLES

from align.records import Message
from reward_models.annotations import Intake, Options
from reward_models.annotations.base import Row, merge
from reward_models.annotations.label_config import load_label_config
from reward_models.annotations.label_studio import FORMAT as JSON_FORMAT
from reward_models.annotations.label_studio_min import FORMAT, matches
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

XML = """<View><Text name="q" value="$prompt"/>
  <Text name="two" value="$answer2"/><Text name="one" value="$answer1"/>
  <Pairwise name="comparison" toName="two,one"/>
  <Choices name="best" toName="q"><Choice value="A"/><Choice value="B"/></Choices>
  <TextArea name="note" toName="q"/>
  <Rating name="good_x" toName="two"/><Rating name="good_y" toName="one"/></View>"""
DATA = {"prompt": "Q", "answer1": "A", "answer2": "B"}


def row(results, data=DATA, **more):
    """As the converter writes it: data, id, results, bookkeeping."""
    kept = {
        "annotator": 10, "annotation_id": 7, "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z", "lead_time": 4.2,
    }  # fmt: skip
    return {**data, "id": 1, **results, **kept, **more}


def run(rows, **options):
    intake = Intake(Options(**options))
    made = [Row("x.json", i, i, obj) for i, obj in enumerate(rows, 1)]
    groups = list(FORMAT.parse(made, intake))
    assert len(rows) == intake.rows.total
    return groups, intake


def values(group):
    return [j.value for j in group.judgements]


def test_a_pairwise_row_gives_the_exact_group():
    (group,), intake = run(SAMPLES["label_studio_min"][:1])
    assert group.prompt == (Message("user", "Q"),)
    assert [(c.id, c.content) for c in group.candidates] == [("answer1", "A"), ("answer2", "B")]
    assert [j.to_json() for j in group.judgements] == [
        {
            "annotator": "10",
            "kind": "pair",
            "value": {"winner": "answer1", "loser": "answer2"},
            "strength": None,
            "source": "label_studio:pairwise:comparison",
            "suspect": None,
        }
    ]
    assert group.meta == {
        "source": "label_studio", "display_order": True, "task_id": 1, "lead_time": {"10": 4.2},
    }  # fmt: skip
    assert [p.to_json() for p in targets(group)] == [
        {"a": 0, "b": 1, "target": 1.0, "weight": 1.0, "margin": None}
    ]
    assert list(intake.warnings) == [
        "left/right taken as answer1/answer2: no labelling config was given"
    ]


def test_left_follows_the_config():
    given = row({"comparison": [{"selected": "left"}]})
    (group,), intake = run([given], label_config=load_label_config(XML))
    assert values(group) == [{"winner": "answer2", "loser": "answer1"}]
    assert not intake.warnings
    fields = load_label_config("prompt=问,left=乙,right=甲")
    chinese = row({"哪个更好": [{"selected": "right"}]}, {"问": "你好", "甲": "好", "乙": "坏"})
    (group,), _ = run([chinese], label_config=fields)
    assert values(group) == [{"winner": "甲", "loser": "乙"}]
    assert group.judgements[0].source == "label_studio:pairwise:哪个更好"


def test_the_annotations_of_a_task_merge_to_one_group():
    rows = [
        row({"comparison": [{"selected": "left"}]}, annotator=1, annotation_id=1),
        row({"comparison": [{"selected": "right"}]}, annotator=3, annotation_id=2),
        row({"comparison": [{"selected": "left"}]}, annotator="a@b.c", annotation_id=4),
    ]
    groups, intake = run(rows)
    merged = merge(groups)
    assert [j.annotator for j in merged.judgements] == ["1", "3", "a@b.c"]
    assert targets(merged)[0].target == pytest.approx(2 / 3)
    assert (intake.votes.used, intake.votes.total) == (3, 3)


def test_ranker_with_and_without_buckets():
    items = [{"id": "c", "body": "三"}, {"id": 2, "body": "二"}, {"id": "a", "body": "一"}]
    data = {"prompt": "问", "items": items}
    ranked = row({"rank": [{"ranker": {"rank": ["a", "c", "2"]}}]}, data)
    (group,), _ = run([ranked])
    assert values(group) == [{"2": 3, "c": 2, "a": 1}]
    assert [(p.a, p.b, p.weight) for p in targets(group)] == [
        (1, 0, 1 / 3), (2, 0, 1 / 3), (2, 1, 1 / 3),
    ]  # fmt: skip
    buckets = row({"rank": [{"ranker": {"_": [], "good": ["a"], "bad": ["c", "2"]}}]}, data)
    _, intake = run([buckets])
    assert dict(intake.rows.dropped) == {"buckets_without_order": 1}
    assert dict(intake.votes.dropped) == {"buckets_without_order": 1}
    (group,), _ = run([buckets], bucket_order=("good", "bad"))
    assert values(group) == [{"2": 2, "c": 2, "a": 1}]


def test_ratings_by_config_and_by_name():
    given = row({"good_x": [{"rating": 4}], "good_y": [{"rating": 2}]})
    (group,), _ = run([given], label_config=load_label_config(XML))
    assert values(group) == [{"answer2": 4.0, "answer1": 2.0}]
    assert group.judgements[0].source == "label_studio:rating:good"
    # Nothing says whom x and y are.
    _, intake = run([given])
    assert dict(intake.rows.dropped) == {"no_such_candidate": 1}
    (group,), _ = run([row({"rating_1": [{"rating": 4}], "rating_2": [{"number": 2.5}]})])
    assert values(group) == [{"answer1": 4.0, "answer2": 2.5}]


def test_ratings_of_a_repeater_are_known_by_the_config():
    xml = """<View><Text name="q" value="$prompt"/><Repeater on="$answers" indexFlag="{{i}}">
      <Text name="t_{{i}}" value="$answers[{{i}}]"/>
      <Rating name="good_{{i}}" toName="t_{{i}}"/></Repeater></View>"""
    given = row(
        {"good_1": [{"rating": 5}], "good_2": [{"rating": 1}]},
        {"prompt": "Q", "answers": ["甲", "乙", "丙"]},
    )
    (group,), _ = run([given], label_config=load_label_config(xml))
    assert values(group) == [{"2": 5.0, "3": 1.0}]
    _, intake = run([given])
    assert dict(intake.rows.dropped) == {"ambiguous_number": 1}


def test_a_single_choice_is_bare_text():
    (group,), intake = run([row({"best": "B"})])
    assert values(group) == [{"winner": "answer2", "loser": "answer1"}]
    assert list(intake.warnings) == ["'best' was read as a choice: no labelling config was given"]
    (group,), intake = run([row({"best": "B"})], label_config=load_label_config(XML))
    assert values(group) == [{"winner": "answer1", "loser": "answer2"}]  # two is shown first
    assert not intake.warnings
    (group,), _ = run([row({"best": "一样差"})])
    assert values(group) == [{"tie": ["answer1", "answer2"]}]
    assert group.meta["both_bad"] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"choices": ["A", "B"]}, "ambiguous_choice"),
        ([{"choices": ["A", "B"]}], "ambiguous_choice"),
        (["A", "B"], "contradicting_results"),
    ],
)
def test_several_choices_are_a_bare_object_and_no_vote(value, reason):
    _, intake = run([row({"best": value})])
    assert dict(intake.rows.dropped) == {reason: 1}


def test_a_remark_is_no_choice():
    # The config tells a text field from a choice; so does a result of another kind beside it.
    given = row({"comparison": [{"selected": "left"}], "note": "B"})
    (group,), intake = run([given], label_config=load_label_config(XML))
    assert values(group) == [{"winner": "answer2", "loser": "answer1"}]
    assert not intake.warnings
    (group,), intake = run([given])
    assert values(group) == [{"winner": "answer1", "loser": "answer2"}]
    assert "'note' is a choice or a remark and was left out: give --label_config" in intake.warnings
    (group,), intake = run([row({"comparison": [{"selected": "left"}], "why": "harmless"})])
    assert len(group.judgements) == 1
    assert not any("why" in w for w in intake.warnings)
    _, intake = run([row({"note": "B"})], label_config=load_label_config(XML))
    assert dict(intake.rows.dropped) == {"other_result": 1}


def test_texts_of_the_data_are_never_choices():
    # "gold" stands before id, so it was there before anyone annotated.
    given = {"gold": "B", **row({"comparison": [{"selected": "left"}]})}
    (group,), _ = run([given])
    assert values(group) == [{"winner": "answer1", "loser": "answer2"}]
    # With an id of its own first, everything stands behind id: then no bare text is a choice.
    own = {"id": 5, **DATA, "gold": "B", **row({}, {})}
    groups, intake = run([own])
    assert groups == []
    assert dict(intake.rows.dropped) == {"empty_result": 1}
    own = {"id": 5, **DATA, "gold": "B", **row({"comparison": [{"selected": "right"}]}, {})}
    (group,), _ = run([own])
    assert values(group) == [{"winner": "answer2", "loser": "answer1"}]
    # Sorted keys tell nothing either, but the form of a result does.
    (group,), _ = run([dict(sorted(row({"comparison": [{"selected": "left"}]}).items()))])
    assert values(group) == [{"winner": "answer1", "loser": "answer2"}]


def test_a_rating_inside_an_item_is_no_result():
    items = [{"id": "a", "body": "x", "rating": 5}, {"id": "b", "body": "y", "rating": 1}]
    given = row({"rank": [{"ranker": {"rank": ["b", "a"]}}]}, {"prompt": "Q", "items": items})
    (group,), _ = run([given])
    assert [(j.kind, j.value) for j in group.judgements] == [("rank", {"a": 2, "b": 1})]


@pytest.mark.parametrize(
    ("given", "reason", "votes"),
    [
        (row({}, annotation_id=None, annotator=None), "no_annotations", 0),
        (row({}), "empty_result", 1),
        (row({"comparison": [{"selected": "middle"}]}), "unknown_winner", 1),
        (row({"rank": [{"ranker": {"rank": ["answer1", "q"]}}]}), "unknown_candidate", 1),
        (row({"rank": [{"ranker": ["answer1"]}]}), "malformed_result", 1),
        (row({"r_1": [{"rating": "4"}], "r_2": [{"rating": 1}]}), "malformed_result", 1),
        (row({"r_1": [{"rating": float("nan")}], "r_2": [{"rating": 1}]}), "not_finite", 1),
        (
            row({"comparison": [{"selected": "left"}, {"selected": "right"}]}),
            "contradicting_results",
            1,
        ),
        (row({"c": [{"selected": "left"}]}, {"prompt": "Q", "answer1": "A"}), "no_candidates", 1),
        (row({"c": [{"selected": "left"}]}, {"answer1": "A", "answer2": "B"}), "no_prompt", 1),
        (row({"c": [{"selected": "left"}]}, {**DATA, "answer2": "A"}), "identical_candidates", 1),
        ([1], "not_an_annotation", 0),
    ],
)
def test_what_is_no_vote_is_counted(given, reason, votes):
    groups, intake = run([given])
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert intake.votes.total == votes
    assert sum(intake.votes.dropped.values()) == votes


def test_the_same_annotation_twice_counts_once_also_beside_the_json_export():
    given = row({"comparison": [{"selected": "left"}]})
    groups, intake = run([given, given, {**given, "annotator": 11}])
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 1}
    assert dict(intake.votes.dropped) == {"duplicate_annotation": 1}
    result = {
        "from_name": "comparison", "to_name": "comparison", "type": "pairwise",
        "value": {"selected": "left"},
    }  # fmt: skip
    annotation = {
        "id": 7, "completed_by": 10, "created_at": "2026-01-01T00:00:00Z", "result": [result],
    }  # fmt: skip
    intake = Intake()
    task = {"id": 1, "data": DATA, "annotations": [annotation]}
    assert len(list(JSON_FORMAT.parse([Row("a.json", 1, 1, task)], intake))) == 1
    assert list(FORMAT.parse([Row("b.json", 1, 1, given)], intake)) == []
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 1}


def test_an_export_is_detected_and_imported(tmp_path):
    rows = [
        row({"comparison": [{"selected": s}]}, {**DATA, "prompt": f"问题{i}"}, annotation_id=i)
        for i, s in enumerate(["left", "right", "left"])
    ]
    rows.append(row({}, annotation_id=None, annotator=None))
    (tmp_path / "min.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    settings = ImportSettings((str(tmp_path / "min.json"),), tmp_path / "out")
    report = run_import(settings, say=lambda _: None)
    assert report["inputs"][0]["format"] == "label_studio_min"
    assert report["rows"]["dropped"] == {"no_annotations": 1}
    assert report["pairs"] == 3


def test_evidence():
    assert matches(SAMPLES["label_studio_min"][0]) == "annotator, annotation_id and lead_time"
    assert matches(SAMPLES["label_studio"][0]) is None
