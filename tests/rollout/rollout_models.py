"""Tiny models for sampling tests: random ones of four families, and two with hand-set weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from align.data.tokenizer import train_tokenizer

VOCAB = 360
FAMILIES = ("gpt2", "llama_gqa", "qwen3", "mistral_window")
TEXTS = [
    "房间很干净，服务很好，下次还会来。", "早餐不错，位置也很方便。", "太差了，再也不来了。",
    "The room was clean and the staff were kind.", "Terrible food, never again.",
    "写一条酒店评论", "Write a review of a hotel",
] * 3  # fmt: skip
_TABLES: dict[str | None, object] = {}


def tokenizer(template: str | None = "chatml"):
    """A tokenizer with 360 entries: <|endoftext|> is 0, and what it has not seen becomes bytes."""
    if template not in _TABLES:
        _TABLES[template] = train_tokenizer(TEXTS, VOCAB, chat_template=template)
    return _TABLES[template]


def model(family: str, seed: int = 0, positions: int = 96, dropout: float = 0.0):
    """A random model whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=positions, n_embd=32, n_layer=2, n_head=4,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, initializer_range=0.3,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    if family == "llama_gqa":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)).eval()
    # Shorter than the prompts: what falls out of the window must stay out of the cache too.
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=5)).eval()


def _hand_set(vocab: int, width: int):
    """A GPT-2 whose only layer adds nothing, with an output matrix of its own."""
    config = GPT2Config(
        vocab_size=vocab, n_positions=64, n_embd=width, n_layer=1, n_head=1, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def constant(probabilities: Sequence[float]):
    """A model that gives token i the probability probabilities[i], whatever came before."""
    made = _hand_set(len(probabilities), 4)
    with torch.no_grad():
        made.transformer.ln_f.bias[0] = 1.0  # the last hidden state is (1, 0, 0, 0)
        made.lm_head.weight[:, 0] = torch.tensor([math.log(p) for p in probabilities])
    return made


def parrot(ids: Sequence[int]):
    """A model that finds ids[i + 1] by far the likeliest after ids[i]; ids are all different."""
    assert len(set(ids)) == len(ids), "one token has one successor"
    made = _hand_set(VOCAB, VOCAB)
    with torch.no_grad():
        made.transformer.wte.weight.copy_(torch.eye(VOCAB))
        made.transformer.ln_f.weight.fill_(1.0)
        for now, following in itertools.pairwise(ids):
            made.lm_head.weight[following, now] = 10.0
    return made


def full_logps(lm, prompt: list[int], completion: list[int], temperature: float = 1.0):
    """Log-probs of a completion from one forward pass without cache, padding or batch."""
    with torch.no_grad():
        logits = lm(torch.tensor([prompt + completion])).logits[0].double()
    scaled = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
    return scaled.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
