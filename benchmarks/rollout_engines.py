"""Tokens per second of rollouts and seconds of a weight push: the policy itself against vLLM.

    python benchmarks/rollout_engines.py --model FOLDER [--prompts 32] [--tokens 64] [--python PY]

Every completion is as long as is allowed, so that both sides draw equally many tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

QUESTION = "Write a short story about a river, a bridge and a dog. 写一个关于河流的小故事。"


def seconds(action: Callable[[], Any], times: int = 2) -> float:
    """The fastest of some runs, after one that is not counted."""
    action()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Print one line a figure."""
    p = argparse.ArgumentParser(
        description="Rollouts and weight pushes: the policy itself against vLLM."
    )
    p.add_argument("--model", required=True)
    p.add_argument("--python")
    p.add_argument("--prompts", type=int, default=32)
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--log", help="folder that keeps vllm.log; by default it is removed")
    args = p.parse_args()
    import torch
    from peft import LoraConfig, get_peft_model

    from align.chat import render_prompt
    from align.checkpoints import load_causal_lm
    from align.config_rollout import RolloutServer
    from align.records import Message
    from align.rollout.hf import HFSampler
    from align.rollout.vllm import VllmSampler
    from align.rollout.vllm_server import NAME, Managed, described
    from align.train.vllm_weights import Adapter, Reload

    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model, tokenizer = load_causal_lm(args.model)
    ids = [
        render_prompt(tokenizer, [Message("user", f"{i}. {QUESTION}")]) for i in range(args.prompts)
    ]
    fields = {"stop_ids": (), "max_new_tokens": args.tokens, "batch_size": args.prompts}
    drawn = args.prompts * args.tokens
    own = HFSampler(model, tokenizer, **fields, want_logps=True)
    print(f"hf           {drawn / seconds(lambda: own.sample(ids, 1, 0)):.0f} tokens/s", flush=True)
    with tempfile.TemporaryDirectory() as place:
        settings = SimpleNamespace(rollout=SimpleNamespace(gather_chunk_mb=512))
        policy = SimpleNamespace(module=SimpleNamespace(lm=model), tokenizer=tokenizer)
        trainer: Any = SimpleNamespace(policy=policy, settings=settings)
        for push in (Reload(trainer, Path(place)), Adapter(trainer, Path(place))):
            words, env, sync = ["--max-model-len", "1024"], {}, "reload"
            if isinstance(push, Adapter):
                policy.module.lm = get_peft_model(model, lora)
                words += ["--enable-lora", "--max-lora-rank", "16"]
                env, sync = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, "lora"
            push.collect()
            server = Managed(
                RolloutServer(python=args.python), Path(args.log or place) / f"{sync}.log",
                words=words, env=env, cpu=not torch.cuda.is_available(),
            )  # fmt: skip
            try:
                start = time.perf_counter()
                server.start(push.current)
                print(f"start        {time.perf_counter() - start:.1f} s", flush=True)
                push.named(NAME, "bench", url=server.url)
                served = described(server.http)
                if sync == "lora":
                    push.collect()
                    push.deliver(server.http)
                    served = replace(served, model=push.name)
                there = VllmSampler(served, tokenizer, **fields, want_logps=True)
                speed = drawn / seconds(partial(there.sample, ids, 1, 0))
                print(f"vllm_server  {speed:.0f} tokens/s ({sync})", flush=True)
                print(f"push, {sync:6} {seconds(partial(pushed, push, server)):.2f} s", flush=True)
            finally:
                server.close()


def pushed(push: Any, server: Any) -> None:
    push.collect()
    push.deliver(server.http)


if __name__ == "__main__":
    main()
