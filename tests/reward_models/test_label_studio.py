"""Literal Label Studio records → the exact groups, judgements and counts."""

from __future__ import annotations

import pytest

from align.config_errors import UserError
from align.records import Message
from reward_models.annotations import Intake, Options
from reward_models.annotations.base import Row, merge
from reward_models.annotations.label_config import load_label_config
from reward_models.annotations.label_studio import FORMAT
from reward_models.preferences import targets

PAIRWISE_XML = """<View>
  <Text name="q" value="$prompt"/>
  <Text name="two" value="$answer2"/><Text name="one" value="$answer1"/>
  <Pairwise name="comparison" toName="two,one"/>
</View>"""


def run(rows, **options):
    intake = Intake(Options(**options))
    made = [Row("x.json", i, i, obj) for i, obj in enumerate(rows, 1)]
    groups = list(FORMAT.parse(made, intake))
    assert len(rows) == intake.rows.total
    return groups, intake


def pairwise(selected="left", to_name="comparison", **more):
    return {
        "id": 7,
        "completed_by": 10,
        "was_cancelled": False,
        "result": [
            {"from_name": "comparison", "to_name": to_name, "type": "pairwise",
             "value": {"selected": selected}}
        ],
        **more,
    }  # fmt: skip


def task(*annotations, **data):
    data = data or {"prompt": "Q", "answer1": "A", "answer2": "B"}
    return {"id": 1, "data": data, "annotations": list(annotations), "predictions": []}


def test_the_time_that_each_annotator_took_is_kept():
    timed = [pairwise(lead_time=4.2), pairwise(id=8, completed_by=11, lead_time=1.5)]
    (group,), _ = run(
        [task(*timed, pairwise(id=9, completed_by=12, was_cancelled=True, lead_time=9))]
    )
    assert group.meta["lead_time"] == {"10": 4.2, "11": 1.5}
    (other,), _ = run([task(pairwise(completed_by=12, lead_time=3))])
    assert merge([group, other]).meta["lead_time"] == {"10": 4.2, "11": 1.5, "12": 3.0}
    assert group.meta["lead_time"] == {"10": 4.2, "11": 1.5}
    (group,), _ = run([task(pairwise())])
    assert "lead_time" not in group.meta
    assert "lead_time" not in merge([group, group]).meta


def test_pairwise_record_gives_the_exact_group():
    (group,), intake = run([task(pairwise())])
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
    assert [p.to_json() for p in targets(group)] == [
        {"a": 0, "b": 1, "target": 1.0, "weight": 1.0, "margin": None}
    ]
    assert list(intake.warnings) == [
        "left/right taken as answer1/answer2: no labelling config was given"
    ]


def test_left_follows_toname_order_of_the_config_not_the_key_order():
    config = load_label_config(PAIRWISE_XML)
    (group,), intake = run([task(pairwise("left"))], label_config=config)
    assert group.judgements[0].value == {"winner": "answer2", "loser": "answer1"}
    assert [c.id for c in group.candidates] == ["answer2", "answer1"]
    assert not intake.warnings


def test_left_from_field_names_and_from_to_name():
    fields = load_label_config("prompt=问,left=乙,right=甲")
    (group,), _ = run([task(pairwise("right"), 问="你好", 甲="好", 乙="坏")], label_config=fields)
    assert group.judgements[0].value == {"winner": "甲", "loser": "乙"}
    # Uploaded results may name the first object only: it is the left one.
    (group,), intake = run([task(pairwise("left", to_name="answer2"))])
    assert group.judgements[0].value == {"winner": "answer2", "loser": "answer1"}
    assert not intake.warnings
    (group,), _ = run([task(pairwise("right", to_name="answer2,answer1"))])
    assert group.judgements[0].value == {"winner": "answer1", "loser": "answer2"}


def test_field_names_win_over_to_name_and_the_conflict_is_said():
    fields = load_label_config("left=answer2,right=answer1")
    (group,), intake = run([task(pairwise("left", to_name="answer1"))], label_config=fields)
    assert group.judgements[0].value == {"winner": "answer2", "loser": "answer1"}
    assert list(intake.warnings) == [
        "to_name 'answer1' says otherwise than --label_config, which was followed"
    ]


def test_a_config_of_another_project_is_said():
    config = load_label_config(PAIRWISE_XML.replace("comparison", "better"))
    (group,), intake = run([task(pairwise("left", to_name="one"))], label_config=config)
    assert group.judgements[0].value == {"winner": "answer1", "loser": "answer2"}
    assert list(intake.warnings) == [
        "the labelling config has no control 'comparison': is it this project's?"
    ]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (pairwise(was_cancelled=True), "cancelled"),
        (pairwise(result=[]), "empty_result"),
        (pairwise("middle"), "unknown_winner"),
        (pairwise(result="left"), "malformed_annotation"),
        (pairwise(result=[{"type": "pairwise", "value": "left"}]), "malformed_result"),
        (pairwise(result=[{"type": "textarea", "value": {"text": ["note"]}}]), "other_result"),
    ],
)
def test_what_is_not_a_vote_is_counted(annotation, reason):
    groups, intake = run([task(annotation)])
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == {reason: 1}
    # Beside a real vote the row is used and the non-vote still counted.
    groups, intake = run([task(pairwise(id=8, completed_by=11), annotation)])
    assert len(groups[0].judgements) == 1
    assert intake.votes.used == 1
    assert dict(intake.votes.dropped) == {reason: 1}


def test_predictions_and_drafts_are_never_votes():
    row = task()
    row["predictions"] = [{"result": pairwise()["result"], "score": 0.9}]
    row["drafts"] = [{"result": pairwise()["result"], "id": 3}] * 2
    groups, intake = run([row])
    assert groups == []
    assert dict(intake.rows.dropped) == {"no_annotations": 1}
    assert dict(intake.votes.dropped) == {"prediction": 1, "draft": 2}


def test_the_votes_of_a_dropped_task_are_dropped_for_the_same_reason():
    row = task(pairwise(id=1), pairwise(id=2), prompt="Q", answer1="A", answer2="A")
    row["predictions"] = [{}]
    _, intake = run([row, task(pairwise(id=3))])
    assert dict(intake.rows.dropped) == {"identical_candidates": 1}
    assert intake.votes.used == 1
    assert dict(intake.votes.dropped) == {"identical_candidates": 3}


def test_annotators_as_number_or_object_and_annotations_given_twice():
    groups, intake = run(
        [
            task(
                pairwise(id=1, completed_by=3),
                pairwise(id=2, completed_by={"id": 4, "email": "a@b.c"}),
                pairwise(id=2, completed_by=4),
                pairwise(id=2, completed_by=9),  # the same id in another Label Studio
            )
        ]
    )
    assert [j.annotator for j in groups[0].judgements] == ["3", "4", "9"]
    assert dict(intake.votes.dropped) == {"duplicate_annotation": 1}
    assert intake.votes.examples == {"duplicate_annotation": "x.json:1"}


def test_annotations_made_at_other_times_are_two():
    first, second = pairwise(created_at="2026-01-01"), pairwise(created_at="2026-01-02")
    (group,), _ = run([task(first, second)])
    assert len(group.judgements) == 2


def test_one_export_given_twice_counts_once():
    groups, intake = run([task(pairwise()), task(pairwise())])
    assert len(groups) == 1
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 1}


def test_an_accepted_prediction_is_suspect():
    annotation = pairwise()
    annotation["result"][0]["origin"] = "prediction"
    (group,), _ = run([task(annotation)])
    assert group.judgements[0].suspect == "accepted_prediction"
    assert targets(group, suspects="drop") == []


ITEMS = {
    "prompt": "Q",
    "items": [
        {"id": "a", "title": "", "body": "x"},
        {"id": "b", "body": "y"},
        {"id": "c", "body": "z"},
    ],
}


def ranker(columns, name="rank"):
    result = {
        "from_name": name,
        "to_name": "answers",
        "type": "ranker",
        "value": {"ranker": columns},
    }
    return {"id": 1, "completed_by": 1, "result": [result]}


def test_ranking_gives_all_pairs_of_weight_one_third():
    (group,), _ = run([task(ranker({"rank": ["b", "a", "c"]}), **ITEMS)])
    assert group.judgements[0].kind == "rank"
    assert group.judgements[0].value == {"a": 2, "b": 1, "c": 3}
    assert group.judgements[0].suspect is None
    got = [(p.a, p.b, p.target, p.weight) for p in targets(group)]
    assert got == [(1, 0, 1.0, 1 / 3), (0, 2, 1.0, 1 / 3), (1, 2, 1.0, 1 / 3)]


def test_ranking_equal_to_display_order_is_suspect():
    (group,), _ = run([task(ranker({"rank": ["a", "b", "c"]}), **ITEMS)])
    assert group.judgements[0].suspect == "display_order"


def test_the_list_shows_whole_numbers_first_and_in_order():
    # The browser keeps items as keys of an object: Object.keys gives 2, 10, "b" for b, 10, 2.
    items = [{"id": "b", "body": "x"}, {"id": 10, "body": "y"}, {"id": 2, "body": "z"}]
    data = {"prompt": "Q", "items": items}
    untouched = {"rank": ["2", "10", "b"]}
    (group,), _ = run([task(ranker(untouched), **data)])
    assert [c.id for c in group.candidates] == ["2", "10", "b"]
    assert group.judgements[0].suspect == "display_order"
    (group,), _ = run([task(ranker({"rank": ["b", "10", "2"]}), **data)])
    assert group.judgements[0].suspect is None
    assert group.judgements[0].value == {"2": 3, "10": 2, "b": 1}


def test_a_default_bucket_that_nobody_touched_is_suspect():
    untouched = {"ok": ["a", "b", "c"], "bad": []}
    (group,), _ = run([task(ranker(untouched), **ITEMS)], bucket_order=("ok", "bad"))
    assert group.judgements[0].suspect == "display_order"
    touched = {"ok": ["a", "c"], "bad": ["b"]}
    (group,), _ = run([task(ranker(touched), **ITEMS)], bucket_order=("ok", "bad"))
    assert group.judgements[0].suspect is None
    assert group.judgements[0].value == {"a": 1, "b": 2, "c": 1}


def test_partial_ranking_leaves_the_rest_unranked():
    (group,), _ = run([task(ranker({"rank": ["c", "a"]}), **ITEMS)])
    assert group.judgements[0].value == {"a": 2, "b": None, "c": 1}
    assert [(p.a, p.b, p.weight) for p in targets(group)] == [(2, 0, 1.0)]


def test_bucket_order_is_no_preference_unless_the_user_gives_one():
    buckets = {"_": ["c"], "bad": ["a"], "good": ["b"]}
    groups, intake = run([task(ranker(buckets), **ITEMS)])
    assert groups == []
    assert dict(intake.rows.dropped) == {"buckets_without_order": 1}
    (group,), _ = run([task(ranker(buckets), **ITEMS)], bucket_order=("good", "bad"))
    assert group.judgements[0].value == {"a": 2, "b": 1, "c": None}
    groups, intake = run(
        [task(ranker({"best": ["a"], "_": ["b"]}), **ITEMS)], bucket_order=("good",)
    )
    assert dict(intake.rows.dropped) == {"unknown_bucket": 1}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"rank": ["a", "q"]}, "unknown_candidate"),
        ({"rank": ["a", "a"]}, "repeated_candidate"),
        ({"rank": ["a"]}, "nothing_ranked"),
        ({"rank": "a"}, "malformed_result"),
        (["a"], "malformed_result"),
    ],
)
def test_broken_rankings_are_counted(columns, reason):
    _, intake = run([task(ranker(columns), **ITEMS)])
    assert dict(intake.rows.dropped) == {reason: 1}


def rating(control, to_name, stars):
    return {"from_name": control, "to_name": to_name, "type": "rating", "value": {"rating": stars}}


def test_ratings_of_each_candidate_become_one_score_judgement():
    annotation = {
        "id": 1,
        "completed_by": 2,
        "result": [rating("r1", "answer1", 4), rating("r2", "answer2", 2)],
    }
    (group,), _ = run([task(annotation)])
    assert [(j.kind, j.value, j.annotator) for j in group.judgements] == [
        ("score", {"answer1": 4.0, "answer2": 2.0}, "2")
    ]
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.target, pair.margin) == (0, 1, 1.0, 2.0)


def test_ratings_find_their_candidate_by_config_and_by_suffix():
    xml = """<View><Text name="x" value="$answer1"/><Text name="y" value="$answer2"/>
      <Rating name="good_x" toName="x"/><Rating name="good_y" toName="y"/></View>"""
    annotation = {"id": 1, "result": [rating("good_x", "x", 1), rating("good_y", "y", 5)]}
    data = {"prompt": "Q", "answer1": "A", "answer2": "B"}
    groups, _ = run([task(annotation, **data)], label_config=load_label_config(xml))
    assert [j.value for j in groups[0].judgements] == [{"answer1": 1.0, "answer2": 5.0}]
    assert groups[0].judgements[0].source == "label_studio:rating:good"
    annotation = {"id": 1, "result": [rating("rating_1", "txt", 1), rating("rating_2", "txt", 1)]}
    (group,), _ = run([task(annotation)])
    assert targets(group)[0].target == 0.5
    _, intake = run([task({"id": 1, "result": [rating("rating", "txt", 3)]})])
    assert dict(intake.rows.dropped) == {"no_such_candidate": 1}


def test_a_name_inside_another_word_is_not_that_candidate():
    # "a" stands in "rating", "b" in "b_rating": only the whole word counts.
    annotation = {"id": 1, "result": [rating("rating_a", "t", 1), rating("rating_b", "t", 5)]}
    data = {"prompt": "Q", "a": "A", "b": "B"}
    (group,), _ = run([task(annotation, **data)])
    assert [j.value for j in group.judgements] == [{"a": 1.0, "b": 5.0}]
    _, intake = run([task({"id": 1, "result": [rating("rating", "t", 3)]}, **data)])
    assert dict(intake.rows.dropped) == {"no_such_candidate": 1}


ANSWERS = {"prompt": "Q", "answers": ["甲", "乙", "丙"]}


@pytest.mark.parametrize(
    ("numbers", "data", "value"),
    [
        # The Repeater tag counts from 0.
        ((0, 1, 2), ANSWERS, {"1": 1.0, "2": 3.0, "3": 5.0}),
        ((0, 2), ANSWERS, {"1": 1.0, "3": 3.0}),
        ((1, 2, 3), ANSWERS, {"1": 1.0, "2": 3.0, "3": 5.0}),
        ((2, 3), ANSWERS, {"2": 1.0, "3": 3.0}),
        ((0, 1), {"prompt": "Q", "answer1": "A", "answer2": "B"}, {"answer1": 1.0, "answer2": 3.0}),
        ((1, 2), {"prompt": "Q", "answer1": "A", "answer2": "B"}, {"answer1": 1.0, "answer2": 3.0}),
        ((0, 1), {"prompt": "Q", "answer0": "A", "answer1": "B"}, {"answer0": 1.0, "answer1": 3.0}),
        # Items have their own numbers, but rating_1 is about the second of them.
        (
            (0, 1),
            {"prompt": "Q", "items": [{"id": 1, "body": "x"}, {"id": 2, "body": "y"}]},
            {"1": 1.0, "2": 3.0},
        ),
    ],
)
def test_ratings_are_counted_from_0_or_from_1(numbers, data, value):
    rated = [rating(f"good_{n}", f"t_{n}", 2 * k + 1) for k, n in enumerate(numbers)]
    (group,), _ = run([task({"id": 1, "result": rated}, **data)])
    assert [(j.source, j.value) for j in group.judgements] == [("label_studio:rating:good", value)]


def test_ratings_that_could_be_counted_from_0_or_from_1_are_no_vote():
    annotation = {"id": 1, "result": [rating("good_1", "t_1", 5), rating("good_2", "t_2", 1)]}
    _, intake = run([task(annotation, **ANSWERS)])
    assert dict(intake.rows.dropped) == {"ambiguous_number": 1}
    # The config tells.
    xml = """<View><Text name="q" value="$prompt"/><Repeater on="$answers" indexFlag="{{idx}}">
      <Text name="t_{{idx}}" value="$answers[{{idx}}]"/>
      <Rating name="good_{{idx}}" toName="t_{{idx}}"/></Repeater></View>"""
    (group,), _ = run([task(annotation, **ANSWERS)], label_config=load_label_config(xml))
    assert [j.value for j in group.judgements] == [{"2": 5.0, "3": 1.0}]


def test_two_questions_are_two_judgements():
    annotation = {
        "id": 1,
        "result": [
            rating("helpful1", "answer1", 4), rating("helpful2", "answer2", 2),
            rating("safe1", "answer1", 1), rating("safe2", "answer2", 5),
        ],
    }  # fmt: skip
    (group,), _ = run([task(annotation)])
    assert {j.source: j.value for j in group.judgements} == {
        "label_studio:rating:helpful": {"answer1": 4.0, "answer2": 2.0},
        "label_studio:rating:safe": {"answer1": 1.0, "answer2": 5.0},
    }
    assert targets(group)[0].target == 0.5


def test_a_rating_of_something_else_beside_a_vote_is_left_out_and_said():
    annotation = pairwise()
    annotation["result"].append(rating("clarity", "prompt", 2))
    (group,), intake = run([task(annotation)])
    assert len(group.judgements) == 1
    assert "rating 'clarity' is about no candidate: left out" in intake.warnings


def choice(*names):
    result = {
        "from_name": "best",
        "to_name": "q",
        "type": "choices",
        "value": {"choices": [*names]},
    }
    return {"id": 1, "completed_by": 1, "result": [result]}


@pytest.mark.parametrize(
    ("name", "winner"),
    [("answer2", "answer2"), ("Left", "answer1"), ("B", "answer2"), ("Response 1", "answer1"),
     ("2", "answer2"), ("答案2", "answer2"), ("右", "answer2"), ("A is better", "answer1")],
)  # fmt: skip
def test_a_choice_that_names_a_candidate(name, winner):
    (group,), _ = run([task(choice(name))])
    assert group.judgements[0].value["winner"] == winner


def test_a_bare_number_is_said_and_a_scale_of_the_config_names_nobody():
    (_,), intake = run([task(choice("2"))])
    assert list(intake.warnings) == ["the bare number 2 of 'best' was taken as candidate 'answer2'"]
    scale = """<View><Text name="q" value="$prompt"/><Choices name="best" toName="q">
      <Choice value="1"/><Choice value="2"/><Choice value="Three" alias="3"/></Choices></View>"""
    _, intake = run([task(choice("2"))], label_config=load_label_config(scale))
    assert dict(intake.rows.dropped) == {"other_result": 1}
    two = load_label_config(scale.replace('<Choice value="Three" alias="3"/>', ""))
    (group,), _ = run([task(choice("2"))], label_config=two)
    assert group.judgements[0].value == {"winner": "answer2", "loser": "answer1"}


def test_choice_of_a_tie_and_of_both_bad():
    (group,), _ = run([task(choice("平局"))])
    assert group.judgements[0].value == {"tie": ["answer1", "answer2"]}
    assert "both_bad" not in group.meta
    (group,), _ = run([task(choice("Both bad"))])
    assert group.judgements[0].value == {"tie": ["answer1", "answer2"]}
    assert group.meta["both_bad"] == 1
    broken = choice("Both bad")
    broken["result"].append({"type": "pairwise", "value": {"selected": "up"}})
    (group,), _ = run([task(broken, pairwise(id=5))])
    assert "both_bad" not in group.meta


def test_items_without_ids_are_numbered_as_people_count():
    data = {"prompt": "Q", "answers": ["x", "y", {"text": "z"}]}
    (group,), _ = run([task(choice("1"), **data)])
    assert [(c.id, c.content) for c in group.candidates] == [("1", "x"), ("2", "y"), ("3", "z")]
    assert {j.value["winner"] for j in group.judgements} == {"1"}


def test_choice_that_names_nothing_or_too_much_is_no_vote():
    _, intake = run([task(choice("toxic")), task({**choice("A", "B"), "id": 2})])
    assert dict(intake.rows.dropped) == {"other_result": 1, "ambiguous_choice": 1}


def test_best_of_three_beats_the_two_others_and_says_nothing_about_them():
    (group,), _ = run([task(choice("b"), **ITEMS)])
    assert [(p.a, p.b, p.weight) for p in targets(group)] == [(1, 0, 0.5), (1, 2, 0.5)]


def test_one_annotation_that_prefers_both_sides_is_no_vote():
    both = pairwise()
    both["result"] += pairwise("right")["result"]
    _, intake = run([task(both)])
    assert dict(intake.rows.dropped) == {"contradicting_results": 1}


def test_two_sets_of_candidates_are_an_error_that_names_them():
    row = task(pairwise(), prompt="Q", answer1="A", answer2="B", response1="C", response2="D")
    with pytest.raises(
        UserError, match=r"answer1\+answer2 or response1\+response2.*--label_config"
    ):
        run([row])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"prompt": "Q", "answer1": "A"}, "no_candidates"),
        ({"answer1": "A", "answer2": "B"}, "no_prompt"),
        ({"prompt": "Q", "answer1": "A", "answer2": ""}, "empty_candidate"),
        ({"prompt": "Q", "answer1": "A", "answer2": "A"}, "identical_candidates"),
        ({"prompt": "Q", "items": [{"id": "a", "body": "x"}]}, "one_candidate"),
        ({"prompt": "Q", "items": [{"id": "a"}, {"id": "b"}]}, "not_text"),
    ],
)
def test_tasks_without_a_comparison_are_counted(data, reason):
    _, intake = run([task(pairwise(), **data)])
    assert dict(intake.rows.dropped) == {reason: 1}


def test_merging_maps_swapped_candidates_by_content():
    first = task(pairwise("left"))
    swapped = task(pairwise("left", completed_by=11), prompt="Q", answer1="B", answer2="A")
    groups, _ = run([first, swapped])
    assert groups[0].group_id == groups[1].group_id
    merged = merge(groups)
    assert [j.value["winner"] for j in merged.judgements] == ["answer1", "answer2"]
    assert targets(merged)[0].target == 0.5
    assert merged.meta["merged"] == 2
    assert merged.meta["display_order"] is False
    assert merge([merged, groups[0]]).meta["merged"] == 3


def test_merging_adds_up_what_was_both_bad():
    groups, _ = run([task(choice("both bad")), task({**choice("both bad"), "id": 2})])
    merged = merge(groups)
    assert merged.meta["both_bad"] == 2
    assert merged.meta["display_order"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<View>", "not well formed"),
        ("<!DOCTYPE x><View/>", "document type"),
        ("no/such/file.xml", "neither a file nor field names"),
        ("left=a", "does not name two candidates"),
        ("links=a,right=b", "unknown keys"),
    ],
)
def test_bad_label_configs_are_user_errors(text, message):
    with pytest.raises(UserError, match=message):
        load_label_config(text)
