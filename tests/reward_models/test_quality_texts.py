"""Near-copies, refusals, escapes, repeated answers and reading times of literal texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.records import Candidate, Message, PreferenceGroup
from reward_models.language import language
from reward_models.quality_texts import (
    Repeated,
    is_escaped,
    is_refusal,
    near_identical,
    script,
    similarity,
)
from reward_models.reading_speed import lead_times, note_lead_time, seconds_to_skim

ENGLISH = "The hotel was clean, quiet and close to the station, and we liked it a lot."
CHINESE = (
    "酒店很干净，也很安静，离车站不远，早餐的种类很多，服务员都很热情，下次来还会选择住在这里。"
)


def test_similarity_by_hand():
    assert similarity(ENGLISH, ENGLISH.upper().replace(" ", "  ")) == 1.0
    # 4-grams of "abcde" and "abcdf": {abcd, bcde} and {abcd, bcdf}: one of three is shared.
    assert similarity("abcde", "abcdf") == pytest.approx(1 / 3)
    assert similarity("ab", "abcd") == 0.0


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, ENGLISH * 5, CHINESE * 5])
def test_near_identical_answers_are_found(text):
    assert near_identical([text, text + "!"])
    assert near_identical(["something else", text, text.upper() + " "])
    assert near_identical([text, "\n" + text.replace(". ", ".\n\n") + " " * 50])
    assert not near_identical([text, text[::-1]])
    assert not near_identical([text, text + text])
    assert not near_identical([text, ""])


def test_where_near_identical_ends():
    text = "".join(chr(0x4E00 + k) for k in range(75))  # 72 different 4-grams
    # The last character changed: 71 of 73 shared. One in the middle: 68 of 76, 0.895.
    assert near_identical([text, text[:-1] + "好"])
    assert not near_identical([text, text[:40] + "好" + text[41:]])


def test_short_answers_can_be_near_identical_too():
    assert near_identical(["Yes.", "yes. "])
    assert not near_identical(["Yes.", "No."])
    assert not near_identical(["房间很干净，服务很好", "房间很干净，服务很差"])


words = st.lists(st.sampled_from(["clean", "quiet", "the", "房间", "干净", "服务", "。", ","]))


@settings(deadline=None, max_examples=200)
@given(words, words, st.integers(0, 3), st.data())
def test_the_shortcut_finds_what_all_the_n_grams_find(first, second, copies, data):
    a = " ".join(first * 8)
    b = " ".join(second * 8) if copies == 0 else a
    for _ in range(copies):
        cut = data.draw(st.integers(0, max(len(b), 1)))
        b = b[:cut] + data.draw(st.sampled_from(["", "x", "，", " "])) + b[cut + 1 :]
    alike = similarity(a, b) >= 0.9
    # Unrelated texts may share all n-grams and differ in length: not near-copies.
    assert near_identical([a, b]) == alike or (copies == 0 and alike and len(a) != len(b))


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("  I’m sorry, but no", True),
        ("As an AI language model, I have no opinion.", True),
        ("I won't do that", True),
        ("抱歉，我不能回答", True),
        ("作为一个AI语言模型，", True),
        ("I'm sorry for your loss. Here is what you can do:", False),
        ("The refusal was: I'm sorry, but no", False),
        ("我无比高兴", False),
        ("", False),
    ],
)
def test_refusals(text, refuses):
    assert is_refusal(text) is refuses


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a &lt; b", True), ("don&#39;t", True), ("&#x27;", True), ("a&nbsp;b", True),
        ("AT&T; R&D", False), ("if (a && b);", False), ("x & y", False), ("&unknown;", False),
        ("https://a.b/?x=1&amount=2", False), ("", False),
    ],
)  # fmt: skip
def test_escapes(text, escaped):
    assert is_escaped(text) is escaped


@given(
    st.text(
        st.sampled_from("aB é9 .,!“”…、。！？（）《》【】-—房间干净服务のかЯ서〇㐀&～￥"),
        max_size=60,
    )
)
def test_the_shortcut_for_languages_changes_nothing(text):
    assert script(text) == language(text)


def test_long_texts_are_told_by_their_beginning():
    assert script("酒店" * 100 + "word " * 1000) == "zh"


def test_an_answer_is_repeated_under_another_prompt_only():
    seen = Repeated(longest=20, limit=3)
    assert [seen.again("I don't know", prompt) for prompt in (1, 1, 2, 3)] == [
        False, False, True, True,
    ]  # fmt: skip
    long = "x" * 21
    assert [seen.again(long, prompt) for prompt in (1, 2)] == [False, False]
    assert [seen.again(text, 1) for text in ("b", "c", "d")] == [False] * 3
    assert [seen.again(text, 2) for text in ("b", "c", "d")] == [True, True, False]  # d: no room
    assert seen.most(2) == [{"text": "I don't know", "times": 3}, {"text": "b", "times": 2}]


def group(prompt, *answers, **meta):
    candidates = tuple(Candidate(str(k), text) for k, text in enumerate(answers))
    return PreferenceGroup("g", (Message("user", prompt),), candidates, (), meta)


@pytest.mark.parametrize(
    ("made", "seconds"),
    [
        (group("ten words " * 5, "twenty " * 20, "thirty " * 30), 6.0),  # 60 words at 600
        (group("问" * 42, "答" * 42, "好，" * 28), 8.4 + 2.0 - 2.4),  # 112 characters at 840
        (group("question", "用 Python 写", "用 Java 写的"), 0.3 + 5 * 60 / 840),
        (group("q", ""), 0.1),
    ],
)
def test_seconds_to_skim_by_hand(made, seconds):
    assert seconds_to_skim(made) == pytest.approx(seconds)


def test_turns_of_prompt_and_answer_are_read_too():
    turns = (Message("assistant", "one two"), Message("user", "three"))
    prompt = (Message("system", "four"), Message("user", "five"))
    made = PreferenceGroup("g", prompt, (Candidate("a", turns), Candidate("b", "six")))
    assert seconds_to_skim(made) == pytest.approx(0.6)


def test_lead_times_are_kept_by_annotator():
    meta = {}
    note_lead_time(meta, "x", 4)
    note_lead_time(meta, "x", 3.5)
    note_lead_time(meta, None, 2.5)
    for junk in (None, "4", True, -1, 0, float("nan"), float("inf"), 10**400):
        note_lead_time(meta, "y", junk)
    assert meta == {"lead_time": {"x": 4.0, "(unnamed)": 2.5}}
    assert lead_times(group("q", "a", **meta)) == {"x": 4.0, "(unnamed)": 2.5}
    assert lead_times(group("q", "a")) == {}
    for junk in (3, [1], {"x": "fast"}, None):
        assert lead_times(group("q", "a", lead_time=junk)) == {}
