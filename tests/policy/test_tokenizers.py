"""A tokenizer of one's own keeps its ids whatever model it lies beside."""

from __future__ import annotations

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from align.checkpoints import load_causal_lm, read_tokenizer
from align.data.tokenizer import train_tokenizer

TEXTS = ["房间很干净，服务很好。", "The room was clean.", "写一条酒店评论"] * 4


@pytest.mark.parametrize("text", ["房间很好 clean", "émigré 🙂 x"])
def test_ids_beside_a_qwen2_model_are_those_of_the_trained_tokenizer(tmp_path, text):
    trained = train_tokenizer(TEXTS, 300, min_frequency=1, chat_template="chatml")
    shape = Qwen2Config(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    wanted = trained(text)["input_ids"]
    assert read_tokenizer(tmp_path)(text)["input_ids"] == wanted
    assert load_causal_lm(tmp_path)[1](text)["input_ids"] == wanted
