"""Win rates of votes that a person can count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import feedback_rows as rows

from align.feedback.summary import summarise, table


def test_hand_counted_votes():
    # x stands left in the first three, right in the last: x wins 1, ties 2 (one of them both bad),
    # then loses on the left.
    log = [
        rows.vote(prompt="1", said="left"),
        rows.vote(prompt="2", said="tie"),
        rows.vote(prompt="3", said="both_bad"),
        rows.vote(prompt="4", said="left", completions=[
            {"model": "y", "text": "B"}, {"model": "x", "text": "A"}]),
        rows.vote(prompt="5", said=None),
    ]  # fmt: skip
    found = summarise(log)
    assert (found["votes"], found["skips"], found["annotators"]) == (4, 1, {"ann": 4})
    x, y = found["models"]["x"], found["models"]["y"]
    assert x["value"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert [x[k] for k in ("wins", "ties", "losses", "both_bad", "items")] == [1, 2, 1, 1, 4]
    assert y["value"] == pytest.approx(1 - x["value"])
    assert x["low"] <= x["value"] <= x["high"]
    assert found["left"]["value"] == 1.0
    (pair,) = found["pairs"]
    assert pair["models"] == ["x", "y"]
    assert pair["value"] == x["value"]
    assert "x: wins 50% [" in table(found)
    assert "4 votes of 1 annotator(s), 1 skipped" in table(found)


def test_an_item_that_several_judged_counts_once():
    one = [rows.vote(prompt="1", said="left", by=name) for name in ("a", "b", "c")]
    other = [rows.vote(prompt="2", said="right")]
    found = summarise(one + other)
    assert found["models"]["x"]["value"] == pytest.approx(0.5)
    assert found["models"]["x"]["items"] == 2
    # Three pairs of people agree on the first item.
    assert found["agreement"]["value"] == 1.0
    assert found["agreement"]["pairs"] == 3


def test_agreement_looks_at_the_models_not_at_the_sides():
    swapped = [{"model": "y", "text": "B"}, {"model": "x", "text": "A"}]
    log = [rows.vote(said="left", by="a"), rows.vote(said="right", by="b", completions=swapped)]
    assert summarise(log)["agreement"]["value"] == 1.0
    log[1]["vote"] = "left"
    assert summarise(log)["agreement"]["value"] == 0.0


def test_a_planted_preference_is_found_with_its_interval():
    log = [rows.vote(prompt=str(i), said="left" if i % 4 else "right") for i in range(200)]
    x = summarise(log)["models"]["x"]
    assert x["value"] == 0.75
    # ± 1.96 √(0.75 · 0.25 / 200) = ± 0.060
    assert x["low"] == pytest.approx(0.69, abs=0.02)
    assert x["high"] == pytest.approx(0.81, abs=0.02)


def test_thumbs_and_votes_without_text():
    log = [rows.thumb(said="up"), rows.thumb(said="up"), rows.thumb(said="down"),
           rows.thumb(said=None)]  # fmt: skip
    found = summarise(log)
    assert found["thumbs"]["x"]["value"] == pytest.approx(2 / 3)
    assert found["thumbs"]["x"]["votes"] == 3
    bare = rows.vote(said="left") | {
        "prompt": None, "completions": [{"model": m, "text": None} for m in "xy"]
    }  # fmt: skip
    assert summarise([bare])["models"]["x"]["wins"] == 1
    assert summarise([])["models"] == {}
