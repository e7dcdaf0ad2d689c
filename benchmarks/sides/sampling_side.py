"""Sampling: align's sampler, or the library's `generate` on one batch, from the same prompts.

Both draw from softmax(logits) with nothing else in the distribution, and a completion ends at the
tokenizer's end token or after new_tokens. generate goes on with a row until the longest has ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from align import launch_env

if json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["side"] == "ours":
    launch_env.set_defaults()  # before torch is imported

import stopwatch


def main() -> None:
    job = stopwatch.job()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"])
    )
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    if job["lora"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, f"{job['model']}/adapter")
        if job["side"] == "ours":
            from align.fused_lora import fuse_lora

            fuse_lora(model)
    model.eval()
    draw = ours if job["side"] == "ours" else theirs
    watch = stopwatch.Stopwatch()
    seconds, drawn = [], []
    for seed in range(job["rounds"] + 1):  # the first warms up; seconds are for 1,000 tokens
        start = time.perf_counter()
        lengths = draw(job, model, tokenizer, seed)
        seconds.append((time.perf_counter() - start) / (sum(lengths) / 1000))
        drawn += lengths
    stopwatch.report(job["out"], watch, seconds=seconds[1:], lengths=drawn)


def ours(job: dict[str, Any], model: Any, tokenizer: Any, seed: int) -> list[int]:
    """Lengths of the completions."""
    from align.rollout.hf import HFSampler

    sampler = HFSampler(
        model, tokenizer, stop_ids=job["stop_ids"], max_new_tokens=job["new_tokens"],
        batch_size=len(job["prompts"]) * job["n"], want_logps=True,
    )  # fmt: skip
    return [len(c) for c in sampler.sample(job["prompts"], job["n"], seed).completions]


def theirs(job: dict[str, Any], model: Any, tokenizer: Any, seed: int) -> list[int]:
    """Lengths of the completions, up to and with the first end token."""
    import torch

    torch.manual_seed(seed)
    batch = tokenizer.pad({"input_ids": job["prompts"]}, return_tensors="pt").to(model.device)
    with torch.no_grad():
        out = model.generate(
            **batch, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            max_new_tokens=job["new_tokens"], num_return_sequences=job["n"],
            eos_token_id=job["stop_ids"], pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    rows = out[:, batch["input_ids"].shape[1] :].tolist()
    stops = set(job["stop_ids"])
    return [
        next((i + 1 for i, token in enumerate(row) if token in stops), job["new_tokens"])
        for row in rows
    ]


if __name__ == "__main__":
    main()
