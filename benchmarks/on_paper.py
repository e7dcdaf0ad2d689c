"""The table of docs/scaling.md: what `--dry_run` says of 7B and 70B on 1 to 1,024 GPUs.

    python benchmarks/on_paper.py

Writes the shapes (config.json and a tokenizer, no weights) and a few records of the lengths below
to a temporary folder, runs the recipes with `--dry_run` and a ZeRO stage, and prints a row each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "intermediate_size": 11008},
    "70B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "intermediate_size": 28672},
}  # fmt: skip
TOKENS = 512  # of a prompt and of each completion
LORA = ["--policy.lora.r", "16"]
RUNS = [
    ("7B", "dpo", 0, []), ("7B", "dpo", 1, []), ("7B", "dpo", 2, []), ("7B", "dpo", 3, []),
    ("7B", "dpo", 2, LORA), ("7B", "ppo", 2, []), ("7B", "ppo", 3, []), ("7B", "ppo", 2, LORA),
    ("70B", "sft", 2, []), ("70B", "sft", 3, []),
    ("70B", "dpo", 3, []), ("70B", "ppo", 3, []),
]  # fmt: skip
WORLDS = (1, 8, 64, 1024)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        head = ["model", "method", "ZeRO", *(f"GiB on {n:,}" for n in WORLDS),
                "GiB sent on 8", "on 1,024", "computing, s", "sending, s"]  # fmt: skip
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for shape, method, stage, extra in RUNS:
            rows = dry(folder, shape, method, stage, extra)
            total = [f"{rows[n][6]:.0f}" for n in WORLDS]
            sent = [f"{rows[n][7]:.0f}" for n in (8, 1024)]
            times = [f"{rows[1024][i]:.2g}" for i in (8, 9)]
            cells = [
                shape,
                method + (", LoRA 16" if extra else ""),
                str(stage),
                *total,
                *sent,
                *times,
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


def prepare(folder: Path) -> None:
    from transformers import LlamaConfig

    base = ROOT / "recipes" / "assets" / "demo_base"
    for name, shape in SHAPES.items():
        LlamaConfig(vocab_size=32000, max_position_embeddings=4096, **shape).save_pretrained(
            folder / name
        )
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / file, folder / name)
    text = "甲" * TOKENS  # a token a character
    pair = {"prompt": text, "chosen": text, "rejected": "乙" * TOKENS}
    (folder / "data.jsonl").write_text((json.dumps(pair, ensure_ascii=False) + "\n") * 8, "utf-8")
    row = {"prompt": text, "completion": text}
    (folder / "sft.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 8, "utf-8")


def dry(
    folder: Path, shape: str, method: str, stage: int, extra: list[str]
) -> dict[int, list[float]]:
    """The cost lines by number of GPUs."""
    words = [
        "--config", str(ROOT / "recipes/configs/smoke.yaml"), "--policy.path", str(folder / shape),
        "--policy.dtype", "bfloat16", "--data.preferences", str(folder / "data.jsonl"),
        "--data.sft", str(folder / "sft.jsonl"), "--data.prompts", "null",
        "--data.max_length", "2048", "--data.max_prompt_length", "1024",
        "--train.gradient_checkpointing", "true", "--train.per_device_train_batch_size", "2",
        "--rollout.max_new_tokens", str(TOKENS), "--rollout.prompts_per_update", "8",
        "--rollout.n", "1", "--eval.prompts", "null", "--dry_run", *extra,
    ]  # fmt: skip
    env = os.environ | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{method}.py"), *words],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    lines = re.findall(r"^ +(\d+) \|(.*)$", done.stdout, re.MULTILINE)
    return {int(n): [int(n), *map(float, re.findall(r"[\d.]+(?:e-?\d+)?", x))] for n, x in lines}


if __name__ == "__main__":
    main()
