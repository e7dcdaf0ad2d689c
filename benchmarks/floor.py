"""The least time that this machine needs for the work of a phase, and the share of it we reach.

    python benchmarks/floor.py --model PATH [--prompt 72] [--completions 155 148] [--batch 4]

Measured first: operations a second of large matrix products, bytes a second of a copy. Then the
operations and bytes of each phase are counted from the model's configuration (`align.cost`), and
the floor is the longer of the two times. A phase is then run as training runs it, and timed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]


@dataclass(frozen=True)
class Machine:
    """Operations and bytes a second, at best."""

    operations: float
    bandwidth: float

    def seconds(self, operations: float, moved: float = 0.0) -> float:
        """The longer of computing and moving."""
        return max(operations / self.operations, moved / self.bandwidth)


@functools.cache
def machine(threads: int | None = None) -> Machine:
    """Measure this machine, or its first accelerator in bfloat16.

    BENCH_MACHINE, "operations bytes" a second, is what a suite has measured for all its rows.
    """
    if known := os.environ.get("BENCH_MACHINE"):
        return Machine(*map(float, known.split()))
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    size, dtype = (1024, torch.float32) if device is None else (8192, torch.bfloat16)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b, out = torch.randn_like(a), torch.empty_like(a)
    product = _fastest(lambda: torch.mm(a, b, out=out))
    source = torch.ones(64 * 2**20, device=device)  # 256 MiB: larger than any cache
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), least=4)
    torch.set_num_threads(before)
    return Machine(2.0 * size**3 / product, 2.0 * source.nbytes / copied)


def _fastest(action: Callable[[], Any], seconds: float = 3.0, least: int = 10) -> float:
    import torch

    best, end, count = float("inf"), time.perf_counter() + seconds, 0
    while count < least or time.perf_counter() < end:
        start = time.perf_counter()
        action()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


@functools.cache
def shape(model: str, lora: bool) -> Any:
    """Widths of the model in a folder, with the adapter that prepare.py puts beside it."""
    import torch
    from peft import get_peft_model
    from prepare import lora_config
    from transformers import AutoConfig, AutoModelForCausalLM

    from align.dry_run_cost import shape_of

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        if lora:
            made = get_peft_model(made, lora_config("dpo"))
    return shape_of(made)


def step_floor(
    options: argparse.Namespace, model: Path, used: Sequence[tuple[int, list[int]]], steps: int
) -> float:
    """Seconds of an optimiser step. used: (prompt, completions) of all rows of all steps."""
    from align.cost import Work, group_work, step

    widths = shape(str(model), options.lora)
    work = sum((group_work(p, c) for p, c in used), Work()).times(1 / steps)
    method = options.method
    operations = step(
        widths, work, head=method != "reward",
        reference=method == "dpo" and options.reference != "cached",
    )  # fmt: skip
    # Adam reads and writes a weight, its gradient and two moments.
    return machine(options.threads).seconds(operations) + machine(options.threads).seconds(
        0, 28.0 * widths.trained
    )


def sampling_work(
    widths: Any, prompts: Sequence[float], n: int, new_tokens: int, mean: float
) -> tuple[float, float, float]:
    """(operations of the prompts, operations, bytes of the tokens drawn), mean tokens a row.

    Every weight is read for every token of the longest row, and each row's keys and values.
    """
    from align.cost import Work, forward, group_work

    rows = len(prompts) * n
    read = sum((group_work(p, []) for p in prompts), Work())
    drawn = sum((group_work(p, [mean] * n) for p in prompts), Work())
    drawn = Work(drawn.tokens - read.tokens, drawn.pairs - read.pairs, rows * mean)
    weights = 4.0 * (widths.body + widths.hidden * widths.vocabulary)
    cached = 4.0 * 2 * widths.key_value * widths.layers * drawn.pairs
    return forward(widths, read, head=False), forward(widths, drawn), new_tokens * weights + cached


def sampling_floor(
    options: argparse.Namespace, model: Path, prompts: Sequence[Sequence[int]], mean: float
) -> float:
    """Seconds for 1,000 tokens."""
    widths, here = shape(str(model), False), machine(options.threads)
    sizes = [float(len(p)) for p in prompts]
    read, drawn, moved = sampling_work(widths, sizes, options.n, options.new_tokens, mean)
    seconds = here.seconds(read) + here.seconds(drawn, moved)
    return seconds / (len(prompts) * options.n * mean / 1000)


def ppo_floor(options: argparse.Namespace, model: Path, prompts: int, critic: str) -> float:
    """Seconds of an update: sampling, measuring, scoring, passes. critic: as in ppo.critic."""
    from align.cost import ppo_update

    here, widths = machine(options.threads), shape(str(model), options.lora)
    scorer = shape(str(options.reward_model or options.model), False)
    phases = ppo_update(
        widths, options.prompt_tokens, options.new_tokens, prompts=prompts, n=1,
        epochs=options.ppo_epochs, critic=critic, reward_models=[scorer],
    )  # fmt: skip
    read, drawn, moved = sampling_work(
        widths, [options.prompt_tokens] * prompts, 1, options.new_tokens, options.new_tokens
    )
    sampled = here.seconds(read) + here.seconds(drawn, moved)
    return sampled + here.seconds(phases["scoring"] + phases["passes"])


def main(argv: list[str] | None = None) -> int:
    """Print the machine's speeds and a table of phases."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", required=True, help="folder of a causal LM")
    made.add_argument("--prompt", type=int, default=72, help="tokens")
    made.add_argument("--completions", type=int, nargs="+", default=[155, 148], help="tokens")
    made.add_argument("--batch", type=int, default=4, help="prompts")
    made.add_argument("--full", action="store_true", help="all weights are trained; else LoRA r 16")
    made.add_argument("--new_tokens", type=int, default=32, help="tokens drawn for each prompt")
    options = made.parse_args(argv)
    from align import launch_env

    launch_env.set_defaults()
    from floor_phases import phases

    here = machine()
    print(
        f"{here.operations / 1e9:.0f} GFLOP/s in matrix products, {here.bandwidth / 1e9:.1f} GB/s "
        "in a copy (read and written)\n\n"
        "| phase | TFLOP | GB | floor, s | ours, s | share of floor |\n|---|---|---|---|---|---|"
    )
    for name, operations, moved, seconds in phases(options):
        floor = here.seconds(operations, moved)
        print(
            f"| {name} | {operations / 1e12:.3f} | {moved / 1e9:.2f} | {floor:.3f} "
            f"| {seconds:.3f} | {100 * floor / seconds:.0f} % |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
