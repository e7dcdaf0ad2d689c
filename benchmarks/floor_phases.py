"""The phases of a preference step and of sampling, run as training runs them, and timed."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from floor import sampling_work

from align import cost
from align.config import load_config
from align.dry_run_cost import shape_of
from align.groups import CPU_TOKENS, TokenGroup
from align.policy import Policy
from align.rollout.hf import HFSampler
from align.train.batches import pieces


def phases(options: argparse.Namespace) -> Iterator[tuple[str, float, float, float]]:
    """(name, operations, bytes, seconds) of each phase."""
    words = ["--policy.path", options.model, "--policy.lora", "{r: 16}"]
    if options.full:
        words = [*words[:2], "--policy.lora", "null"]
    config = load_config("dpo", words)
    policy = Policy.load(config)
    module, shape = policy.module, shape_of(policy.module.lm)
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, shape.vocabulary - 10, (count,), generator=drawn).tolist()

    groups = [
        TokenGroup(ids(options.prompt), [ids(k) for k in options.completions])
        for _ in range(options.batch)
    ]
    on_cpu = module.device.type == "cpu"
    parts = pieces(groups, CPU_TOKENS if on_cpu else None, policy.layout)
    batches = [policy.collate(part).to(module.device) for part in parts]
    work = cost.group_work(options.prompt, options.completions).times(options.batch)
    adapter = bool(shape.adapter)

    def forward(want: str) -> None:
        with torch.no_grad():
            for batch in batches:
                module(batch, want=(want,))

    def learn() -> None:
        for batch in batches:
            module(batch, want=("logps",))["logps"].sum().backward()

    base = cost.forward(shape, work)
    yield "reference, forward", base, 0.0, _median(lambda: forward("ref_logps"))
    own = cost.forward(shape, work, adapter=adapter)
    yield "policy, forward", own, 0.0, _median(lambda: forward("logps"))
    yield "policy, forward and backward", cost.step(shape, work), 0.0, _median(learn)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    yield "optimizer", 12.0 * shape.trained, 28.0 * shape.trained, _median(optimizer.step)
    module.zero_grad()
    yield from _sampling(options, policy, shape, [ids(options.prompt) for _ in range(32)])


def _sampling(
    options: argparse.Namespace, policy: Policy, shape: cost.Shape, prompts: list[list[int]]
) -> Iterator[tuple[str, float, float, float]]:
    def sampler(steps: int) -> Callable[[], Any]:
        made = HFSampler(
            policy.module.lm, policy.tokenizer, stop_ids=(), max_new_tokens=steps, batch_size=64
        )
        return lambda: made.sample(prompts, 1, 0)

    one, all_tokens = _median(sampler(1)), _median(sampler(1 + options.new_tokens))
    sizes = [float(len(p)) for p in prompts]
    read, drawn, moved = sampling_work(shape, sizes, 1, options.new_tokens, options.new_tokens)
    head = 2.0 * shape.hidden * shape.vocabulary * len(prompts)
    yield f"reading {len(prompts)} prompts", read + head, 0.0, one
    name = f"drawing {len(prompts)} × {options.new_tokens} tokens"
    yield name, drawn, moved, all_tokens - one


def _median(action: Callable[[], Any], count: int = 5) -> float:
    action()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        action()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
