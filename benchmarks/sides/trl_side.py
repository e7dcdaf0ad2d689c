"""trl's side: SFT, DPO, ORPO and reward model through the constructors of its documentation.

What its defaults would make slower on a CPU is off on both sides: bf16 and gradient checkpointing.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import stopwatch
import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def trainer_of(method: str) -> tuple[Any, Any]:
    """(trainer, its arguments' class)."""
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    name = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}[method]
    return getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")


def main() -> None:
    job = stopwatch.job()
    watch = stopwatch.watch(stopwatch.adapter_of(job))
    method = job["method"]
    kind, config = trainer_of(method)
    arguments: dict[str, Any] = {
        "output_dir": job["output"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        # The pairs of a ranked group: more than these fit into no machine at once.
        "gradient_accumulation_steps": job.get("accumulate", 1),
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_length": job["max_length"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
        "seed": 1,
    }
    if method == "orpo":
        arguments["max_prompt_length"] = job["max_length"]
    accepted = config.__dataclass_fields__
    args = config(**{k: v for k, v in arguments.items() if k in accepted})
    loader = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    model = loader.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    peft_config = None
    if job["lora"]:
        from peft import LoraConfig

        peft_config = LoraConfig.from_pretrained(f"{job['model']}/adapter")
        peft_config.inference_mode = False
        if method == "reward":
            peft_config.modules_to_save = ["score"]
    data = load_dataset("json", data_files=job["data"], split="train", cache_dir=job["output"])
    trainer = kind(
        model=model, args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    stopwatch.report(job["out"], watch, trl=trl.__version__)


if __name__ == "__main__":
    sys.exit(main())
