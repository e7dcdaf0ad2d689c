"""What the launcher said: ranks asked for, and the environment of a single process.

No torch here: these answers are needed before a process group exists.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys

from align.config_errors import NO_VALUE, UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
_LAUNCHER_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "TORCH_NCCL_", "OMPI_", "PMI_", "MV2_")
_LAUNCHER_NAMES = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ROLE_RANK",
    "ROLE_NAME", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "FSDP_VERSION", "CCL_WORKER_COUNT", "KMP_AFFINITY", "KMP_BLOCKTIME",
}  # fmt: skip
# What the last run of this process ended with.
exit_code: int | None = None
_ending = False
# accelerate_cpu2.yaml sets this for processes that the launcher starts.
_KEEP = ("ACCELERATE_USE_CPU",)


def set_defaults() -> None:
    """Set what libraries read when they are imported, where the user has not."""
    # trl and transformers report usage unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait in a loop starve each other as soon as anything else runs on the machine: a
    # small matrix product then takes milliseconds instead of microseconds. To wake one that sleeps
    # takes as long as a small product. So: a loop of some microseconds, then sleep.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _keep_memory()
    # bitsandbytes looks for an optional kernel on the hub whenever peft imports it, and warns.
    # torchao, which peft imports too, warns of its CUDA kernels and of torch's own enums.
    for name in ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next tensors.

    Activations are freed and asked for again every step. By default glibc gives them back to the
    kernel each time, and a first touch of every page follows, which for an element-wise operation
    takes longer than the operation. A user's own MALLOC_ or GLIBC_TUNABLES settings stand.
    """
    chosen = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for option, value in ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 * 2**20), (M_MMAP_MAX, 0)):
        mallopt(option, value)


def end_without_destructors() -> None:
    """Let a launched process end when its exit handlers have run.

    Process groups that libraries still hold are otherwise taken apart with the interpreter while
    their threads run, which now and then aborts a process that did all its work (exit code -6).
    Called before anything else registers a handler, so that this one comes last.
    """
    global _ending
    if asked_world() > 1 and not _ending:
        _ending = True
        atexit.register(_end)


def _end() -> None:
    raised = hasattr(sys, "last_value")  # by what came after the run
    if exit_code is not None and asked_world() > 1 and not raised:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def asked_world() -> int:
    """Return the number of processes that the launcher announced."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return this process' rank among all."""
    return int(os.environ.get("RANK") or 0)


def local_rank() -> int:
    """Return this process' rank on its machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def under_deepspeed() -> bool:
    """Return whether `accelerate launch` set up DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def under_fsdp() -> bool:
    """Return whether `accelerate launch` set up FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def refuse_lost_ranks() -> None:
    """Raise UserError if several processes were asked for and the launcher started one.

    `accelerate launch --cpu --num_processes 2` and `distributed_type: MULTI_CPU` do that and exit
    0. They leave one trace: an address to meet at, but no world size.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    sized = any(n in os.environ for n in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    if by_accelerate and "MASTER_ADDR" in os.environ and not sized:
        raise UserError(
            "accelerate launch", NO_VALUE,
            "was asked for several processes and started one (its --cpu and MULTI_CPU modes do)",
            "Use --config_file ds_configs/accelerate_cpu2.yaml, or --multi_gpu --num_processes 2 "
            "--num_machines 1 with ACCELERATE_USE_CPU=true",
        )  # fmt: skip


def check_world(actual: int) -> None:
    """Raise UserError unless the trainer's world (`args.world_size`) is the one asked for."""
    if actual != asked_world():
        raise wrong_launch(
            f"started {asked_world()} processes but the trainer sees {actual}: every rank would "
            "train alone and overwrite the others"
        )


def wrong_launch(reason: str) -> UserError:
    """Return the refusal of a launch that is not what it looks like."""
    fix = "Launch with one of ds_configs/accelerate_*.yaml, see docs/distributed.md"
    return UserError("accelerate launch", NO_VALUE, reason, fix)


def single_process_env() -> dict[str, str]:
    """Return this environment without what makes a child join the launcher's process group."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEEP or not (name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES))
    }
