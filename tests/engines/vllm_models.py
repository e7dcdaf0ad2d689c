"""What the tests of real vLLM engines share: a model that it can serve, and what a run noted."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import ppo_models as tiny

LORA = {"policy": {"lora": {"r": 4, "alpha": 8.0}}}


@functools.cache
def base() -> str:
    """Folder of a small Llama; vLLM's attention on a CPU takes no heads below 32."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=tiny.VOCAB, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.08, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="align-engine-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def rows(folder: Path) -> list[dict]:
    """The lines of updates in metrics.jsonl."""
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for line in text.splitlines() if "sampler_gap" in (row := json.loads(line))]


def gaps(folder: Path) -> list[float]:
    """What sampler and trainer differed by in each update, nats per token."""
    return [row["sampler_gap"] for row in rows(folder)]
