"""What to change where a run does not fit into memory, with an estimate of what each saves."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import TYPE_CHECKING

from align import cost
from align.checkpoint_files import newest
from align.config_parallel import zero_stage
from align.config_schema import Lora
from align.disk import size
from align.dry_run_cost import lengths_of
from align.dry_run_size import meta_module
from align.launch_env import asked_world
from align.model_shape import shape_of

if TYPE_CHECKING:
    from align.config import Config

_SAID = re.compile(r"not enough memory|can't allocate memory|out of memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or here."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def advice(config: Config, error: BaseException) -> str:
    """Message for the user: what happened, what makes the run smaller, where it goes on."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    lines = [f"out of memory: {said}", "What makes the run smaller, and by how much about:"]
    lines += [f"  {what}: {saved}" for what, saved in knobs(config)]
    kept = newest(config.train.output_dir)
    lines.append(f"The last complete checkpoint is {kept}." if kept else "No checkpoint yet.")
    return "\n".join(lines)


def knobs(config: Config) -> list[tuple[str, str]]:
    """(options, bytes that they save in one process) of all that save some.

    Estimates of `align.cost` for the longest examples that fit; a model that cannot be described
    gives none.
    """
    now = _held(config)
    found: list[tuple[str, str]] = []

    def add(words: str, held: cost.Held | None) -> None:
        if now is None or held is None:
            found.append((words, "not estimated"))
        elif held.total < now.total:
            found.append((words, size(now.total - held.total)))

    args = config.train.args
    batch = args.get("per_device_train_batch_size", 8)
    if batch > 1:
        half = {"per_device_train_batch_size": batch // 2}
        if config.method != "ppo":  # which chooses the accumulation itself
            half["gradient_accumulation_steps"] = 2 * args.get("gradient_accumulation_steps", 1)
        words = " ".join(f"--train.{name} {value}" for name, value in half.items())
        add(words, _held(_with(config, half)))
    longest = config.pretrain.block_size if config.method == "pretrain" else config.data.max_length
    if not config.train.max_tokens_per_batch or config.train.max_tokens_per_batch > longest:
        smaller = copy.deepcopy(config)
        smaller.train.max_tokens_per_batch = longest
        add(f"--train.max_tokens_per_batch {longest}", _held(smaller))
    if not args.get("gradient_checkpointing"):
        add("--train.gradient_checkpointing true",
            _held(_with(config, {"gradient_checkpointing": True})))  # fmt: skip
    if config.policy.lora is None and config.method != "pretrain":
        adapted = copy.deepcopy(config)
        adapted.policy.lora = Lora()
        add(f"--policy.lora '{{r: {Lora().r}}}'", _held(adapted))
    world = asked_world() if asked_world() > 1 else 8
    for stage in range(zero_stage(config) + 1, 4):
        words = f"ds_configs/accelerate_zero{stage}.yaml with {world} processes"
        add(words, _held(config, stage, world))
    return found


def _with(config: Config, args: dict[str, object]) -> Config:
    changed = copy.deepcopy(config)
    changed.train.args.update(args)
    return changed


def _held(config: Config, stage: int | None = None, world: int | None = None) -> cost.Held | None:
    """Bytes of one process in its largest pass."""
    from align.policy_loading import dtype_of

    try:
        module = meta_module(config, None)
    except Exception:  # advice must not hide the error that it is about
        return None
    if module is None:
        return None
    args = config.train.args
    lengths = lengths_of(config, ())
    many = args.get("per_device_train_batch_size", 8)
    grouped = config.policy.layout != "plain"
    work = cost.group_work(lengths.prompt, lengths.completions, grouped).times(many)
    share = min(1.0, (config.train.max_tokens_per_batch or work.tokens) / work.tokens)
    own = float(dtype_of(config).itemsize)
    # Every trained parameter, heads and critic too.
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return cost.held(
        dataclasses.replace(shape_of(module.lm), trained=trained),
        stage=zero_stage(config) if stage is None else stage,
        world=asked_world() if world is None else world,
        weight_bytes=own if config.policy.lora is None else 4.0,
        frozen_bytes=own,
        tokens=work.tokens * share,
        recompute=bool(args.get("gradient_checkpointing")),
        logit_rows=0 if config.method == "reward" else work.predicted * share,
    )
