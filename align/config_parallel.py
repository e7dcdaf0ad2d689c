"""`train.parallelism_config`: how the processes divide a model, and what here can be divided.

The names are those of accelerate's ParallelismConfig, which also takes them from
`accelerate launch --use_parallelism_config`.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError, nearest
from align.launch_env import asked_world, under_deepspeed, under_fsdp

if TYPE_CHECKING:
    from align.config import Config

SIZES = ("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "sp_size")
METHODS = ("pretrain", "sft", "dpo")
FIELD = "train.parallelism_config"


def sizes_of(config: Config) -> dict[str, int]:
    """Return the sizes that were given, in the file or by the launcher; {} where none were."""
    given = config.train.args.get("parallelism_config")
    if given is not None:
        return dict(given) if isinstance(given, dict) else {}
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return {}
    named = {name: os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}") for name in SIZES}
    return {name: int(value) for name, value in named.items() if value and value.isdigit()}


def tensor_parallel(config: Config) -> int:
    """Return over how many processes every layer is split; these see the same examples."""
    return sizes_of(config).get("tp_size", 1)


def data_place(config: Config, rank: int, world: int) -> tuple[int, int]:
    """Return (rank, number) among the groups of processes that see different examples."""
    split = tensor_parallel(config)  # the innermost dimension of accelerate's mesh
    return rank // split, world // split


def zero_stage(config: Config) -> int:
    """Return the stage of the launch, or of train.deepspeed; 0 without DeepSpeed."""
    named = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if named and named.isdigit():
        return int(named)
    found = config.train.args.get("deepspeed") or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if isinstance(found, str) and Path(found).is_file():
        found = json.loads(Path(found).read_text(encoding="utf-8"))
    return int(found.get("zero_optimization", {}).get("stage", 0)) if isinstance(found, dict) else 0


def engine(config: Config) -> str:
    """Return what holds weights and optimiser state: "plain", "zero1" to "zero3", or "fsdp"."""
    if under_deepspeed() or config.train.args.get("deepspeed"):
        return f"zero{zero_stage(config)}"
    return "fsdp" if under_fsdp() or config.train.args.get("fsdp") else "plain"


def check_parallel(config: Config, *, cpu: bool) -> None:
    """Raise UserError for sizes that do not fit machine, launch, method or model."""
    given: Any = config.train.args.get("parallelism_config")
    if given is not None and not isinstance(given, dict):
        raise UserError(FIELD, given, "is not a mapping of sizes", "Write e.g. {tp_size: 2}")
    sizes = sizes_of(config)
    for name, value in sizes.items():
        if name not in SIZES:
            close = nearest(name, SIZES)
            fix = f"Did you mean {close}?" if close else f"Sizes are {', '.join(SIZES)}"
            raise UserError(f"{FIELD}.{name}", value, "is not known", fix)
        if type(value) is not int or value < 1:
            raise UserError(f"{FIELD}.{name}", value, "is not a whole number above 0", "Use 1")
    if any(value > 1 for value in sizes.values()):
        _check_use(config, sizes, cpu)


def _check_use(config: Config, sizes: dict[str, int], cpu: bool) -> None:
    if cpu:
        reason = "needs accelerators: accelerate divides no model between processes of a CPU"
        raise UserError(FIELD, sizes, reason, "Use ds_configs/accelerate_zero3.yaml")
    if config.method not in METHODS:
        reason = f"is not supported by {config.method}, only by {', '.join(METHODS)}"
        raise UserError(FIELD, sizes, reason, "Use ZeRO-3, which every method runs under")
    for name in ("cp_size", "sp_size"):
        if sizes.get(name, 1) > 1:
            reason = (
                "would split rows between processes; a row here holds a prompt with its candidates "
                "behind a mask of their own, and cannot be split"
            )
            raise UserError(f"{FIELD}.{name}", sizes[name], reason, "Use tp_size, or ZeRO-3")
    total = math.prod(sizes.values())
    if total != asked_world():
        reason = f"makes {total} processes, and {asked_world()} were launched"
        raise UserError(FIELD, sizes, reason, f"Launch {total}, or change a size")
    if sizes.get("dp_shard_size", 1) > 1 and not under_fsdp():
        reason = "shards weights, which the launch has no engine for"
        fix = "Launch with ds_configs/accelerate_fsdp2.yaml"
        raise UserError(f"{FIELD}.dp_shard_size", sizes["dp_shard_size"], reason, fix)
    if sizes.get("tp_size", 1) > 1:
        _check_tensor_parallel(config, sizes["tp_size"])


def _check_tensor_parallel(config: Config, size: int) -> None:
    field = f"{FIELD}.tp_size"
    if under_deepspeed() or config.train.args.get("deepspeed"):
        raise UserError(field, size, "cannot be used with DeepSpeed", "Use ZeRO-3 alone, or FSDP2")
    for key, value in (("lora", config.policy.lora), ("quantization", config.policy.quantization)):
        if value is not None:
            reason = f"cannot be used with policy.{key}: split layers take no adapters here"
            raise UserError(field, size, reason, f"Use policy.{key}: null, or ZeRO")
    if config.method == "pretrain" and config.pretrain.arch == "bert":
        raise UserError(field, size, "has no plan for a masked language model", "Use 1")
