"""Reading what rows share once gives the likelihoods of reading each row whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "evaluation"))
import eval_models

from align.evaluation.perplexity import completion_logps
from align.redteam.shared_prefix import shared_length, tail_logps


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=360, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


ROWS = [[5, 6, 7, 8, 20, 21], [5, 6, 7, 9, 30], [5, 6, 7, 9, 30, 31, 32, 33], [5, 6, 7, 50]]


@pytest.mark.parametrize("make", [lambda: eval_models.gpt2(1), llama], ids=["gpt2", "llama"])
@pytest.mark.parametrize("max_tokens", [8, 16, 4096])
def test_equal_to_whole_rows(make, max_tokens):
    model = make()
    start, found = tail_logps(model, ROWS, max_tokens=max_tokens)
    assert start == 3
    whole = completion_logps(model, [r[:3] for r in ROWS], [r[3:] for r in ROWS])
    assert found == pytest.approx([sum(row) for row in whole], abs=1e-4)


def test_what_is_shared():
    assert shared_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert shared_length([[1, 2], [1, 2, 3]]) == 1  # one id of the shortest is left
    assert shared_length([[1, 2], [3, 4]]) == 0
    with pytest.raises(ValueError, match="no first id in common"):
        tail_logps(eval_models.gpt2(1), [[1, 2], [3, 4]])
