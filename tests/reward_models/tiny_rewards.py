"""Tiny reward models and their tokenizer, made in milliseconds."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from align.data.tokenizer import train_tokenizer
from reward_models.contract import make_contract
from reward_models.model import init_head, save_reward_model

TEXTS = [
    "房间很干净，服务很好，下次还会来。", "早餐不错，位置也很方便。", "太差了，再也不来了。",
    "The room was clean and the staff were kind.", "Terrible food, never again.",
    "写一条酒店评论", "Write a review of a hotel",
] * 3  # fmt: skip
WIDTH, VOCAB = 32, 360
BODY = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


@functools.cache
def _tokenizer():
    return train_tokenizer(TEXTS, VOCAB, chat_template="chatml")


def tokenizer(pad_is_eos: bool = False):
    """A copy, so that no test changes another's."""
    import copy

    made = copy.deepcopy(_tokenizer())
    if pad_is_eos:
        made.pad_token = made.eos_token
    return made


def model(kind: str = "llama", heads: int = 1, seed: int = 0, **more):
    """A random classifier whose scores differ between texts. kind: llama, qwen2 or gpt2."""
    torch.manual_seed(seed)
    common = {"num_labels": heads, "initializer_range": 0.2, "pad_token_id": 0, **more}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=256,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
        )  # fmt: skip
        made = GPT2ForSequenceClassification(config)
    elif kind == "qwen2":
        made = Qwen2ForSequenceClassification(Qwen2Config(**BODY, **common))
    else:
        made = LlamaForSequenceClassification(LlamaConfig(**BODY, **common))
    init_head(made, seed)
    return made.eval()


def loaded(kind: str = "llama", heads: int = 1, pad_is_eos: bool = False, **contract):
    """(model, tokenizer, contract) as ``Scorer(loaded=…)`` takes them."""
    words = tokenizer(pad_is_eos)
    return model(kind, heads), words, make_contract(words, heads=heads, **contract)


def save(folder: Path, kind: str = "llama", heads: int = 1, seed: int = 0, **contract) -> Path:
    """A reward checkpoint."""
    words = tokenizer()
    made = make_contract(words, heads=heads, **contract)
    save_reward_model(folder, model(kind, heads, seed), words, made)
    return folder
