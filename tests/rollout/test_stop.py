"""Where a completion ends, and the text that is left of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny

from align.chat import completion_text, render_completion, stop_ids
from align.config_errors import UserError
from align.records import Message
from align.rollout import StopRule, cut_at_stop, rank_seed

STOP, END = 9, 8


@pytest.mark.parametrize(
    ("ids", "minimum", "cut", "finished"),
    [
        ([1, 2, STOP, 3, STOP], 0, [1, 2, STOP], True),
        ([1, END, STOP], 0, [1, END], True),
        ([1, 2, 3], 0, [1, 2, 3], False),
        ([STOP, 1, 2], 0, [STOP], True),
        ([], 0, [], False),
        # Two tokens before the stop: enough for a minimum of 2, not for 3.
        ([1, 2, STOP, 3], 2, [1, 2, STOP], True),
        ([1, 2, STOP, 3], 3, [1, 2, STOP], False),
        ([STOP, 1, 2, STOP], 1, [STOP], False),  # the first stop counts, however early
    ],
)
def test_item08_cut_after_the_first_stop(ids, minimum, cut, finished):
    assert cut_at_stop(ids, {STOP, END}, minimum) == (cut, finished)


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=12))
def test_item08_what_follows_the_first_stop_never_matters(before, after):
    before = [i for i in before if i != STOP]
    cut, finished = cut_at_stop([*before, STOP, *after], [STOP])
    assert cut == [*before, STOP]
    assert finished
    assert cut_at_stop(cut, [STOP]) == (cut, True)


def test_item05_rank_seeds_by_hand():
    assert rank_seed(7, 0) == 7
    assert rank_seed(7, 3) == 300_016
    # A thousand updates of 64 ranks never share a seed.
    assert len({rank_seed(u, r) for u in range(1000) for r in range(64)}) == 64_000


@pytest.mark.parametrize("template", ["chatml", "zh_instruction", "inst"])
@pytest.mark.parametrize("answer", ["房间很干净。", "The room was clean.", "a\n\n b", ""])
@pytest.mark.parametrize("ended", [True, False])
def test_text_is_the_answer_that_rendering_put_in(template, answer, ended):
    tokenizer = tiny.tokenizer(template)
    prompt = [Message("user", "写一条酒店评论")]
    _, ids, _ = render_completion(tokenizer, prompt, answer)
    ids = ids if ended else ids[:-1]
    rule = StopRule(tokenizer, stop_ids(tokenizer))
    assert rule.text(ids) == answer == completion_text(tokenizer, ids)


def test_text_without_a_template_keeps_every_character():
    tokenizer = tiny.tokenizer(None)
    ids = tokenizer(" 很好 ", add_special_tokens=False)["input_ids"]
    rule = StopRule(tokenizer, [tokenizer.eos_token_id])
    assert rule.text([*ids, tokenizer.eos_token_id]) == " 很好 "


def test_text_leaves_out_special_tokens_but_not_text_that_looks_like_a_stop():
    tokenizer = tiny.tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    rule = StopRule(tokenizer, stop_ids(tokenizer), ["EN"])
    ids = [*encode("好E"), start, *encode("N!")]
    # "E" and "N" only meet once the special token between them is gone.
    assert rule.cut(ids) == (ids, False)
    assert rule.text(ids) == "好EN!"


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("很好。不错", ["。"], "很好"),
        ("服务很好，下次", ["很好，下"], "服务"),
        ("clean END dirty", ["END"], "clean "),
        ("clean\n\nHuman: kind", ["\n\nHuman:", "END"], "clean"),
        ("a鑫b", ["鑫"], "a"),  # a character of three tokens
        ("ab", ["b", "ab"], ""),  # both are complete at once: the longer one starts first
    ],
)
def test_stop_strings(text, stops, kept):
    tokenizer = tiny.tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rule = StopRule(tokenizer, stop_ids(tokenizer), stops)
    cut, finished = rule.cut(ids)
    assert finished
    assert rule.text(cut) == kept
    # The token that completes the stop is the last one; without it the completion goes on.
    assert any(s in tokenizer.decode(cut) for s in stops)
    assert not any(s in tokenizer.decode(cut[:-1]) for s in stops)
    assert rule.cut(cut[:-1]) == (cut[:-1], False)


def test_item08_a_stop_string_before_the_minimum_counts_as_missing():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("太差了。好", add_special_tokens=False)["input_ids"]
    at = len(tokenizer("太差了", add_special_tokens=False)["input_ids"])
    for minimum, finished in ((at, True), (at + 1, False)):
        rule = StopRule(tokenizer, stop_ids(tokenizer), ["。"], min_new_tokens=minimum)
        cut, done = rule.cut(ids)
        assert (rule.text(cut), done) == ("太差了", finished)


def test_whichever_stop_comes_first_ends_the_completion():
    tokenizer = tiny.tokenizer()
    end = stop_ids(tokenizer)[0]
    good = tokenizer("很好", add_special_tokens=False)["input_ids"]
    dot = tokenizer("。", add_special_tokens=False)["input_ids"]
    rule = StopRule(tokenizer, stop_ids(tokenizer), ["。"])
    assert rule.cut([*good, end, *dot]) == ([*good, end], True)
    assert rule.cut([*good, *dot, end]) == ([*good, *dot], True)
    assert rule.text([*good, end]) == rule.text([*good, *dot]) == "很好"


def test_a_stop_string_is_found_after_a_long_completion():
    tokenizer = tiny.tokenizer()
    text = "房间很干净，服务很好，" * 20 + "结束"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rule = StopRule(tokenizer, stop_ids(tokenizer), ["结束"])
    assert not rule.completes_string(ids[:-1])
    assert rule.completes_string(ids)
    assert rule.cut([*ids, *ids])[0] == ids


def test_empty_stop_string_is_refused():
    with pytest.raises(UserError, match=r"rollout\.stop=\['。', ''\] has an empty string"):
        StopRule(tiny.tokenizer(), [0], ["。", ""])
