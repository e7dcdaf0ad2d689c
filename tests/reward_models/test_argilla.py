"""Literal Argilla records, nested and flattened → the exact groups, votes, targets and counts."""

from __future__ import annotations

import json
import uuid

import pytest
from samples import SAMPLES

from align.config_errors import UserError
from align.records import Message
from reward_models.annotations import Intake, Options
from reward_models.annotations.argilla import FORMAT, matches
from reward_models.annotations.base import Row
from reward_models.annotations.label_config import load_label_config
from reward_models.importing import ImportSettings, run_import
from reward_models.preferences import targets

FIELDS = {"instruction": "Q", "response1": "A", "response2": "B"}
THREE = {"prompt": "问", "response_a": "甲", "response_b": "乙", "response_c": "丙"}
UNKNOWN = "the records do not say which responses were submitted: drafts count too"
STRICT = "Argilla exports no rank numbers: tied ranks became a strict order"


def nested(fields=FIELDS, suggestions=None, **answers):
    """question=[(value, user), …]."""
    responses = {
        question: [{"value": value, "user_id": user} for value, user in given]
        for question, given in answers.items()
    }
    return {
        "id": "r1", "fields": fields, "metadata": {}, "suggestions": suggestions or {},
        "responses": responses, "vectors": {}, "status": "completed", "_server_id": "s1",
    }  # fmt: skip


def flat(fields=FIELDS, **answers):
    """question=[(value, user, status), …]."""
    record = {"id": "r1", "status": "completed", "_server_id": "s1", **fields}
    for question, given in answers.items():
        values, users, status = (list(column) for column in zip(*given, strict=True))
        record[f"{question}.responses"] = values
        record[f"{question}.responses.users"] = users
        record[f"{question}.responses.status"] = status
    return record


def run(rows, **options):
    intake = Intake(Options(**options))
    made = [Row("x.json", i, i, obj) for i, obj in enumerate(rows, 1)]
    groups = list(FORMAT.parse(made, intake))
    assert len(rows) == intake.rows.total
    return groups, intake


def votes(group):
    return [(j.annotator, j.value) for j in group.judgements]


def test_the_nested_record_gives_the_exact_group():
    (group,), intake = run(SAMPLES["argilla"][:1])
    assert group.prompt == (Message("user", "Q"),)
    assert [c.to_json() for c in group.candidates] == [
        {"id": "response1", "content": "A", "model": None},
        {"id": "response2", "content": "B", "model": None},
    ]
    assert [j.to_json() for j in group.judgements] == [
        {
            "annotator": "u1", "kind": "rank", "value": {"response1": 2, "response2": 1},
            "strength": None, "source": "argilla:ranking:ranking", "suspect": None,
        },
    ]  # fmt: skip
    assert group.meta == {"source": "argilla", "record_id": "r1"}
    assert [p.to_json() for p in targets(group)] == [
        {"a": 1, "b": 0, "target": 1.0, "weight": 1.0, "margin": None}
    ]
    # The user's answers are one vote, also the rating that is about no candidate.
    assert intake.votes.used == 1
    assert dict(intake.votes.dropped) == {"suggestion": 1}
    assert set(intake.warnings) == {
        UNKNOWN, STRICT, "rating 'rating' is about no candidate: left out",
    }  # fmt: skip


def test_the_flattened_record_gives_the_same_group_and_keeps_the_status():
    (group,), intake = run(
        [
            flat(
                ranking=[
                    (["response2", "response1"], "u1", "submitted"),
                    (["response1", "response2"], "u2", "discarded"),
                    (["response1", "response2"], "u3", "draft"),
                ]
            )
        ]
    )
    assert votes(group) == [("u1", {"response1": 2, "response2": 1})]
    assert (intake.votes.used, dict(intake.votes.dropped)) == (1, {"discarded": 1, "draft": 1})
    assert dict(intake.warnings) == {STRICT: 1}
    (same,), _ = run([nested(ranking=[(["response2", "response1"], "u1")])])
    assert (same.group_id, same.judgements) == (group.group_id, group.judgements)


def test_suggestions_are_never_votes():
    guess = {"ranking": {"value": ["response1", "response2"], "score": 0.9, "agent": "m"}}
    groups, intake = run([nested(suggestions=guess)])
    assert groups == []
    assert dict(intake.rows.dropped) == {"no_annotations": 1}
    assert dict(intake.votes.dropped) == {"suggestion": 1}
    given = {
        **flat(), "ranking.suggestion": ["response1", "response2"],
        "ranking.suggestion.score": None, "ranking.suggestion.agent": None,
        "label.suggestion": None, "ranking.responses": None, "ranking.responses.users": None,
    }  # fmt: skip
    groups, intake = run([given])
    assert groups == []
    assert dict(intake.votes.dropped) == {"suggestion": 1}


def test_rankings_of_three_and_how_they_are_named():
    given = [
        (["response_b", "response_c", "response_a"], "u1", "submitted"),
        (["C", "A", "B"], "u2", "submitted"),
    ]
    (group,), intake = run([flat(THREE, better=given)])
    assert votes(group) == [
        ("u1", {"response_a": 3, "response_b": 1, "response_c": 2}),
        ("u2", {"response_a": 2, "response_b": 3, "response_c": 1}),
    ]
    # b > a once each way, c > a twice, b > c once each way.
    third = pytest.approx(1 / 3)
    assert sorted((p.a, p.b, p.target, p.weight) for p in targets(group)) == [
        (0, 1, 0.5, third), (1, 2, 0.5, third), (2, 0, 1.0, third),
    ]  # fmt: skip
    assert intake.warnings[STRICT] == 2


def test_rank_numbers_where_they_are_kept():
    value = [
        {"value": "response_b", "rank": 1},
        {"value": "response_a", "rank": 1},
        {"value": "response_c", "rank": 3},
    ]
    (group,), intake = run([flat(THREE, better=[(value, "u1", "submitted")])])
    assert votes(group) == [("u1", {"response_a": 1, "response_b": 1, "response_c": 3})]
    assert [p.target for p in targets(group)] == [0.5, 1.0, 1.0]
    assert not intake.warnings


def test_records_of_the_server_api():
    record = {
        "id": "r1", "fields": FIELDS, "suggestions": [{"question_id": "q", "value": "x"}],
        "responses": [
            {"user_id": "u1", "status": "submitted", "values": {
                "ranking": {"value": [{"value": "response2", "rank": 1},
                                      {"value": "response1", "rank": 2}]},
                "comment": {"value": "fine"}}},
            {"user_id": "u2", "status": "discarded", "values": None},
            {"user_id": "u3", "status": "submitted", "values": {"ranking": []}},
            7,
        ],
    }  # fmt: skip
    (group,), intake = run([record])
    assert votes(group) == [("u1", {"response1": 2, "response2": 1})]
    assert dict(intake.votes.dropped) == {"suggestion": 1, "discarded": 1, "malformed_response": 2}
    assert not intake.warnings


@pytest.mark.parametrize("names", [
    ("rating_response1", "rating_response2"), ("response1_quality", "response2_quality"),
    ("quality-1", "quality-2"), ("quality_response-1", "quality_response-2"),
])  # fmt: skip
def test_a_rating_question_per_response(names):
    one, two = names
    given = {one: [(5, "u1", "submitted"), (3, "u2", "submitted")], two: [(2, "u1", "submitted")]}
    (group,), intake = run([flat(**given)])
    assert [(j.annotator, j.kind, j.value) for j in group.judgements] == [
        ("u1", "score", {"response1": 5.0, "response2": 2.0}),
        ("u2", "score", {"response1": 3.0}),
    ]
    assert len({j.source for j in group.judgements}) == 1
    (pair,) = targets(group, margin=True)
    assert (pair.a, pair.b, pair.target, pair.margin) == (0, 1, 1.0, 3.0)
    assert intake.votes.used == 2


def test_two_questions_about_each_response_are_two_judgements():
    answers = {"helpful_response1": 1, "helpful_response2": 2, "safe_response1": 4,
               "safe_response2": 3}  # fmt: skip
    given = {q: [(value, "u1", "submitted")] for q, value in answers.items()}
    (group,), _ = run([flat(**given)])
    assert {j.source: j.value for j in group.judgements} == {
        "argilla:rating:helpful": {"response1": 1.0, "response2": 2.0},
        "argilla:rating:safe": {"response1": 4.0, "response2": 3.0},
    }


@pytest.mark.parametrize(
    ("value", "vote"),
    [
        ("response2", {"winner": "response2", "loser": "response1"}),
        ("B", {"winner": "response2", "loser": "response1"}),
        ("Response 1 is better", {"winner": "response1", "loser": "response2"}),
        (["response1"], {"winner": "response1", "loser": "response2"}),
        ("tie", {"tie": ["response1", "response2"]}),
        ("都不好", {"tie": ["response1", "response2"]}),
    ],
)
def test_labels_that_prefer(value, vote):
    (group,), intake = run([flat(preference=[(value, "u1", "submitted")])])
    assert votes(group) == [("u1", vote)]
    assert group.judgements[0].source == "argilla:label:preference"
    assert group.meta.get("both_bad") == (1 if value == "都不好" else None)
    assert not intake.warnings


def test_other_answers_beside_a_vote_are_left_out():
    given = flat(
        preference=[("response1", "u1", "submitted")],
        comment=[("说得清楚", "u1", "submitted")],
        topics=[(["cats", "dogs"], "u1", "submitted")],
        spans=[([{"start": 0, "end": 1, "label": "x"}], "u1", "submitted")],
    )
    (group,), intake = run([given])
    assert votes(group) == [("u1", {"winner": "response1", "loser": "response2"})]
    assert (intake.votes.used, intake.votes.total) == (1, 1)


def test_labels_that_may_be_several_are_no_ranking():
    # u2 chose one of two: it is no ranking question, so u1's two labels have no order.
    given = [(["response1", "response2"], "u1", "submitted"), (["response2"], "u2", "submitted")]
    (group,), intake = run([flat(good=given)])
    assert votes(group) == [("u2", {"winner": "response2", "loser": "response1"})]
    assert dict(intake.votes.dropped) == {"ambiguous_choice": 1}


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"ranking": [(["response2", "response9"], "u", "submitted")]}, "unknown_candidate"),
        ({"ranking": [(["response2", "response2"], "u", "submitted")]}, "repeated_candidate"),
        ({"ranking": [([{"value": "response1", "rank": float("nan")},
                        {"value": "response2", "rank": 1}], "u", "submitted")]}, "not_finite"),
        ({"ranking": [([{"value": "response1", "rank": "1"},
                        {"value": "response2", "rank": 1}], "u", "submitted")]},
         "malformed_result"),
        ({"ranking": [([{"value": "response1", "rank": 1},
                        {"value": "response2", "rank": None}], "u", "submitted")]},
         "nothing_ranked"),
        ({"rating_response1": [(float("inf"), "u", "submitted")]}, "not_finite"),
        ({"rating": [(4, "u", "submitted")]}, "no_such_candidate"),
        ({"label": [("cats", "u", "submitted")]}, "other_result"),
        ({"label": [(None, "u", "submitted")]}, "empty_result"),
        ({"label": [("response1", "u", "submitted"), ("response2", "u", "submitted")]},
         "repeated_answer"),
        ({"label": [("response1", "u", "deleted")]}, "unknown_status"),
    ],
)  # fmt: skip
def test_what_is_no_vote_is_counted(answers, reason):
    groups, intake = run([flat(**answers)])
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == {reason: 1}


@pytest.mark.parametrize("change", [
    {"ranking.responses": "response1"},
    {"ranking.responses.users": ["u1", "u2"]},
    {"ranking.responses.status": "submitted"},
])  # fmt: skip
def test_columns_that_do_not_fit_each_other_are_malformed(change):
    given = {**flat(ranking=[(["response2", "response1"], "u1", "submitted")]), **change}
    _, intake = run([given])
    assert dict(intake.rows.dropped) == {"malformed_response": 1}
    assert dict(intake.votes.dropped) == {"malformed_response": 1}


def test_malformed_nested_responses():
    given = nested()
    given["responses"] = {"ranking": [7, {"user_id": "u"}], "label": "response1", "other": None}
    _, intake = run([given])
    assert dict(intake.rows.dropped) == {"malformed_response": 1}
    assert dict(intake.votes.dropped) == {"malformed_response": 3}


def test_users_without_an_id_vote_each_for_themselves():
    given = nested(label=[("response1", None), ("response1", "None"), ("response2", "u1")])
    (group,), intake = run([given])
    assert sorted((str(j.annotator), j.value["winner"]) for j in group.judgements) == [
        ("None", "response1"), ("None", "response1"), ("u1", "response2"),
    ]  # fmt: skip
    assert targets(group)[0].target == pytest.approx(2 / 3)
    assert intake.votes.used == 3


def test_a_record_in_both_forms_counts_once():
    rows = [
        flat(label=[("response1", "u1", "submitted")]),
        nested(label=[("response1", "u1")]),
        {**nested(label=[("response1", "u1")]), "id": "r2"},
    ]
    groups, intake = run(rows)
    assert len(groups) == 2
    assert dict(intake.rows.dropped) == {"duplicate_annotation": 1}
    assert dict(intake.votes.dropped) == {"duplicate_annotation": 1}


def test_a_chat_is_a_prompt():
    chat = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"},
            {"role": "user", "content": "再见"}]  # fmt: skip
    fields = {"chat": chat, "response1": "好的", "response2": "再见！"}
    (group,), _ = run([nested(fields, label=[("B", "u1")])])
    assert [m.role for m in group.prompt] == ["user", "assistant", "user"]
    assert votes(group) == [("u1", {"winner": "response2", "loser": "response1"})]


def test_fields_of_other_names_are_given_by_the_user():
    fields = {"题目": "问", "甲方": "甲", "乙方": "乙"}
    config = load_label_config("prompt=题目,left=甲方,right=乙方")
    (group,), _ = run([nested(fields, order=[(["乙方", "甲方"], "u1")])], label_config=config)
    assert votes(group) == [("u1", {"甲方": 2, "乙方": 1})]
    two = {**FIELDS, "answer1": "C", "answer2": "D"}
    with pytest.raises(UserError, match=r"response1\+response2 or answer1\+answer2"):
        run([nested(two, label=[("B", "u1")])])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "Q", "response1": "A"}, "no_candidates"),
        ({"response1": "A", "response2": "B"}, "no_prompt"),
        ({**FIELDS, "response2": "A"}, "identical_candidates"),
        ({**FIELDS, "response2": " "}, "empty_candidate"),
    ],
)
def test_records_without_a_comparison_are_dropped_with_their_votes(fields, reason):
    given = nested(fields, {"x": {"value": "A"}}, label=[("A", "u1"), ("B", "u2")])
    _, intake = run([given])
    assert dict(intake.rows.dropped) == {reason: 1}
    assert dict(intake.votes.dropped) == {reason: 3}


def test_evidence():
    assert matches(SAMPLES["argilla"][0]) == "fields and responses"
    assert matches(SAMPLES["argilla"][1]) == "ranking.responses and ranking.responses.users"
    assert matches({"instruction": "Q", "x.suggestion": "A", "x.suggestion.agent": None}) == (
        "x.suggestion and x.suggestion.agent"
    )
    assert matches(FIELDS) is None


# --- records of the argilla package itself

USERS = [str(uuid.UUID(int=i)) for i in (1, 2, 3)]


def records(rg):
    def response(question, value, user, status="submitted"):
        return rg.Response(question, value, user_id=uuid.UUID(USERS[user]), status=status)

    guess = rg.Suggestion("ranking", ["response1", "response2"], score=0.8, agent="m")
    flowers = rg.Record(
        id="zh",
        fields={"instruction": "春天有哪些花？", "response1": "桃花。", "response2": "不知道。"},
        suggestions=[guess], metadata={"topic": "花"}, vectors={"v": [0.1, 0.2]},
        responses=[
            response("ranking", ["response1", "response2"], 0),
            response("rating_response1", 5, 0), response("rating_response2", 1, 0),
            response("ranking", ["response2", "response1"], 1),
            response("ranking", ["response2", "response1"], 2, "discarded"),
        ],
    )  # fmt: skip
    addition = rg.Record(
        id="en", fields={"instruction": "2 + 2?", "response1": "5", "response2": "4"},
        responses=[
            response("preference", "response2", 0), response("preference", "tie", 1),
            response("comment", "second is right", 0),
        ],
    )  # fmt: skip
    nobody = rg.Record(
        id="none", fields={"instruction": "?", "response1": "x", "response2": "y"},
        suggestions=[guess],
    )  # fmt: skip
    return [flowers, addition, nobody]


def imported(tmp_path, path):
    settings = ImportSettings((str(path),), tmp_path / f"{path.stem}-out")
    report = run_import(settings, say=lambda _: None)
    lines = (settings.output / "preferences.jsonl").read_text("utf-8").splitlines()
    groups = {g["meta"]["record_id"]: g for g in map(json.loads, lines)}
    found = {
        name: sorted(
            [(USERS.index(j["annotator"]), j["source"], j["value"]) for j in group["judgements"]],
            key=str,
        )
        for name, group in groups.items()
    }
    lines = (settings.output / "pairs.jsonl").read_text("utf-8").splitlines()
    pairs = {
        p["chosen"][0]["content"]: p["target"]
        for p in map(json.loads, lines) if p["target"] > 0.5
    }  # fmt: skip
    return report, found, pairs


def test_records_written_by_argilla_itself(tmp_path):
    rg = pytest.importorskip("argilla")
    from argilla.records._io import GenericIO, JsonIO

    made = records(rg)
    path = JsonIO.to_json(made, tmp_path / "nested.json")
    report, found, pairs = imported(tmp_path, path)
    flowers = [
        (0, "argilla:ranking:ranking", {"response1": 1, "response2": 2}),
        (0, "argilla:rating:rating", {"response1": 5.0, "response2": 1.0}),
        (1, "argilla:ranking:ranking", {"response1": 2, "response2": 1}),
    ]
    addition = [
        (0, "argilla:label:preference", {"winner": "response2", "loser": "response1"}),
        (1, "argilla:label:preference", {"tie": ["response1", "response2"]}),
    ]
    # The nested form lost that the third user discarded the record.
    third = (2, "argilla:ranking:ranking", {"response1": 2, "response2": 1})
    assert found == {"zh": [*flowers, third], "en": addition}
    assert pairs == {"4": 0.75, "不知道。": pytest.approx(2 / 3)}
    assert report["inputs"][0]["format"] == "argilla"
    assert report["votes"]["used"] == 5
    assert report["votes"]["dropped"] == {"suggestion": 2}
    assert report["rows"]["dropped"] == {"no_annotations": 1}
    assert any(UNKNOWN in warning for warning in report["warnings"])

    path = tmp_path / "flat.json"
    path.write_text(json.dumps(GenericIO.to_list(made, flatten=True)))
    report, found, pairs = imported(tmp_path, path)
    assert found == {"zh": flowers, "en": addition}
    assert pairs == {"4": 0.75}
    assert report["votes"]["dropped"] == {"discarded": 1, "suggestion": 2}
    assert not any(UNKNOWN in warning for warning in report["warnings"])
