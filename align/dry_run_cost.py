"""What an optimiser step of a run costs: operations, bytes, and seconds on stated machines.

The formulas are those of `align.cost`; the widths come from a model without storage, the lengths
from the first records of the run's own data.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align import cost
from align.config_parallel import zero_stage
from align.model_shape import shape_of

if TYPE_CHECKING:
    from align.config import Config
    from align.groups import TokenGroup
    from align.policy_module import PolicyModule

RECORDS = 32  # whose lengths are looked at
WORLDS = (1, 8, 64, 1024)
REACHED = 0.4  # of the peak, in training with long rows; docs/performance.md has what CPUs reach
REACHED_CPU = 0.65
_GIB = 2.0**30


@dataclass(frozen=True)
class Gpu:
    """One process' device: dense bfloat16 operations and bytes to other machines, a second."""

    name: str = "80 GB GPU (H100 SXM)"
    operations: float = 989e12
    network: float = 50e9


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of each of its completions, and where they were seen."""

    prompt: float
    completions: tuple[float, ...]
    source: str


def lengths_of(config: Config, groups: Iterable[TokenGroup]) -> Lengths:
    """Means over the first records; what a run could meet at most where there are none."""
    seen = list(itertools.islice(groups, RECORDS))
    limit = config.data.max_length
    if config.method == "pretrain":
        return Lengths(0, (config.pretrain.block_size,), "every row")
    if config.method == "ppo":
        known = [len(g.prompt_ids) for g in seen]
        prompt = sum(known) / len(known) if known else config.data.max_prompt_length or limit // 2
        source = f"the first {len(seen)} prompts" if seen else "the longest that fit"
        return Lengths(prompt, (float(config.rollout.max_new_tokens),) * config.rollout.n, source)
    if not seen:
        count = 1 if config.method == "sft" else 2
        return Lengths(limit / 4, (limit * 3 / 4,) * count, "the longest that fit")
    many = max(len(g.completions) for g in seen)
    means = []
    for k in range(many):
        sizes = [len(g.completions[k]) for g in seen if len(g.completions) > k]
        means.append(sum(sizes) / len(seen))
    prompt = sum(len(g.prompt_ids) for g in seen) / len(seen)
    return Lengths(prompt, tuple(means), f"the first {len(seen)} records")


def step_operations(config: Config, module: PolicyModule, lengths: Lengths) -> tuple[float, Any]:
    """(operations, Work) of one process' optimiser step."""
    shape, args = shape_of(module.lm), config.train.args
    many = args.get("per_device_train_batch_size", 8) * args.get("gradient_accumulation_steps", 1)
    recompute = bool(args.get("gradient_checkpointing"))
    if config.method == "ppo":
        from align.launch_env import asked_world
        from align.policy_loading import critic_kind

        prompts = config.rollout.prompts_per_update / asked_world()
        phases = cost.ppo_update(
            shape, lengths.prompt, lengths.completions[0], n=config.rollout.n,
            prompts=prompts, epochs=config.ppo.ppo_epochs, critic=critic_kind(config),
        )  # fmt: skip
        work = cost.group_work(lengths.prompt, lengths.completions).times(prompts)
        return sum(phases.values()) / (config.ppo.ppo_epochs * config.ppo.num_minibatches), work
    grouped = config.policy.layout != "plain"
    work = cost.group_work(lengths.prompt, lengths.completions, grouped).times(many)
    reference = config.reference != "none" and config.policy.reference != "cached"
    total = cost.step(
        shape, work, head=config.method != "reward", reference=reference, recompute=recompute
    )
    return total, work


def cost_lines(config: Config, module: PolicyModule | None, groups: Iterable[Any]) -> list[str]:
    """Return the cost of a step as lines: here, and on 80 GB GPUs."""
    if module is None:
        return ["  (the model has yet to be built)"]
    lengths = lengths_of(config, groups)
    operations, work = step_operations(config, module, lengths)
    sizes = " + ".join(f"{c:.0f}" for c in lengths.completions)
    unit = "a step's share of an update" if config.method == "ppo" else "an optimiser step"
    lines = [
        f"  lengths ({lengths.source}): prompt {lengths.prompt:.0f}, completion {sizes} tokens",
        f"  {unit}, one process: {operations / 1e12:.3g} TFLOP, "
        f"{work.tokens:,.0f} tokens read, {work.predicted:,.0f} predicted",
    ]
    if not _accelerated():
        speed = machine_speed()
        lines.append(
            f"  this CPU ({speed / 1e9:.0f} GFLOP/s in float32, just measured): about "
            f"{operations / speed / REACHED_CPU:.2g} s a step at {100 * REACHED_CPU:.0f} %"
        )
    return lines + gpu_table(config, module, operations, work)


def gpu_table(
    config: Config,
    module: PolicyModule,
    operations: float,
    work: cost.Work,
    worlds: Sequence[int] = WORLDS,
    gpu: Gpu | None = None,
) -> list[str]:
    """Memory, traffic and time in bfloat16 by number of processes, each with this batch."""
    from align.logprobs import CHUNK_BYTES

    gpu = gpu or Gpu()
    shape, args = shape_of(module.lm), config.train.args
    extra = sum(p.numel() for p in module.parameters()) - shape.parameters
    stage = zero_stage(config)
    critic = [] if module.critic is None else list(module.critic.parameters())
    beside = sum(p.numel() for p in critic if p.requires_grad)
    stepped = replace(shape, trained=shape.trained + beside)
    passes = args.get("gradient_accumulation_steps", 1)
    recompute = bool(args.get("gradient_checkpointing"))
    rows = min(work.predicted / passes, CHUNK_BYTES / 4 / shape.vocabulary)
    readings = 2 + (config.reference != "none") + recompute
    lines = [
        f"  on {gpu.name}: bfloat16 at {100 * REACHED:.0f} % of {gpu.operations / 1e12:.0f} "
        f"TFLOP/s, {gpu.network / 1e9:.0f} GB/s between machines, ZeRO stage {stage}"
        + ("" if stage else " (none)"),
        "  GPUs | GiB: weights  gathered  gradients  optimizer  activations  in all | sent a step "
        "| seconds: computing  sending",
    ]
    if config.method == "ppo" and stage >= 3:
        lines.insert(1, f"  while it samples a process holds the whole policy as well: "
                     f"{2.0 * shape.parameters / _GIB:.1f} GiB")  # fmt: skip
    for world in worlds:
        held = cost.held(
            stepped, stage=stage, world=world, weight_bytes=2.0, tokens=work.tokens / passes,
            recompute=recompute, logit_rows=0 if config.method == "reward" else rows,
        )  # fmt: skip
        weights = held.weights + 2.0 * extra / (world if stage >= 3 else 1)
        bytes_sent = cost.sent(
            shape, stage=stage, world=world, weight_bytes=2.0, passes=passes, readings=readings
        )
        if critic:  # read and stepped like the policy
            bytes_sent += cost.sent(
                shape, stage=stage, world=world, weight_bytes=2.0, passes=passes,
                readings=2 + recompute,
            )  # fmt: skip
        total = held.total + 2.0 * extra / (world if stage >= 3 else 1)
        lines.append(
            f"  {world:>4} | {weights / _GIB:12.2f} {held.gathered / _GIB:9.2f} "
            f"{held.gradients / _GIB:10.2f} "
            f"{held.optimizer / _GIB:10.2f} {held.activations / _GIB:12.2f} {total / _GIB:7.2f} | "
            f"{bytes_sent / _GIB:7.2f} GiB | {operations / gpu.operations / REACHED:18.3g} "
            f"{bytes_sent / gpu.network:8.3g}"
        )
    return lines


def _accelerated() -> bool:
    import torch

    return torch.accelerator.is_available()


def machine_speed(size: int = 1024, seconds: float = 0.2) -> float:
    """Operations a second that float32 products of this machine reach, at best."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best
