"""ms-swift's side: SFT and DPO through `sft_main` and `rlhf_main`, the calls behind `swift`.

A template of its own kind joins turns as the other side's does and ends answers with the end token.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("USE_HF", "1")

import stopwatch


def messages(row: dict[str, str]) -> dict[str, Any]:
    """A row as it reads them."""
    answer = row.get("completion", row.get("chosen"))
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
    out: dict[str, Any] = {"messages": turns}
    if "rejected" in row:
        out["rejected_response"] = row["rejected"]
    return out


def main() -> None:
    job = stopwatch.job()
    watch = stopwatch.watch(stopwatch.adapter_of(job))
    from swift import RLHFArguments, SftArguments, rlhf_main, sft_main
    from swift.template import TemplateMeta, register_template

    register_template(TemplateMeta("joined", prefix=[], prompt=["{{QUERY}}"], chat_sep=None))
    place = Path(job["output"])
    place.mkdir(parents=True)
    rows = map(messages, stopwatch.rows_of(job))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (place / "rows.jsonl").write_text(text, encoding="utf-8")
    args: dict[str, Any] = {
        "model": job["model"], "model_type": "llama", "template": "joined",
        "dataset": [str(place / "rows.jsonl")], "split_dataset_ratio": 0.0,
        "dataset_shuffle": False, "train_dataloader_shuffle": False, "load_from_cache_file": False,
        "max_length": job["max_length"], "output_dir": str(place / "out"),
        "tuner_type": "lora" if job["lora"] else "full", "torch_dtype": job["dtype"],
        "per_device_train_batch_size": job["batch"], "gradient_accumulation_steps": 1,
        "max_steps": job["steps"], "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
        "adam_beta2": 0.999, "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no",
        "eval_strategy": "no", "report_to": ["none"], "gradient_checkpointing": False,
        "attn_impl": "sdpa", "bf16": job["dtype"] == "bfloat16", "seed": 1,
    }  # fmt: skip
    if job["lora"]:
        args |= {**stopwatch.lora_of(job), "target_modules": ["all-linear"]}
    if job["method"] == "dpo":
        rlhf_main(RLHFArguments(rlhf_type="dpo", beta=0.1, **args))
    else:
        sft_main(SftArguments(**args))
    stopwatch.report(job["out"], watch, ms_swift=version("ms-swift"))


if __name__ == "__main__":
    main()
