"""Batches, words, keys, repetition: hand-worked figures on Chinese and English."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.cleaning.repetition import line_measures, repetition
from align.cleaning.tokens import Batch


def words_of(text: str) -> list[str]:
    batch = Batch([text])
    found = batch.words
    return [text[s : s + n] for s, n in zip(found.start, found.size, strict=True)]


def test_words_and_characters():
    assert words_of("Don't stop, 2024年3月的Hello世界!") == [
        "Don", "t", "stop", "2024", "年", "3", "月", "的", "Hello", "世", "界",
    ]  # fmt: skip
    assert words_of("ความ") == ["ค", "ว", "า", "ม"]
    assert words_of("한국어 문장") == ["한국어", "문장"]
    assert words_of("ひらがな") == list("ひらがな")
    assert words_of(" ,.!? ") == []


def test_equal_words_have_equal_hashes_whatever_the_case_and_width():
    batch = Batch(["Hello ＨＥＬＬＯ hello help"])
    first = batch.words.hashes
    assert first[0] == first[1] == first[2] != first[3]


def test_words_know_their_text():
    batch = Batch(["a b", "", "中文 c"])
    assert batch.words.counts.tolist() == [2, 0, 3]
    assert batch.words.doc.tolist() == [0, 0, 2, 2, 2]
    assert batch.words.share_alone().tolist() == [0, 0, pytest.approx(2 / 3)]
    _, whole = batch.words.ngrams(2)
    assert whole.tolist() == [True, False, True, True, False]


def test_keys_ignore_case_width_and_spaces_only():
    texts = ["Good  day, 你好", "good day,你好", "ＧＯＯＤ day ,\n你好", "good day 你好", "", " "]
    keys = Batch(texts).keys()
    assert (keys[0] == keys[1]).all()
    assert (keys[0] == keys[2]).all()
    assert (keys[0] != keys[3]).any()
    assert (keys[4] == keys[5]).all()
    # The order of characters matters.
    assert (Batch(["ab"]).keys() != Batch(["ba"]).keys()).all()


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_a_text_has_the_same_key_and_words_in_any_batch(texts):
    batch = Batch(texts)
    keys, words = batch.keys(), batch.words
    for i, text in enumerate(texts):
        alone = Batch([text])
        assert (alone.keys()[0] == keys[i]).all()
        mine = words.hashes[words.first[i] : words.first[i + 1]]
        assert (alone.words.hashes == mine).all()
    assert batch.bytes.tolist() == [len(t.encode("utf-8", "surrogatepass")) for t in texts]


def shares(*texts: str) -> tuple[list[float], list[float]]:
    twice, top = repetition(Batch(list(texts)))
    return twice.tolist(), top.tolist()


def test_no_repetition():
    assert shares("The cat sat on the mat.", "今天天气很好") == ([0, 0], [0, 0])


def test_repeated_ngrams_count_from_the_second_time():
    # Words of two letters; the last six repeat the first six.
    six = "aa bb cc dd ee ff"
    twice, top = shares(f"{six} {six}", f"{six} {six} {six}")
    assert twice == [pytest.approx(0.5), pytest.approx(2 / 3)]
    # "aa bb cc dd" three times: 24 of 36 letters; twice is not often.
    assert top == [0, pytest.approx(24 / 36)]


def test_repeated_characters_of_chinese():
    # 六 characters, three times: 12 of 18 are repeated.
    twice, _ = shares("今天天气很好今天天气很好今天天气很好")
    assert twice == [pytest.approx(12 / 18)]


def test_overlapping_occurrences_are_not_counted_twice():
    twice, top = shares("ha " * 10, "好" * 20)
    assert top == [1.0, 1.0]
    # The first five of ten words are new, and one more by each shift: all but the first.
    assert twice == [pytest.approx(0.9), pytest.approx(0.95)]


def test_repetition_does_not_cross_texts():
    six = "aa bb cc dd ee ff"
    assert shares(six, six) == ([0, 0], [0, 0])


def test_lines():
    text = "Title\nA sentence.\nA sentence.\n• bullet\nand so on...\n他说：“好。”\n"
    found = line_measures(Batch([text, "one line"]))
    assert found["repeated"].tolist() == [pytest.approx(1 / 6), 0]
    # Two sentences, the dots, and the quoted one.
    assert found["stops"].tolist() == [pytest.approx(4 / 6), 0]
    assert found["bullets"].tolist() == [pytest.approx(1 / 6), 0]
    assert found["ellipses"].tolist() == [pytest.approx(1 / 6), 0]


def test_sums_are_over_each_text():
    batch = Batch(["abc", "", "中文"])
    assert batch.sum_of(np.ones(len(batch.codes), np.int64)).tolist() == [4, 1, 3]
