"""Judges on small literal Chinese and English data, with numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.config import UserError
from align.evaluation import judges
from align.records import Message

GOOD_ZH = [f"{place}{word}，下次还会来" for place in ("房间", "早餐", "服务", "位置", "前台", "书")
           for word in ("很好", "非常满意", "干净舒适", "不错", "很喜欢")]
BAD_ZH = [f"{place}{word}，再也不来了" for place in ("房间", "早餐", "服务", "位置", "前台", "书")
          for word in ("很差", "太失望", "又脏又吵", "糟糕", "很难用")]
GOOD_EN = [f"The {thing} was {word} and I loved it" for thing in ("room", "book", "food", "staff")
           for word in ("great", "lovely", "wonderful")]
BAD_EN = [f"The {thing} was {word} and I hated it" for thing in ("room", "book", "food", "staff")
          for word in ("awful", "dirty", "terrible")]


@pytest.fixture(scope="module")
def judge() -> judges.NaiveBayesJudge:
    return judges.NaiveBayesJudge.train(GOOD_ZH + GOOD_EN, BAD_ZH + BAD_EN, held_out=0.4, seed=1)


def test_ngrams_ignore_space_and_case():
    assert judges.text_ngrams("A b", 1, 2) == {"a", "b", "ab"}
    assert judges.text_ngrams("好好好", 2, 3) == {"好好", "好好好"}


def test_separates_unseen_text_in_both_languages(judge):
    prompts = [[Message("user", "x")]] * 4
    good_zh, bad_zh, good_en, bad_en = judge.score(
        prompts,
        ["酒店很好，非常满意", "酒店很差，太失望", "lovely place, loved it", "dirty, hated it"],
    )
    assert good_zh > 0.5 > bad_zh
    assert good_en > 0.5 > bad_en
    assert judge.info["accuracy"] > 0.9


def test_weights_worked_by_hand():
    # Unigrams, alpha 1. Texts with a, b: positive 1, 1; negative 0, 1.
    # P(a|+) = 2/4, P(b|+) = 2/4, P(a|-) = 1/3, P(b|-) = 2/3; classes equally frequent.
    fit = judges.NaiveBayesJudge._fit([("aab", 1), ("bb", 0)], 1.0, 1, 1, 1)
    assert fit.weights["a"] == pytest.approx(math.log(3 / 2))
    assert fit.weights["b"] == pytest.approx(math.log(3 / 4))
    # a, b and the unknown z: three n-grams
    assert fit.evidence("ab zb") == pytest.approx(math.log(9 / 8) / math.sqrt(3))


def test_unknown_text_says_nothing():
    fit = judges.NaiveBayesJudge({"好": 1.0}, prior=0.0)
    assert fit.score([[]], ["??? 未知"]) == [0.5]


def test_save_and_load_give_the_same_scores(judge, tmp_path):
    judge.save(tmp_path / "j" / "judge.json")
    again = judges.load_judge(tmp_path / "j" / "judge.json")
    texts = GOOD_ZH[:3] + BAD_EN[:3] + [""]
    blank = [[]] * len(texts)
    np.testing.assert_allclose(again.score(blank, texts), judge.score(blank, texts), atol=1e-3)


def test_platt_makes_overconfident_odds_honest():
    """Log-odds ten times too large must come back with a slope near one tenth."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1.5, 4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-true))).astype(float)
    slope, offset = judges.platt(10 * true + 3, y)
    assert slope == pytest.approx(0.1, rel=0.1)
    assert offset == pytest.approx(-0.3, abs=0.1)
    p = 1 / (1 + np.exp(-(slope * (10 * true + 3) + offset)))
    assert judges.expected_calibration_error(p, y) < 0.03


def test_platt_on_separable_data_stays_finite():
    slope, offset = judges.platt(np.array([-4.0, -2, 2, 4]), np.array([0.0, 0, 1, 1]))
    p = 1 / (1 + np.exp(-(slope * np.array([-4.0, 4.0]) + offset)))
    # Platt's targets for two of each class are 1/4 and 3/4.
    assert 0.15 < p[0] < 0.27
    assert 0.73 < p[1] < 0.85


def test_calibration_error_worked_by_hand():
    p = np.array([0.15, 0.15, 0.95, 0.95])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    assert judges.expected_calibration_error(p, y) == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)


def test_too_few_texts_and_wrong_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="at least 6"):
        judges.NaiveBayesJudge.train(["好"] * 50, BAD_ZH)
    wrong = tmp_path / "x.json"
    wrong.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="naive Bayes"):
        judges.load_judge(wrong)
    with pytest.raises(UserError, match="no such file"):
        judges.load_judge(tmp_path / "none")


def test_swapped_judge_turns_position_bias_into_ties():
    always_first = judges.SwappedJudge(lambda p, a, b: "first", "biased")
    assert always_first.prefer([[]] * 3, ["a"] * 3, ["b"] * 3) == [0.5] * 3
    assert always_first.counts == {"flipped": 3}


def test_swapped_judge_keeps_consistent_votes_and_counts_failures():
    answers = {("好", "坏"): "first", ("坏", "好"): "second", ("好", "?"): "I cannot say"}
    j = judges.SwappedJudge(lambda p, a, b: answers.get((a, b), "tie"), "table")
    assert j.prefer([[]] * 4, ["好", "坏", "好", "甲"], ["坏", "好", "?", "乙"]) == [1, 0, 0.5, 0.5]
    assert j.counts == {"agreed": 3, "failed": 1}


def test_swapped_judge_half_preference_counts():
    """A win in one order and a tie in the other is still a preference."""
    answers = {("a", "b"): "first", ("b", "a"): "tie"}
    j = judges.SwappedJudge(lambda p, a, b: answers[(a, b)], "table")
    assert j.prefer([[], []], ["a", "b"], ["b", "a"]) == [1.0, 0.0]
