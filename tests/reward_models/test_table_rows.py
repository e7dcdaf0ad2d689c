"""Rows of plain tables → the exact groups and targets, by column names and by mapping."""

from __future__ import annotations

import pytest
from format_rows import run, trained

from align.config_errors import UserError
from reward_models.annotations.base import Options
from reward_models.annotations.columns import parse_mapping, role_of
from reward_models.annotations.detect import detect
from reward_models.annotations.reading import read
from reward_models.annotations.table import FORMAT, matches


def test_names_of_columns():
    names = {
        "Prompt": ("prompt", ""), "问题": ("prompt", ""), "指令 ": ("prompt", ""),
        "Response 1": ("answer", "1"), "answer-b": ("answer", "b"), "回答２": ("answer", "2"),
        "completion_10": ("answer", "10"), "A": ("answer", "a"), "left": ("answer", "left"),
        "rank_1": ("rank", "1"), "排名1": ("rank", "1"), "回答1排名": ("rank", "1"),
        "response_1_rank": ("rank", "1"), "score_a": ("score", "a"), "评分1": ("score", "1"),
        "response_a_rating": ("score", "a"), "model_1": ("model", "1"), "偏好": ("winner", ""),
        "标注员": ("annotator", ""), "Worker ID": ("annotator", ""), "margin": ("strength", ""),
    }  # fmt: skip
    assert {n: role_of(n)[:2] for n in names} == names
    assert [role_of(n) for n in ("", "id", "note", "response", "rank", "answer_1_length")] == [
        None
    ] * 6


def test_ranks_1_is_best_and_equal_ranks_tie():
    row = {"prompt": "q", "response_1": "x", "response_2": "y", "response_3": "z", "rank_1": 2,
           "rank_2": 1, "rank_3": 2, "annotator": "li", "model_2": "m2"}  # fmt: skip
    (group,), _ = run(FORMAT, row)
    assert matches(row) == (
        "columns prompt, response_1, response_2, response_3, rank_1, rank_2, rank_3"
    )
    assert [c.to_json() for c in group.candidates] == [
        {"id": "response_1", "content": "x", "model": None},
        {"id": "response_2", "content": "y", "model": None},
        {"id": "response_3", "content": "z", "model": None},
    ]
    third = round(1 / 3, 6)
    assert trained(group) == [
        ("response_2", "response_1", 1.0, third),
        ("response_1", "response_3", 0.5, third),
        ("response_2", "response_3", 1.0, third),
    ]
    assert group.judgements[0].annotator == "li"


def test_scores_higher_is_better_and_an_empty_answer_takes_no_part():
    row = {"指令": "写", "回答A": "甲", "回答B": "乙", "回答C": " ", "评分A": "2", "评分B": "4.5",
           "评分C": None, "模型A": "m1", "模型B": "m2", "模型C": "m3"}  # fmt: skip
    (group,), _ = run(FORMAT, row)
    assert trained(group) == [("回答B", "回答A", 1.0, 1.0)]
    assert [c.model for c in group.candidates] == ["m1", "m2"]
    assert group.judgements[0].value == {"回答A": 2.0, "回答B": 4.5}


@pytest.mark.parametrize(
    ("word", "winner"),
    [
        ("response_a", "response_a"), ("B", "response_b"), ("Response B", "response_b"),
        ("left", "response_a"), ("model_b", "response_b"), ("gpt-x", "response_b"),
        ("回答b", "response_b"), ("A is better", "response_a"), ("tie", None), ("平局", None),
        ("both bad", None),
    ],
)  # fmt: skip
def test_winners_are_named_in_many_ways(word, winner):
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": word, "model_a": "llm",
           "model_b": "GPT-x", "strength": 3}  # fmt: skip
    (group,), _ = run(FORMAT, row)
    (judgement,) = group.judgements
    assert judgement.value.get("winner") == winner
    assert ("tie" in judgement.value) == (winner is None)
    assert judgement.strength == 3.0
    assert group.meta.get("both_bad") == (1 if word == "both bad" else None)


def test_numbers_name_answers_by_their_column():
    def winner(value, *columns):
        (group,), _ = run(
            FORMAT, {"prompt": "q", **dict(zip(columns, "xyz", strict=False)), "winner": value}
        )
        return group.judgements[0].value["winner"]

    assert winner(1, "response_1", "response_2") == "response_1"
    assert winner(2.0, "response_1", "response_2", "response_3") == "response_2"
    assert winner("0", "response_0", "response_1") == "response_0"
    assert winner(1, "response_0", "response_1") == "response_1"


def test_an_empty_answer_does_not_move_the_others():
    row = {"prompt": "q", "answer_1": "", "answer_2": "y", "answer_3": "z", "winner": 2}
    (group,), _ = run(FORMAT, row)
    assert [t[:2] for t in trained(group)] == [("answer_2", "answer_3")]
    (group,), _ = run(FORMAT, {**row, "winner": "B"})
    assert [t[:2] for t in trained(group)] == [("answer_2", "answer_3")]
    (group,), _ = run(FORMAT, {**row, "winner": "tie"})
    assert trained(group) == [("answer_2", "answer_3", 0.5, 1.0)]


def test_a_winner_of_three_beats_both_others():
    row = {"prompt": "q", "answer_1": "x", "answer_2": "y", "answer_3": "z", "best": 3}
    (group,), intake = run(FORMAT, row)
    assert [t[:2] for t in trained(group)] == [("answer_3", "answer_1"), ("answer_3", "answer_2")]
    assert intake.votes.used == 1


def test_chosen_and_rejected_under_a_chinese_prompt():
    (group,), _ = run(FORMAT, {"提示": "问", "chosen": "好", "rejected": "坏", "margin": "1.5"})
    assert trained(group) == [("chosen", "rejected", 1.0, 1.0)]
    assert group.judgements[0].strength == 1.5


def test_alpaca_columns_and_system():
    row = {"instruction": "Say", "input": "hi", "system": "S", "a": "x", "b": "y", "winner": "a"}
    (group,), intake = run(FORMAT, row)
    assert [(m.role, m.content) for m in group.prompt] == [("system", "S"), ("user", "Say\nhi")]
    assert not intake.warnings


def test_columns_that_tell_a_preference_and_are_not_used_are_said():
    row = {"prompt": "q", "context": "c", "response_1": "x", "response_2": "y", "rank_1": 1,
           "rank_2": 2, "score_1": 5, "score_2": 1, "winner": 1}  # fmt: skip
    _, intake = run(FORMAT, row, {**row, "prompt": "q2"})
    assert dict(intake.warnings) == {
        f"column {name!r} was left out": 2 for name in ("context", "score_1", "score_2", "winner")
    }


GOOD = {"prompt": "q", "response_1": "x", "response_2": "y", "rank_1": 1, "rank_2": 2}
WON = {"prompt": "q", "response_1": "x", "response_2": "y", "winner": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "rank_1": float("nan")}, "not_finite"),
        ({**GOOD, "rank_1": "nan"}, "not_finite"),
        ({**GOOD, "rank_1": "inf"}, "not_finite"),
        ({**GOOD, "rank_1": 10**400}, "not_finite"),
        ({**GOOD, "rank_1": "first"}, "bad_number"),
        ({**GOOD, "rank_1": True}, "bad_number"),
        ({**GOOD, "rank_1": [1]}, "bad_number"),
        ({**GOOD, "rank_1": None}, "nothing_ranked"),
        ({**GOOD, "response_1": ""}, "unknown_candidate"),
        ({**GOOD, "response_1": "", "rank_1": ""}, "nothing_ranked"),
        ({**GOOD, "response_1": "y"}, "identical_candidates"),
        ({**GOOD, "prompt": None}, "no_prompt"),
        ({**GOOD, "prompt": "  "}, "no_prompt"),
        ({**WON, "winner": "3"}, "unknown_winner"),
        ({**WON, "winner": "response_9"}, "unknown_winner"),
        ({**WON, "winner": "who knows"}, "unknown_winner"),
        ({**WON, "winner": {"a": 1}}, "unknown_winner"),
        ({**WON, "winner": None}, "no_judgements"),
        ({**WON, "winner": " "}, "no_judgements"),
        ({**WON, "response_1": None, "winner": "response_1"}, "unknown_winner"),
        ({**WON, "response_1": None, "winner": "response_2"}, "one_candidate"),
        ({**WON, "response_3": "z", "response_1": "", "winner": "1"}, "unknown_winner"),
        ({**WON, "response_3": "z", "response_1": "", "winner": "response_1"}, "unknown_winner"),
        ({"prompt": "q", "response_0": "x", "response_1": "y", "winner": 2}, "unknown_winner"),
        ({"prompt": "q", "response_b": "x", "response_c": "y", "winner": "a"}, "unknown_winner"),
        ({**WON, "strength": -1}, "bad_value"),
        ({**WON, "strength": "nan"}, "not_finite"),
        ({"prompt": "q", "response_1": "x", "winner": 1}, "missing_field"),
        ({"prompt": "q", "response_1": "x", "response_2": "y"}, "missing_field"),
        ({"response_1": "x", "response_2": "y", "winner": 1}, "missing_field"),
        (["q", "x"], "not_an_object"),
    ],
)
def test_rows_that_say_nothing_clear_are_dropped_by_name(row, reason):
    groups, intake = run(FORMAT, row)
    assert groups == []
    assert dict(intake.rows.dropped) == {reason: 1}
    assert intake.votes.total == isinstance(row, dict)


def test_the_same_row_counts_once_and_other_annotators_stay():
    swapped = {"prompt": "q", "response_1": "y", "response_2": "x", "rank_1": 2, "rank_2": 1}
    rows = [GOOD, dict(GOOD), swapped, {**GOOD, "annotator": "a"}, {**GOOD, "annotator": "b"}]
    groups, intake = run(FORMAT, *rows)
    assert len({g.group_id for g in groups}) == 1
    assert [g.judgements[0].annotator for g in groups] == [None, "a", "b"]
    assert dict(intake.rows.dropped) == {"duplicate_row": 2}
    # Nobody's name is nobody.
    groups, _ = run(FORMAT, {**GOOD, "annotator": " "})
    assert groups[0].judgements[0].annotator is None


def test_two_sets_of_answers_are_an_error_that_names_them():
    row = {"prompt": "q", "response_1": "x", "response_2": "y", "output_1": "v", "output_2": "w",
           "winner": 1}  # fmt: skip
    assert matches(row) is None
    with pytest.raises(UserError, match=r"response_1\+response_2 or output_1\+output_2.*--mapping"):
        run(FORMAT, row)


# --- --mapping


def test_a_mapping_names_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("客户的话,A版,B版,更好的是,response_3\n问,甲,乙,B版,丙\n", "utf-8")
    mapping = parse_mapping("prompt=客户的话,response_1=A版, response_2=B版,winner=更好的是")
    assert [row.obj for row in read(path, Options(mapping=mapping))] == [
        {"prompt": "问", "response_1": "甲", "response_2": "乙", "winner": "response_2"}
    ]
    assert detect(path, Options(mapping=mapping)).format.name == "table"
    # A comma belongs to a column's name unless a name and = follow it.
    assert parse_mapping("prompt=Q, asked,winner=Best (A, B)") == {
        "prompt": "Q, asked", "winner": "Best (A, B)",
    }  # fmt: skip


def test_a_winner_may_be_named_by_a_mapped_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("题目,甲稿,乙稿,结论\n写,好,坏, 甲稿\n写,一,二,乙稿\n写,三,四,tie\n", "utf-8")
    options = Options(
        mapping=parse_mapping("prompt=题目,response_1=甲稿,response_2=乙稿,winner=结论")
    )
    rows = [row.obj for row in read(path, options)]
    assert [row["winner"] for row in rows] == ["response_1", "response_2", "tie"]
    groups, _ = run(FORMAT, *rows)
    assert [trained(g)[0][:3] for g in groups] == [
        ("response_1", "response_2", 1.0),
        ("response_2", "response_1", 1.0),
        ("response_1", "response_2", 0.5),
    ]


def test_a_column_called_a_may_be_the_second_answer(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("prompt,B,A,winner\nq,bad,good,a\nr,good,bad,B\n", "utf-8")
    options = Options(mapping=parse_mapping("response_1=B,response_2=A"))
    groups, _ = run(FORMAT, *[row.obj for row in read(path, options)])
    won = [g.judgements[0].value["winner"] for g in groups]
    texts = [{c.id: c.content for c in g.candidates} for g in groups]
    assert [text[w] for text, w in zip(texts, won, strict=True)] == ["good", "good"]


def test_a_mapping_makes_pairs_too(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"问": "q", "好": "a", "坏": "b"}\n', "utf-8")
    options = Options(mapping=parse_mapping("prompt=问,chosen=好,rejected=坏"))
    assert detect(path, options).format.name == "pairs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt", "'prompt' where NAME=COLUMN is expected"),
        ("prompt=", "where NAME=COLUMN is expected"),
        ("promt=Q", "'promt', which is no role of a column. Did you mean prompt?"),
        ("response=Q", "Did you mean response_1?"),
        ("prompt=Q,prompt=R", "names prompt twice"),
    ],
)
def test_wrong_mappings_say_what_is_meant(text, message):
    with pytest.raises(UserError) as caught:
        parse_mapping(text)
    assert message in str(caught.value)
