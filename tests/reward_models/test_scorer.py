"""A text's score does not depend on its company; the model's own forward is the oracle."""

from __future__ import annotations

import random

import pytest
import tiny_rewards as tiny
import torch

from align.chat import header_len, render_completion
from align.config_errors import UserError
from align.records import Message, RecordError
from reward_models.scorer import Scorer

KINDS = ("llama", "qwen2", "gpt2")
USER = "user"
# Lengths from 1 to 60 tokens, Chinese and English, empty, special tokens spelled in the text.
ROWS = [
    ("写一条酒店评论", "房间很干净，服务很好，下次还会来。"),
    ("Write a review", "The room was clean and the staff were kind. " * 3),
    ("评价早餐", "早餐不错"),
    ("Say nothing", ""),
    ("写一条酒店评论", "太差了。<|im_end|>再也不来了。"),
    ("Write a review of a hotel " * 4, "Terrible food, never again."),
    ("你好", "好<|endoftext|><|endoftext|>好"),
]


def split(rows):
    return [[Message(USER, prompt)] for prompt, _ in rows], [answer for _, answer in rows]


def oracle(made, prompt, completion):
    """The model's own forward on the unpadded row: with one row it pools at the last token."""
    model, words, _ = made
    prompt_ids, ids, _ = render_completion(words, prompt, completion)
    pad, model.config.pad_token_id = model.config.pad_token_id, None
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + ids])).logits[0]
    model.config.pad_token_id = pad
    return logits.mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_every_batch_size_gives_the_models_own_score_of_the_single_row(kind, pad_is_eos):
    made = tiny.loaded(kind, pad_is_eos=pad_is_eos)
    prompts, answers = split(ROWS)
    wanted = [oracle(made, p, a) for p, a in zip(prompts, answers, strict=True)]
    assert len({round(score, 3) for score in wanted}) == len(ROWS)
    for size in (1, 2, 3, 16):
        scores = Scorer(loaded=made, batch_size=size).score(prompts, answers)
        assert scores == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_company_do_not_matter(kind):
    made = tiny.loaded(kind)
    scorer = Scorer(loaded=made, batch_size=4)
    alone = [scorer.score(*split([row]))[0] for row in ROWS]
    shuffler = random.Random(0)
    for _ in range(5):
        order = [shuffler.randrange(len(ROWS)) for _ in range(9)]
        scores = scorer.score(*split([ROWS[i] for i in order]))
        assert scores == pytest.approx([alone[i] for i in order], abs=1e-6)


def test_the_pad_token_does_not_matter():
    prompts, answers = split(ROWS)
    plain = Scorer(loaded=tiny.loaded(), batch_size=7).score(prompts, answers)
    same = Scorer(loaded=tiny.loaded(pad_is_eos=True), batch_size=7).score(prompts, answers)
    assert same == plain


def test_an_end_token_inside_the_text_is_not_where_the_score_is_read():
    made = tiny.loaded(pad_is_eos=True)
    scorer = Scorer(loaded=made)
    prompt = [Message(USER, "写一条酒店评论")]
    whole, first = scorer.score([prompt, prompt], ["太差了。<|im_end|>很好。", "太差了。"])
    assert abs(whole - first) > 1e-3
    ids = scorer.encode(prompt, "太差了。<|im_end|>很好。")
    end = made[1].convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 2  # the prompt's turn and the completion's; the text's are letters
    assert ids[-1] == end


def test_messages_and_text_score_alike_and_several_turns_are_read():
    scorer = Scorer(loaded=tiny.loaded())
    prompt = [Message(USER, "你好")]
    turns = (Message("assistant", "好"), Message(USER, "更多"), Message("assistant", "很好"))
    text, message, several = scorer.score([prompt] * 3, ["好", turns[:1], turns])
    assert text == message
    assert abs(several - text) > 1e-3
    plain = [{"role": "user", "content": "你好"}]
    assert scorer.score([plain], ["好"]) == pytest.approx([text], abs=1e-6)


def test_heads_are_averaged():
    scorer = Scorer(loaded=tiny.loaded(heads=3), batch_size=2)
    prompts, answers = split(ROWS[:3])
    heads = scorer.score_heads(prompts, answers)
    assert [len(row) for row in heads] == [3, 3, 3]
    assert scorer.score(prompts, answers) == pytest.approx([sum(row) / 3 for row in heads])
    assert scorer.reduce([[1.0, 2.0, 6.0]]) == [3.0]


def test_calibrated_scores_are_in_deviations_of_the_reference():
    scorer = Scorer(loaded=tiny.loaded(scores=[1.0, 5.0]))  # mean 3, deviation 2
    assert scorer.reduce([[7.0], [3.0], [2.0]], calibrated=True) == [2.0, 0.0, -0.5]
    prompts, answers = split(ROWS)
    raw = scorer.score(prompts, answers)
    calibrated = scorer.score(prompts, answers, calibrated=True)
    assert [2 * score + 3 for score in calibrated] == pytest.approx(raw, abs=1e-9)


LONG = ("Write a review of a hotel " * 6, "The room was clean and the staff were kind. " * 6)


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_what_is_cut_keeps_the_end_of_turn_and_is_counted(truncation):
    scorer = Scorer(loaded=tiny.loaded(max_length=40, truncation=truncation))
    words = scorer.tokenizer
    prompt, answer = [Message(USER, LONG[0])], LONG[1]
    whole_prompt, whole, _ = render_completion(words, prompt, answer)
    assert len(whole) > 40
    assert len(whole_prompt) > 40
    ids = scorer.encode(prompt, answer)
    assert len(ids) == 40
    assert ids[-1] == whole[-1] == words.convert_tokens_to_ids("<|im_end|>")
    assert scorer.truncated == 1
    header = whole_prompt[-header_len(words) :]
    if truncation == "keep_end":  # the completion's beginning beside the header
        assert ids[:-1] == header + whole[: 39 - len(header)]
    else:  # the prompt's beginning, the header, one token
        assert ids[:-1] == whole_prompt[: 39 - len(header)] + header
    scorer.encode([Message(USER, "你好")], "好")
    assert scorer.truncated == 1


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays_whole():
    scorer = Scorer(loaded=tiny.loaded(), max_length=30)
    prompt, answer = [Message(USER, LONG[0])], "很好。"
    prompt_ids, ids, _ = render_completion(scorer.tokenizer, prompt, answer)
    assert scorer.encode(prompt, answer) == (prompt_ids + ids)[-30:]
    assert scorer.truncated == 1


def test_the_contracts_prompt_limit_holds_too():
    scorer = Scorer(loaded=tiny.loaded(max_prompt_length=20))
    prompt, answer = [Message(USER, LONG[0])], LONG[1]
    prompt_ids, ids, _ = render_completion(scorer.tokenizer, prompt, answer)
    assert scorer.encode(prompt, answer) == prompt_ids[-20:] + ids
    assert scorer.truncated == 1


def test_scores_of_cut_texts_are_those_of_the_cut_ids():
    scorer = Scorer(loaded=tiny.loaded(max_length=24), batch_size=2)
    prompts, answers = split([LONG, ROWS[0], ("你好", LONG[1])])
    ids = [scorer.encode(p, a) for p, a in zip(prompts, answers, strict=True)]
    assert max(map(len, ids)) == 24
    one_by_one = [scorer.score_ids([row])[0][0] for row in ids]
    assert scorer.score(prompts, answers) == pytest.approx(one_by_one, abs=1e-6)


def test_the_limit_is_the_smallest_of_contract_option_and_positions():
    assert Scorer(loaded=tiny.loaded()).max_length == 256
    assert Scorer(loaded=tiny.loaded(max_length=64)).max_length == 64
    assert Scorer(loaded=tiny.loaded(max_length=64), max_length=32).max_length == 32
    assert Scorer(loaded=tiny.loaded(max_length=1000)).max_length == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is below 1"),
        ({"max_length": 1}, "max_length=1 is below 2"),
        ({"max_length": 65}, "max_length=65 is over the contract's 64"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
    ],
)
def test_wrong_options_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        Scorer(loaded=tiny.loaded(max_length=64), **options)


def test_no_room_beside_the_header_is_an_error_of_the_row():
    scorer = Scorer(loaded=tiny.loaded(), max_length=3)
    with pytest.raises(RecordError, match="row 1: no room for a completion in 3 tokens") as caught:
        scorer.encode([Message(USER, "你好")], "好", row=1)
    assert caught.value.code == "too_long"


def test_errors_name_the_row():
    scorer = Scorer(loaded=tiny.loaded())
    prompt = [Message(USER, "你好")]
    with pytest.raises(RecordError, match=r"row 1: .*assistant"):
        scorer.score([prompt, prompt], ["好", [Message(USER, "不")]])
    with pytest.raises(ValueError, match="1 prompts and 2 completions"):
        scorer.score([prompt], ["a", "b"])


def test_scoring_leaves_the_model_as_it_was():
    made = tiny.loaded()
    made[0].train()
    for layer in made[0].model.layers:
        layer.self_attn.attention_dropout = 0.5
    seen = []
    scorer = Scorer(
        loaded=made, batch_size=3, progress=lambda done, total: seen.append((done, total))
    )
    first = scorer.score(*split(ROWS))
    assert scorer.score(*split(ROWS)) == first  # no dropout
    assert made[0].training
    assert seen[:3] == [(3, 7), (6, 7), (7, 7)]
    assert all(p.grad is None for p in made[0].parameters())
    assert scorer.score([], []) == []
