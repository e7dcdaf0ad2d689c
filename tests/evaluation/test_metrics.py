"""Text metrics and paired statistics against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.evaluation import metrics


def test_units_read_chinese_by_character_and_english_by_word():
    assert metrics.units("我爱 NLP3!好。") == ["我", "爱", "nlp3", "!", "好", "。"]
    assert metrics.units("it's OK") == ["it", "'", "s", "ok"]
    assert metrics.units("abc中文def") == ["abc", "中", "文", "def"]
    assert metrics.units(" \n\t") == []


def test_distinct_n_counts_over_the_corpus():
    # zh: 很好|好很|很好 and 很好 -> 4 bigrams, 2 distinct
    assert metrics.distinct_n(["很好很好", "很好"], 2) == 0.5
    # en: a b | b a | a b | b c -> distinct: (a b) (b a) (b c) = 3 of 4
    assert metrics.distinct_n(["a b a b c"], 2) == 0.75
    assert metrics.distinct_n(["好"], 2) == 0.0


def test_repetition_is_the_share_of_seen_ngrams():
    # 8 characters, 5 four-grams: 1234 2341 3412 4123 1234 -> one repeats
    assert metrics.repetition("天地人和天地人和", 4) == pytest.approx(1 / 5)
    assert metrics.repetition("the cat sat on a mat", 4) == 0.0
    assert metrics.repetition("短", 4) == 0.0


@given(st.text(max_size=60), st.integers(1, 5))
def test_repetition_and_distinct_stay_in_range(text, n):
    assert 0.0 <= metrics.repetition(text, n) < 1.0
    assert 0.0 <= metrics.distinct_n([text], n) <= 1.0


def test_self_bleu_extremes_and_a_worked_value():
    assert metrics.self_bleu(["你好世界啊", "你好世界啊"]) == pytest.approx(1.0)
    assert metrics.self_bleu(["甲乙丙丁", "子丑寅卯"]) == 0.0
    # "a b" against "a c": unigram 1/2, bigram (0+1)/(1+1) -> sqrt(1/4) = 1/2, both ways.
    assert metrics.self_bleu(["a b", "a c"], max_n=2) == pytest.approx(0.5)
    # "a" against "a b": precision 1, brevity exp(1 - 2) ; "a b" against "a": 1/2. max_n = 1.
    assert metrics.self_bleu(["a", "a b"], max_n=1) == pytest.approx((math.exp(-1) + 0.5) / 2)


def test_self_bleu_does_not_depend_on_order():
    texts = ["房间 很 干净", "房间 很 小", "早餐 不错 的", "价格 贵", "房间 很 小"]
    assert metrics.self_bleu(texts) == pytest.approx(metrics.self_bleu(texts[::-1]))


def test_bootstrap_mean_and_interval():
    e = metrics.bootstrap([1.0] * 7)
    assert (e.value, e.low, e.high) == (1.0, 1.0, 1.0)
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    e = metrics.bootstrap(values)
    assert e.value == pytest.approx(values.mean())
    # 1.96 standard errors of 1/20 each side.
    assert e.high - e.low == pytest.approx(2 * 1.96 / 20, rel=0.12)
    assert e.low < e.value < e.high


def test_bootstrap_resamples_prompts_not_samples():
    """Copies of one prompt's value under many seeds must not narrow the interval."""
    values = np.random.default_rng(2).normal(0.0, 1.0, 50)
    one = metrics.bootstrap(values)
    many = metrics.bootstrap(np.repeat(values[:, None], 20, axis=1))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_win_rate_counts_a_tie_as_half():
    w = metrics.win_rate([0.9, 1.0, 0.5, 0.1])
    assert (w.wins, w.ties, w.losses) == (2, 1, 1)
    assert w.rate.value == 0.625
    assert w.rate.low <= 0.625 <= w.rate.high
    with pytest.raises(ValueError, match="outcomes"):
        metrics.win_rate([1.5])


def test_win_rate_of_swapped_sides_adds_to_one():
    x = np.array([0.2, 0.5, 0.9, 1.0, 0.0, 0.7])
    assert metrics.win_rate(x).rate.value + metrics.win_rate(1 - x).rate.value == pytest.approx(1)


def test_outcomes_respect_the_tie_margin():
    assert metrics.outcomes_from_scores([1, 2, 3], [1.05, 1, 9], tie=0.1).tolist() == [0.5, 1, 0]


def test_length_controlled_recovers_a_known_bias():
    rng = np.random.default_rng(0)
    length = rng.normal(12.0, 5.0, 600)
    reward = 0.3 + 0.05 * length + rng.normal(0, 0.1, 600)
    lc = metrics.length_controlled(reward, length)
    assert lc.gain == pytest.approx(0.3, abs=0.03)
    assert lc.slope == pytest.approx(0.05, abs=0.003)
    assert lc.raw_gain == pytest.approx(reward.mean())


def test_length_controlled_worked_by_hand():
    # points (0, 1), (1, 2), (2, 6): slope 5/2, intercept 3 - 5/2
    lc = metrics.length_controlled([1, 2, 6], [0, 1, 2])
    assert lc.slope == pytest.approx(2.5)
    assert lc.gain == pytest.approx(0.5)


def test_length_controlled_with_equal_lengths_is_the_mean():
    lc = metrics.length_controlled([1.0, 2.0], [4, 4])
    assert (lc.gain, lc.slope) == (1.5, 0.0)


def test_direction_agreement_leaves_ties_out():
    assert metrics.direction_agreement([1, -1, 0, 2], [3, 1, 5, 0.1]) == pytest.approx(2 / 3)
    assert metrics.direction_agreement([0.0], [0.0]) == 0.5


def test_text_metrics_on_mixed_text():
    m = metrics.text_metrics(["好 good", ""], [True, False])
    assert m["length_units"] == 1.0
    assert m["length_chars"] == 3.0
    assert m["empty_rate"] == 0.5
    assert m["eos_rate"] == 0.5
    assert m["unique_rate"] == 1.0


def test_a_share_of_nothing_is_not_sure():
    # Wilson, 0 of 10: 0 to 3.8415 / (10 + 3.8415).
    low, high = metrics.share([0.0] * 10).low, metrics.share([0.0] * 10).high
    assert (low, high) == (0.0, pytest.approx(0.2775, abs=1e-4))
    # Two seeds of a prompt are not two prompts.
    assert metrics.share(np.ones((10, 2))).low == pytest.approx(0.7225, abs=1e-4)
    assert metrics.win_rate(np.ones(10)).rate.low == pytest.approx(0.7225, abs=1e-4)
    mixed = [0.0, 1.0, 1.0, 0.5]
    assert metrics.share(mixed) == metrics.bootstrap(mixed)
