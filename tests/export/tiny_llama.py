"""A tiny random Llama whose shapes every quantised form takes, with a chat template."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluation"))
import eval_models


def save(folder: Path, seed: int = 0, *, hidden: int = 64, inner: int = 128) -> Path:
    """A model folder; its answers depend on the prompt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = eval_models.tokenizer()
    config = LlamaConfig(
        vocab_size=360, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        initializer_range=0.2, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
