"""Running recipes in this process, tiny models and data for them, and what a run must leave."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "recipes" / "configs" / "smoke.yaml")
TRAINING = ("train_tokenizer", "pretrain", "sft", "reward", "dpo", "orpo", "ppo")
METHOD = {"train_tokenizer": "tokenizer"}  # where the recipe's name is not the method's
TEXTS = (
    "春天有樱花、桃花、杏花和油菜花。", "水烧到八十度左右，放三克茶叶，泡两分钟就可以喝了。",
    "请介绍一下长城。", "长城很长。", "怎样泡一杯绿茶？", "不知道。", "今天天气很好，我们去公园。",
    "A spider has eight legs.", "Boil the egg for eight minutes.", "I do not know.",
    "Leaves fall in autumn.", "Name three fruits.", "How many legs has a spider?",
)  # fmt: skip
# (prompt, better answer, worse answer), both languages.
PAIRS = (
    ("怎样泡一杯绿茶？", "水烧到八十度左右，放三克茶叶。", "不知道。"),
    ("请介绍一下长城。", "长城是中国古代的防御工程。", "长城很长。"),
    ("How many legs has a spider?", "A spider has eight legs.", "I do not know."),
    ("Name three fruits.", "Apples, pears and plums.", "Fruits."),
)


def main_of(recipe: str) -> Callable[[Sequence[str]], int]:
    """The `main` of recipes/<recipe>.py."""
    spec = importlib.util.spec_from_file_location(
        f"recipe_{recipe}", ROOT / "recipes" / f"{recipe}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write a JSONL file."""
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    path.write_text(text, encoding="utf-8")
    return path


def manifest(run_dir: Path) -> dict[str, Any]:
    """A run's manifest."""
    return json.loads((Path(run_dir) / "manifest.json").read_text(encoding="utf-8"))


def losses(run_dir: Path) -> list[float]:
    """The training losses of a run, by step."""
    return [row["loss"] for row in rows(Path(run_dir) / "metrics.jsonl") if "loss" in row]


def counts(run_dir: Path) -> list[dict[str, Any]]:
    """What became of the rows of the run's data files."""
    return json.loads((Path(run_dir) / "data_counts.json").read_text(encoding="utf-8"))


def tiny_model(folder: Path, chat_template: str | None = "chatml", seed: int = 0) -> Path:
    """A random Llama of two layers with a tokenizer for TEXTS and PAIRS, in `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.data.tokenizer import train_tokenizer

    texts = [*TEXTS, *(text for pair in PAIRS for text in pair)]
    tokenizer = train_tokenizer(texts, 400, min_frequency=1, chat_template=chat_template)
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_rows(pairs: Sequence[tuple[str, str, str]] = PAIRS) -> list[dict[str, Any]]:
    """Pairs as prompt/chosen/rejected rows of text."""
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]


def settings(folder: Path, **changes: Any) -> Path:
    """Write a small YAML for runs below `folder` and return it; changes: sections to merge in."""
    import yaml

    tree: dict[str, Any] = {
        "policy": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"max_length": 96, "shuffle": False},
        "train": {
            "learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 4,
            "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant",
            "weight_decay": 0.0, "seed": 1,
        },
        "ppo": {"ppo_epochs": 1, "num_minibatches": 2},
        "rollout": {"prompts_per_update": 4, "max_new_tokens": 8},
        "rewards": [
            {"kind": "function", "path": f"{ROOT}/recipes/data/smoke_reward.py:near_twenty"}
        ],
        "eval": {"num_samples": 2},
        "demo": {"root": str(folder / "runs")},
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file
