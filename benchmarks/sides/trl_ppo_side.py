"""trl 1.12's PPO: policy with LoRA (reference: adapter off), value model, reward model.

With LoRA the value model gets adapters too, put in place by peft, so that it trains as little as
align's critic does. Gradient checkpointing and bf16 are off on both sides.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import stopwatch
import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def lora(model: str, kind: str) -> Any:
    """The adapter settings of the prepared folder."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(f"{model}/adapter")
    config.inference_mode = False
    config.task_type = kind
    return config


def scored(path: str, dtype: torch.dtype) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype)


class Logs(stopwatch.Stopwatch):
    """The figures come without a loss here."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "objective/scores" in logs:
            self.logs.append({k: float(v) for k, v in logs.items()})


def main() -> None:
    job = stopwatch.job()
    dtype = getattr(torch, job["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    value, reward = scored(job["model"], dtype), scored(job["reward"], dtype)
    peft_config = None
    if job["lora"]:
        from peft import inject_adapter_in_model

        peft_config = lora(job["model"], "CAUSAL_LM")
        value = inject_adapter_in_model(lora(job["model"], "SEQ_CLS"), value)
        value.score.requires_grad_(True)
    args = PPOConfig(
        output_dir=job["output"],
        total_episodes=job["prompts"] * job["updates"],
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=job["prompts"] // job["batch"],
        num_mini_batches=1,
        num_ppo_epochs=job["epochs"],
        local_rollout_forward_batch_size=job["prompts"],
        response_length=job["new_tokens"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        num_sample_generations=0,
        missing_eos_penalty=None,
        temperature=1.0,
        bf16=job["dtype"] == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    data = load_dataset("json", data_files=job["data"], split="train", cache_dir=job["output"])
    watch = Logs()
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=None, reward_model=reward,
        value_model=value, train_dataset=data, eval_dataset=data, peft_config=peft_config,
        callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    stopwatch.report(job["out"], watch, trl=trl.__version__)


if __name__ == "__main__":
    main()
