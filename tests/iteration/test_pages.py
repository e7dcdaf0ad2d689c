"""The pages of best-of-n and of rounds say what the figures say; texts are escaped."""

from __future__ import annotations

import re

import pytest

from align.iteration.report import write_best_of_n, write_rounds
from align.iteration.select import Sample
from align.records import Message, Prompt


def figure(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def rounds(*pairs):
    return [
        {"round": k, "reward": figure(r), "judge": figure(j), "kl": None, "length": figure(9)}
        for k, (r, j) in enumerate(pairs)
    ]


def text_of(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text("utf-8")).split())


def test_over_optimisation_is_said(tmp_path):
    made = rounds((0.1, 0.5), (0.3, 0.6), (0.9, 0.4))
    page = write_rounds(made, 1, "The judge fell in round 2.", tmp_path / "r.html", "迭代 · dpo", 4)
    text = text_of(page)
    assert "Round 1 is kept: judge 0.5 → 0.6, reward 0.1 → 0.3." in text
    assert "The judge fell in round 2." in text
    assert "The reward went on rising while the judge did not" in text
    assert "迭代 · dpo" in text


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [(3, 2, "All 2 rounds were run."), (2, 3, "1 of 3 rounds so far.")],
)
def test_whether_there_is_more_to_come(tmp_path, count, total, said):
    made = rounds((0.1, 0.5), (0.3, 0.6), (0.4, 0.7))[:count]
    text = text_of(write_rounds(made, count - 1, "", tmp_path / "r.html", "t", total))
    assert said in text
    assert "rising while" not in text


def test_answers_are_shown_and_not_obeyed(tmp_path):
    evil = "</script><script>alert(1)</script>"
    prompt = Prompt((Message("user", f"问 {evil}"),))
    point = {"n": 1, **figure(0.2), "kl": 0.0}
    summary = {
        "n": 2, "prompts": 1, "finished": 0.4, "best_of_n": [point, {**point, "n": 2}],
        "sft": {"used": 1, "dropped": {}}, "preferences": {"used": 0, "dropped": {"equal": 1}},
    }  # fmt: skip
    found = {prompt.prompt_id: [Sample(evil, 0.2), Sample("好", 0.1, False)]}
    page = write_best_of_n(summary, found, [prompt], tmp_path / "b.html")
    html = page.read_text("utf-8")
    assert evil not in html
    assert "\\u003cscript\\u003ealert(1)" in html
    text = text_of(page)
    assert "More than half of the answers were cut" in text
    assert "Less than half of the prompts gave a pair." in text
    assert "preferences.jsonl equal 1" in text
