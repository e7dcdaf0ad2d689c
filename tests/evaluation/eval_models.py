"""Tiny random models for tests, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

TEXTS = [
    "房间很干净，服务很好，下次还会来。", "早餐不错，位置也很方便。", "太差了，再也不来了。",
    "The room was clean and the staff were kind.", "Terrible food, never again.",
    "写一条酒店评论", "Write a review of a hotel",
] * 3  # fmt: skip
PROMPTS = ["写一条酒店评论", "写一条好评", "Write a review", "介绍一下早餐", "评价房间",
           "Rate the food"]  # fmt: skip


def tokenizer(template: str | None = "chatml"):
    from align.data.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, 360, chat_template=template)


def gpt2(seed: int, vocab: int = 360, positions: int = 96):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_positions=positions, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def save(folder: Path, seed: int) -> Path:
    """A run directory with a tiny model in final/."""
    final = folder / "final"
    gpt2(seed).save_pretrained(final)
    tokenizer().save_pretrained(final)
    return folder
