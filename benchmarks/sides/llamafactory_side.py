"""LLaMA-Factory's side: SFT and DPO through `run_exp`, the call behind `llamafactory-cli train`.

Its `empty` template joins turns as the other side's does; the end token stands in the answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")

import stopwatch
import torch
from transformers import AutoTokenizer


def columns(method: str) -> dict[str, Any]:
    """How its dataset_info.json names the columns."""
    if method == "sft":
        return {"columns": {"prompt": "prompt", "response": "completion"}}
    return {
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    }


def main() -> None:
    job = stopwatch.job()
    watch = stopwatch.watch(stopwatch.adapter_of(job))
    from llamafactory.train.tuner import run_exp

    place = Path(job["output"])
    place.mkdir(parents=True)
    end = AutoTokenizer.from_pretrained(job["model"]).eos_token
    rows = stopwatch.rows_of(job)
    for row in rows:
        for name in ("completion", "chosen", "rejected"):
            if name in row:
                row[name] += end
    (place / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"rows": {"file_name": "rows.json", **columns(job["method"])}}
    (place / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    args: dict[str, Any] = {
        "stage": job["method"], "do_train": True, "model_name_or_path": job["model"],
        "dataset": "rows", "dataset_dir": str(place), "template": "empty",
        "cutoff_len": job["max_length"], "output_dir": str(place / "out"),
        "finetuning_type": "lora" if job["lora"] else "full",
        "per_device_train_batch_size": job["batch"], "max_steps": job["steps"],
        "learning_rate": job["learning_rate"], "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "disable_gradient_checkpointing": True, "disable_shuffling": True, "flash_attn": "sdpa",
        "bf16": job["dtype"] == "bfloat16", "use_cpu": not torch.accelerator.is_available(),
        "seed": 1,
    }  # fmt: skip
    if job["lora"]:
        args |= {**stopwatch.lora_of(job), "lora_target": "all"}
    run_exp(args)
    stopwatch.report(job["out"], watch, llamafactory=_version())


def _version() -> str:
    from importlib.metadata import version

    return version("llamafactory")


if __name__ == "__main__":
    main()
