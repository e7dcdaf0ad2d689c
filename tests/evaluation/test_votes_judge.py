"""People's votes as a judge, with votes counted by hand."""

from __future__ import annotations

import json

import pytest

from align.config_errors import UserError
from align.evaluation import judges
from align.records import Candidate, Judgement, Message, PreferenceGroup


def group(prompt: str, judgements: list[Judgement], models=("sft", "ppo")) -> PreferenceGroup:
    texts = ("短", "a longer answer")
    candidates = tuple(
        Candidate(c, t, m) for c, t, m in zip("xy", texts, models, strict=True)
    )  # fmt: skip
    return PreferenceGroup("", (Message("user", prompt),), candidates, tuple(judgements))


def pair(winner: str, loser: str, who: str = "1", **more) -> Judgement:
    return Judgement(who, "pair", {"winner": winner, "loser": loser}, **more)


def write(path, groups):
    path.write_text("\n".join(json.dumps(g.to_json(), ensure_ascii=False) for g in groups), "utf-8")
    return path


def test_votes_become_comparisons_of_named_runs(tmp_path):
    tie = Judgement("2", "pair", {"tie": ["x", "y"]})
    rank = Judgement("3", "rank", {"x": 2, "y": 1})
    groups = [
        group("早餐", [pair("x", "y"), tie]), group("Room?", [rank]),
        group("drop", [pair("x", "y", suspect="too fast")]),
    ]  # fmt: skip
    judge = judges.load_judge(write(tmp_path / "v.jsonl", groups))
    found = judge.between({"sft": "SFT", "ppo": "PPO"})
    assert [(c.a, c.b, c.outcome, c.length_a, c.length_b) for c in found] == [
        ("SFT", "PPO", 1.0, 1, 15), ("SFT", "PPO", 0.5, 1, 15), ("SFT", "PPO", 0.0, 1, 15),
    ]  # fmt: skip
    assert judge.between({"sft": "SFT"}) == []
    assert judge.models == ["ppo", "sft"]
    assert judge.report()["votes"] == 3


def test_prefer_knows_what_was_voted_on(tmp_path):
    judge = judges.load_judge(write(tmp_path / "v.jsonl", [group("早餐", [pair("y", "x")])]))
    ask = [(Message("user", "早餐"),)] * 3
    a, b = ["a longer answer", "短", "短"], ["短", "a longer answer", "其他"]
    assert judge.prefer(ask, a, b) == [1.0, 0.0, 0.5]
    assert judge.counts["unknown"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "x"}', "is not a file of preference groups"),
        ("not json", "is not a file of preference groups"),
        (json.dumps(group("x", [pair("x", "y")], models=(None, None)).to_json()), "holds no vote"),
        (json.dumps(group("x", []).to_json()), "holds no vote"),
    ],
)
def test_files_without_votes_are_user_errors(text, says, tmp_path):
    (tmp_path / "v.jsonl").write_text(text, "utf-8")
    with pytest.raises(UserError, match=says):
        judges.check_judge(tmp_path / "v.jsonl")
