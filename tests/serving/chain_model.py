"""A model whose answer is known: after each token comes the one that ANSWER has there.

The layers add nothing, an embedding is a unit vector, and the head sends it to the token that
follows. So the greedy answer to every prompt is ANSWER and then the stop token, in any engine that
renders the prompt, computes and stops as it should. After FORK two tokens are equally likely.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

ANSWER = "房间很干净，服务很好。The staff"
EITHER = (" were kind", " has a view")  # what may come then, with equal odds; and the stop token
TEXTS = ["房间很干净，服务很好。", "The staff were kind", "The staff has a view", "写一条酒店评论"]
SHARP = 60.0  # logit of the token that follows; all others have 0
POSITIONS = 256


def tokenizer() -> Any:
    from align.data.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS * 4, 328, chat_template="chatml")


def paths(made: Any) -> list[list[int]]:
    """The two answers as ids, the end of the prompt before and the stop token after them."""
    start = made("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"][-1]
    stop = made.convert_tokens_to_ids("<|im_end|>")
    head = made(ANSWER, add_special_tokens=False)["input_ids"]
    tails = [made(tail, add_special_tokens=False)["input_ids"] for tail in EITHER]
    return [[start, *head, *tail, stop] for tail in tails]


def save_chain(folder: Path, *, export: bool = True) -> Path:
    """The model with its tokenizer; export: as `recipes/export_model.py --to hf` writes it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tokenizer()
    size = len(made)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=512, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=POSITIONS,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.dim() == 2 else parameter.fill_(1.0)
        model.get_input_embeddings().weight[:, :size].fill_diagonal_(1.0)
        for way in paths(made):
            for before, after in pairwise(way):
                # RMSNorm makes a unit vector √512 long.
                model.lm_head.weight[after, before] = SHARP / 512**0.5
    plain = folder / "plain"
    model.save_pretrained(plain)
    made.save_pretrained(plain)
    if not export:
        return plain
    from align.export.hf import export as written

    written(plain, folder / "served", device="cpu")
    return folder / "served"
