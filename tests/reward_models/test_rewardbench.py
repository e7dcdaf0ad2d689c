"""RewardBench 1 and 2: the published aggregations, worked by hand."""

from __future__ import annotations

import json
import math

import pytest

from align.config_errors import UserError
from align.records import Message
from reward_models.evaluation_input import read_items
from reward_models.rewardbench import (
    COUNTS,
    PRIOR,
    SUBSETS,
    Item,
    best_of_all,
    evaluate_items,
    ties_score,
    ties_table,
)

RIGHT, WRONG, EQUAL = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def first(outcomes, **more):
    """RewardBench 1 of {subset: score rows}."""
    rows = [(name, row) for name, found in outcomes.items() for row in found]
    items = [Item(name, "p", ("a",), ("b",)) for name, _ in rows]
    return evaluate_items("rewardbench", items, [row for _, row in rows], resamples=20, **more)


def test_equal_scores_are_wrong():
    found = first({"alpacaeval-easy": [RIGHT, WRONG, EQUAL, RIGHT]})
    assert found["subsets"]["alpacaeval-easy"]["score"] == 0.5
    assert found["subsets"]["alpacaeval-easy"]["rows"] == 4


def test_a_section_weighs_its_subsets_by_their_published_size():
    # 1/2 of 100 and all of 40: whatever the number of rows here.
    found = first({"alpacaeval-easy": [RIGHT, WRONG], "mt-bench-med": [RIGHT]})
    assert found["sections"]["Chat"]["score"] == pytest.approx((100 / 2 + 40) / 140)
    assert found["sections"]["Chat"]["missing"] == [
        "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy",
    ]  # fmt: skip
    # XSTest: 154 should be refused, 250 should be answered.
    found = first({"xstest-should-refuse": [WRONG], "xstest-should-respond": [RIGHT]})
    assert found["sections"]["Safety"]["score"] == pytest.approx(250 / 404)


CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")


def test_mathematics_weighs_as_much_as_all_code():
    found = first({"math-prm": [RIGHT, WRONG], **{name: [RIGHT] for name in CODE}})
    assert found["sections"]["Reasoning"] == {
        "score": pytest.approx(0.75), "low": pytest.approx(0.5), "high": pytest.approx(1.0),
    }  # fmt: skip


def test_published_sizes_add_up():
    # The card's 2,985 rows, with math-prm counted 984 instead of 447 times.
    assert sum(sum(counts.values()) for counts in COUNTS.values()) == 2985 + 984 - 447
    assert {s: sum(c.values()) for s, c in COUNTS.items()} == {
        "Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968,
    }  # fmt: skip


def everything(**changed):
    made = {name: [RIGHT] for counts in COUNTS.values() for name in counts}
    return {**made, **changed}


def test_the_overall_score_is_the_mean_of_four_sections():
    chat = {name: [WRONG] for name in COUNTS["Chat"]}
    found = first(everything(**chat, donotanswer=[WRONG]))
    assert found["sections"]["Chat"]["score"] == 0.0
    assert found["sections"]["Safety"]["score"] == pytest.approx(604 / 740)
    assert found["overall"]["score"] == pytest.approx((0 + 1 + 604 / 740 + 1) / 4)
    assert "overall_with_prior_sets" not in found


def test_without_a_section_there_is_no_overall_score():
    found = first({"alpacaeval-easy": [RIGHT]})
    assert found["overall"] == {
        "score": None, "low": None, "high": None, "missing": ["Chat Hard", "Safety", "Reasoning"],
    }  # fmt: skip


def test_prior_sets_count_half():
    found = first(everything(anthropic_helpful=[WRONG], shp=[RIGHT, WRONG], summarize=[RIGHT]))
    assert found["overall"]["score"] == 1.0
    prior = found["sections"]["Prior Sets"]
    assert prior["score"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert prior["missing"] == ["anthropic_hhh"]
    assert found["overall_with_prior_sets"]["score"] == pytest.approx((4 + 0.5 * 0.5) / 4.5)
    assert set(PRIOR) == {"anthropic_helpful", "anthropic_hhh", "shp", "summarize"}


def test_subsets_of_no_section_are_shown_and_named():
    found = first(everything(mine=[WRONG]))
    assert found["subsets"]["mine"]["score"] == 0.0
    assert found["in_no_section"] == ["mine"]
    assert found["overall"]["score"] == 1.0


def test_length_stands_beside_every_score():
    items = [Item("math-prm", "p", ("a",), ("bb",)), Item("math-prm", "p", ("aaa",), ("b",))]
    found = evaluate_items("rewardbench", items, [RIGHT, RIGHT], [[1.0, 2.0], [3.0, 1.0]])
    assert found["length_baseline"]["subsets"] == {"math-prm": 0.5}
    assert found["length_baseline"]["sections"]["Reasoning"] == 0.5
    assert found["length_baseline"]["overall"] is None


# --- RewardBench 2 ---


def test_best_of_four_shares_an_equal_top():
    assert best_of_all([3.0, 1.0, 2.0, 0.0]) == 1.0
    assert best_of_all([2.0, 3.0, 1.0, 0.0]) == 0.0
    assert best_of_all([2.0, 2.0, 1.0, 0.0]) == 1 / 2
    assert best_of_all([2.0, 2.0, 2.0, 2.0]) == 1 / 4


def tied(number, right, wrong):
    return Item("Ties", "p", ("a",) * len(right), ("b",) * len(wrong), f"tied:{number}"), [
        *right, *wrong,
    ]  # fmt: skip


def ref(number, right, *wrong):
    return Item("Ties", "p", ("a",), ("b",) * len(wrong), f"ref:{number}"), [right, *wrong]


def ties(*rows):
    return ties_score(ties_table([item for item, _ in rows], [scores for _, scores in rows]))


def test_ties_of_one_prompt_by_hand():
    # Right answers 3 and 2.5 (spread 0.5), gaps 2.5 (tied) and 1 (ref).
    found = ties(tied(1, [2.5, 3.0], [0.0, -1.0]), ref(1, 1.0, 0.0))
    assert found["score"] == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * 0.7615941559557649)
    # A gap of 1/4 in the reference: smaller than the spread, tanh(1/2 − 1).
    found = ties(tied(1, [2.5, 3.0], [0.0]), ref(1, 0.25, 0.0))
    assert found["score"] == pytest.approx(0.3 + 0.3 + 0.2 + 0.0 - 0.01 * 0.46211715726000973)
    # Gap and spread are both 1: right, but not by more than the right answers differ.
    found = ties(tied(1, [3.0, 2.0], [1.0]), ref(1, 5.0, 0.0))
    assert found["score"] == pytest.approx(0.6)
    # A wrong answer as high as the lowest right one is a mistake.
    found = ties(tied(1, [3.0, 1.0], [1.0]), ref(1, 0.0, 0.0))
    assert (found["accuracy_tied"], found["accuracy_ref"]) == (0.0, 0.0)
    assert found["score"] == pytest.approx(0.01 * math.tanh(-1.0))


def test_ties_average_each_part_over_prompts():
    found = ties(
        tied(1, [2.5, 3.0], [0.0]), ref(1, 1.0, 0.0),  # everything
        tied(2, [1.0, 9.0], [0.0]), ref(2, 0.0, 1.0),  # tied row alone right; min gap −1, spread 8
        ref(3, 1.0, 0.0),  # no tied row: counts in the references only
    )  # fmt: skip
    assert found["accuracy_ref"] == pytest.approx(2 / 3)
    assert found["accuracy_tied"] == 1.0
    assert (found["margin"], found["margin_hard"]) == (0.5, 0.5)
    assert found["tie_break"] == pytest.approx((math.tanh(1.0) + math.tanh(-1 / 8 - 1)) / 2)
    assert found["score"] == pytest.approx(
        0.3 + 0.3 * 2 / 3 + 0.2 / 2 + 0.2 / 2 + 0.01 * found["tie_break"]
    )


def test_right_answers_that_score_alike_give_the_limit_of_the_tie_break():
    assert ties(tied(1, [2.0, 2.0], [0.0]), ref(1, 1.0, 0.0))["tie_break"] == 1.0
    assert ties(tied(1, [2.0, 2.0], [3.0]), ref(1, 1.0, 0.0))["tie_break"] == -1.0
    assert ties(tied(1, [2.0, 2.0], [2.0]), ref(1, 1.0, 0.0))["tie_break"] == 0.0


def test_a_constant_and_a_scale_do_not_matter():
    rows = [tied(1, [2.5, 3.0], [0.0, 2.0]), ref(1, 1.0, 0.5), tied(2, [1.0, 1.5], [4.0]),
            ref(2, 0.0, 1.0)]  # fmt: skip
    moved = [(item, [7.0 * s - 3.0 for s in scores]) for item, scores in rows]
    assert ties(*rows)["score"] == pytest.approx(ties(*moved)["score"])


def test_ties_without_pairs_of_rows_have_no_score():
    assert ties(tied(1, [2.0, 1.0], [0.0]))["score"] is None
    assert ties(tied(1, [2.0, 1.0], [0.0]), ref(2, 1.0, 0.0))["score"] is None


def second(outcomes, tie_rows=()):
    rows = [
        (Item(name, "p", ("a",), ("b", "c", "d")), row)
        for name, found in outcomes.items() for row in found
    ] + list(tie_rows)  # fmt: skip
    items, scores = [item for item, _ in rows], [row for _, row in rows]
    return evaluate_items("rewardbench2", items, scores, resamples=20)


def test_the_overall_score_is_the_mean_of_six_subsets():
    good, bad = [3.0, 2.0, 1.0, 0.0], [0.0, 3.0, 2.0, 1.0]
    outcomes = {
        "Factuality": [good, bad, bad, bad], "Precise IF": [[1.0] * 4], "Math": [good],
        "Safety": [bad], "Focus": [good, bad],
    }  # fmt: skip
    rows = [tied(0, [3.0, 2.0], [1.0]), ref(0, 5.0, 0.0)]  # 0.6, as above
    found = second(outcomes, rows)
    parts = {name: s["score"] for name, s in found["sections"].items()}
    assert parts == {
        "Factuality": 0.25, "Precise IF": 0.25, "Math": 1.0, "Safety": 0.0, "Focus": 0.5,
        "Ties": pytest.approx(0.6),
    }  # fmt: skip
    assert found["overall"]["score"] == pytest.approx((0.25 + 0.25 + 1 + 0 + 0.5 + 0.6) / 6)
    assert found["overall"]["low"] <= found["overall"]["score"] <= found["overall"]["high"]
    assert tuple(found["sections"]) == SUBSETS
    assert found["ties"]["accuracy_tied"] == 1.0
    incomplete = second({"Math": [good]}, rows)
    assert incomplete["overall"]["score"] is None
    assert "Factuality" in incomplete["overall"]["missing"]


# --- files ---


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def test_rows_of_rewardbench_1(tmp_path):
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"},
             {"role": "user", "content": "再问"}]  # fmt: skip
    rows = [
        {"prompt": "Q", "chosen": "A", "rejected": "B", "subset": "math-prm", "id": 7},
        {"prompt": turns, "chosen": "好", "rejected": "不好", "subset": "shp"},
        {"prompt": "Q", "chosen": ["A"], "rejected": ["B"], "subset": "Math", "id": "1"},
        {"prompt": "Q", "chosen": "A", "subset": "math-prm"},
        {"prompt": "", "chosen": "A", "rejected": "B", "subset": "math-prm"},
        ["no"],
    ]
    items, counts = read_items(write(tmp_path / "rb.jsonl", rows), "rewardbench")
    assert items[0] == Item("math-prm", (Message("user", "Q"),), ("A",), ("B",))
    assert [m.content for m in items[1].prompt] == ["问", "答", "再问"]
    assert len(items) == 2
    assert counts.used == 2
    assert counts.dropped == {
        "several_answers": 1, "missing_field": 1, "no_prompt": 1, "not_an_object": 1,
    }  # fmt: skip
    assert counts.total == len(rows)


def test_rows_of_rewardbench_2(tmp_path):
    row = {"prompt": "问", "chosen": ["好"], "rejected": ["a", "b", "c"]}
    rows = [
        {**row, "subset": "Focus", "id": "3"},
        {**row, "subset": "Ties", "id": "ref:4"},
        {**row, "subset": "Ties", "id": "tied:4", "chosen": ["red", "blue"]},
        {**row, "subset": "Ties", "id": "tied:4", "chosen": ["red", "green"]},
        {**row, "subset": "Ties", "id": "4"},
        {**row, "subset": "Math", "chosen": ["1", "one"]},
        {**row, "subset": "Math", "chosen": "1"},
        {**row, "subset": "Math", "rejected": []},
    ]
    items, counts = read_items(write(tmp_path / "rb2.jsonl", rows), "rewardbench2")
    assert [(i.subset, i.name, i.answers) for i in items] == [
        ("Focus", "3", ("好", "a", "b", "c")),
        ("Ties", "ref:4", ("好", "a", "b", "c")),
        ("Ties", "tied:4", ("red", "blue", "a", "b", "c")),
    ]
    assert counts.dropped == {
        "duplicate_id": 1, "bad_id": 1, "several_chosen": 1, "not_a_list": 2,
    }  # fmt: skip
    assert counts.total == len(rows)


def test_a_file_of_the_other_protocol_is_an_error_that_says_why(tmp_path):
    path = write(tmp_path / "rb.jsonl", [{"prompt": "Q", "chosen": "A", "rejected": "B",
                                          "subset": "math-prm"}])  # fmt: skip
    with pytest.raises(UserError, match=r"has no rewardbench2 row: 1 not_a_list.*rb\.jsonl:1"):
        read_items(path, "rewardbench2")


def test_parquet_as_the_hub_has_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"id": "ref:1", "prompt": "说出一种颜色", "chosen": ["红"], "rejected": ["五", "六"],
             "num_correct": 1, "subset": "Ties", "additional_metadata": {"a": None}}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000.parquet")
    items, counts = read_items(str(tmp_path / "test-00000.parquet"), "rewardbench2")
    assert [(i.name, i.answers) for i in items] == [("ref:1", ("红", "五", "六"))]
    assert counts.used == 1
