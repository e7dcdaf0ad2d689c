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
from transformers import AutoTokenizer, TrainerCallback


def columns(method: str) -> dict[str, Any]:
    """How its dataset_info.json names the columns."""
    if method == "sft":
        return {"columns": {"prompt": "prompt", "response": "completion"}}
    return {
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    }


class SameStart(TrainerCallback):
    """Give the adapter the numbers that the other side starts from."""

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        stopwatch.same_start(getattr(model, "module", model), self.adapter)


def main() -> None:
    job = stopwatch.job()
    watch = stopwatch.watch()
    from llamafactory.train.tuner import run_exp

    place = Path(job["output"])
    place.mkdir(parents=True)
    end = AutoTokenizer.from_pretrained(job["model"]).eos_token
    rows = [json.loads(line) for line in Path(job["data"]).read_text("utf-8").splitlines()]
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
        args |= {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": "all"}
    callbacks = [SameStart(f"{job['model']}/adapter")] if job["lora"] else []
    run_exp(args, callbacks=callbacks)
    stopwatch.report(job["out"], watch, llamafactory=_version())


def _version() -> str:
    from importlib.metadata import version

    return version("llamafactory")


if __name__ == "__main__":
    main()
