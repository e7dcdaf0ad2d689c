"""What an evaluation reads, with every row accounted for."""

from __future__ import annotations

import json

import pytest

from align.config_errors import UserError
from reward_models.annotations.base import Intake
from reward_models.evaluation_best_of_n import gold_of
from reward_models.evaluation_input import read_groups


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def test_sampled_completions_with_gold(tmp_path):
    rows = [
        {"prompt": "问", "completions": ["甲", "乙", ""], "gold": [1, 0.5, None]},
        {"prompt": [{"role": "user", "content": "Q"}], "completions": ["A", "B"], "scores": [2, 3]},
        {"prompt": "Q", "completions": ["A", "C"]},
    ]
    intake = Intake()
    groups = read_groups(write(tmp_path / "s.jsonl", rows), intake)
    assert [[c.text for c in g.candidates] for g in groups] == [
        ["甲", "乙", ""], ["A", "B"], ["A", "C"],
    ]  # fmt: skip
    assert [gold_of(g)[1] for g in groups] == [[1.0, 0.5, None], [2.0, 3.0], [None, None]]
    assert gold_of(groups[0])[0] == "gold"
    assert groups[1].prompt[0].content == "Q"
    assert (intake.rows.used, intake.rows.total) == (3, 3)


def test_completions_that_cannot_be_used_are_counted(tmp_path):
    good = {"prompt": "Q", "completions": ["A", "B"]}
    rows = [
        good,
        {**good, "prompt": "other"},
        good,
        {"prompt": "Q", "completions": ["A"]},
        {"prompt": "Q", "completions": ["A", "D"], "gold": [1]},
        {"prompt": "Q", "completions": ["A", "E"], "gold": [1, "2"]},
        {"prompt": "Q", "completions": ["A", "E"], "gold": [1, True]},
        {"prompt": "", "completions": ["A", "E"]},
        {"prompt": "Q", "completions": ["A", 5]},
        {"prompt": "Q", "completion": "A"},
    ]
    path = write(tmp_path / "s.jsonl", rows)
    with open(path, "a") as file:
        file.write('{"prompt": \n')
    intake = Intake()
    assert len(read_groups(path, intake)) == 2
    assert dict(intake.rows.dropped) == {
        "duplicate_row": 1, "one_candidate": 1, "bad_value": 3, "no_prompt": 1, "bad_message": 1,
        "no_completion": 1, "bad_json": 1,
    }  # fmt: skip
    assert intake.rows.total == len(rows) + 1


def test_votes_in_any_format_are_merged(tmp_path):
    row = {"prompt": "问", "chosen": "好", "rejected": "不好"}
    turned = {"prompt": "问", "chosen": "不好", "rejected": "好"}
    intake = Intake()
    (group,) = read_groups(write(tmp_path / "p.jsonl", [row, turned]), intake)
    assert len(group.judgements) == 2


def test_nothing_usable_is_an_error(tmp_path):
    path = write(tmp_path / "s.jsonl", [{"prompt": "Q", "completions": ["A"]}])
    with pytest.raises(UserError, match=r"has no usable row: \{'one_candidate': 1\}"):
        read_groups(path, Intake())
