"""Likelihoods against the model's own logits worked token by token, and window arithmetic."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.evaluation import perplexity as px


class Fixed(torch.nn.Module):
    """Predicts the same distribution everywhere: p = (1/2, 1/4, 1/8, 1/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125])))
        config = SimpleNamespace(max_position_embeddings=8)
        self.config = SimpleNamespace(get_text_config=lambda: config)

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.w.expand(*input_ids.shape, 4))


class Letters:
    """a b c d are the ids 0 to 3; no BOS."""

    bos_token_id = None

    def __call__(self, text, add_special_tokens):
        return {"input_ids": ["abcd".index(c) for c in text]}


def test_completion_logps_worked_by_hand():
    got = px.completion_logps(Fixed(), [[3], [1, 2]], [[0, 1], []])
    assert got[0] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-6)
    assert got[1] == []


def test_perplexity_is_weighted_by_tokens_not_by_texts():
    # scored: b | a a a a (first tokens are not predicted) -> 2 + 4·1 bits over 5 tokens
    result = px.perplexity(Fixed(), Letters(), ["ab", "daaaa", "c"])
    figures = result.to_json()
    assert (figures["tokens"], figures["texts"], figures["chars"]) == (5, 2, 7)
    assert figures["nll_per_token"] == pytest.approx(6 * math.log(2) / 5)
    assert figures["perplexity"] == pytest.approx(2 ** (6 / 5))
    assert figures["nll_per_char"] == pytest.approx(6 * math.log(2) / 7)


def test_windows_of_a_long_text():
    assert list(px.windows([0, 1, 2, 3, 4, 5, 6], 4, 2)) == [
        ([0], [1, 2, 3]), ([2, 3], [4, 5]), ([3, 4, 5], [6]),
    ]  # fmt: skip


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_score_each_token_once_and_fit(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    scored = []
    for context, target in px.windows(range(length), window, stride):
        assert context
        assert len(context) + len(target) <= window
        assert [*context, *target] == list(range(context[0], target[-1] + 1))
        scored += target
    assert scored == list(range(1, length))


def test_logps_equal_the_models_own_one_row_at_a_time():
    model = tiny.gpt2(0).requires_grad_(False)
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6]]
    completions = [[8, 0], [10, 11, 12, 13, 0], [7]]
    batched = px.completion_logps(model, prompts, completions)
    split = px.completion_logps(model, prompts, completions, max_tokens=1)
    for p, c, row, alone in zip(prompts, completions, batched, split, strict=True):
        logits = model(torch.tensor([p + c])).logits[0].double()
        for k, token in enumerate(c):
            at = logits[len(p) + k - 1]
            want = float(at[token] - torch.logsumexp(at, 0))
            assert row[k] == pytest.approx(want, abs=1e-5)
            assert alone[k] == pytest.approx(want, abs=1e-5)


def test_temperature_divides_the_logits():
    # squares of 1/2, 1/4, 1/8, 1/8 sum to 11/32
    got = px.completion_logps(Fixed(), [[0]], [[0]], temperature=0.5)
    assert got[0][0] == pytest.approx(math.log(8 / 11), abs=1e-6)


def test_perplexity_of_chinese_and_english_with_short_windows():
    """Windows as long as the text give its exact likelihood; shorter ones score as many tokens."""
    model, tok = tiny.gpt2(1), tiny.tokenizer()
    texts = ["房间很干净，服务很好。", "The room was clean."]
    whole = px.perplexity(model, tok, texts)
    short = px.perplexity(model, tok, texts, window=6, stride=3)
    assert whole.tokens == short.tokens
    assert whole.nll > 0
    with pytest.raises(ValueError, match="stride"):
        px.perplexity(model, tok, texts, window=4, stride=4)
    with pytest.raises(ValueError, match="two tokens"):
        px.perplexity(model, tok, [""])


def test_packed_texts_are_one_stream_with_scored_ends():
    words = Letters()
    words.eos_token_id = 2
    # a b | c(end) d c(end): b 2, c 3, d 3, c 3 bits; only the first token has no context.
    result = px.perplexity(Fixed(), words, ["ab", "d"], packed=True)
    assert (result.tokens, result.texts, result.chars) == (4, 2, 3)
    assert result.nll == pytest.approx(11 * math.log(2))
    # Windows of the stream change nothing for a model without memory.
    short = px.perplexity(Fixed(), words, ["ab", "d"], packed=True, window=3, stride=1)
    assert (short.tokens, short.nll) == (4, pytest.approx(result.nll))


def test_likelihoods_of_single_texts_add_up():
    model, tok = tiny.gpt2(1), tiny.tokenizer()
    texts = ["房间很干净，服务很好。", "", "The room was clean.", "好"]
    rows = px.text_likelihoods(model, tok, texts, window=6, stride=3)
    assert len(rows) == 4
    total = px.together(rows)
    assert total == px.perplexity(model, tok, texts, window=6, stride=3)
    alone = [px.perplexity(model, tok, [texts[i]], window=6, stride=3) for i in (0, 2)]
    assert [rows[i].nll for i in (0, 2)] == pytest.approx([x.nll for x in alone], abs=1e-5)
