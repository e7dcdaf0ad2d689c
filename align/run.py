"""From argv to a finished run: `run("dpo", ["--config", "my.yaml"])` is `recipes/dpo.py`.

Order: strict config (no torch) → launcher check → prerequisites → run directory → training →
report. Exit codes: 0 done; 2 the user's input is wrong, nothing was started; 1 the run failed;
75 stopped by a signal with a checkpoint saved.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from align import launch_env
from align.config import METHODS, Config, load_config, parse_argv
from align.config_errors import Failed, StopRequested, UserError
from align.disk import check_writable, disk_trouble
from align.evaluation.suite_config import check_suite
from align.files import write_atomic
from align.run_manifest import (
    begin,
    now,
    peak_memory,
    read_manifest,
    refuse_other_run,
    write_manifest,
)

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75
# method: module with train(config) -> dict of headline metrics
TRAINERS = {
    "tokenizer": "align.train_tokenizer",
    "pretrain": "align.train.pretrain",
    "sft": "align.train.sft",
    "reward": "align.train.reward",
    "dpo": "align.train.preference",
    "orpo": "align.train.preference",
    "ppo": "align.train.ppo",
}
# What one run leaves in its directory.
RUN_FILES = ("config.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "report.html",
             "data_counts.json", "tokenizer_report.json", "final", "final-ema", "eval", "init",
             "base", "checkpoint-*", "damaged-checkpoint-*")  # fmt: skip


def run(method: str, argv: Sequence[str] | None = None) -> int:
    """Run one training method; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(method, words))


def guarded(action: Callable[[], int | None]) -> int:
    """Return what `action` returns, with errors turned into messages and exit codes."""
    launch_env.end_without_destructors()
    launch_env.set_defaults()
    launch_env.exit_code = _guarded(action)
    return launch_env.exit_code


def _guarded(action: Callable[[], int | None]) -> int:
    mark = f"[rank {launch_env.rank()}] " if launch_env.rank() else ""
    try:
        return action() or DONE
    except UserError as error:
        print(f"{mark}error: {error}", file=sys.stderr, flush=True)
        return WRONG_INPUT
    except StopRequested as stop:
        print(f"{mark}stopped: {stop}", file=sys.stderr, flush=True)
        _wait_for_the_others()
        return STOPPED
    except Exception as error:
        # A failure without a cause says all there is: where it was raised is no help.
        said = isinstance(error, Failed) and error.__cause__ is None
        text = f"failed: {error}" if said else traceback.format_exc()
        print(mark + text, file=sys.stderr, flush=True)
        if isinstance(error, Failed) and error.everywhere:
            _wait_for_the_others()
        return FAILED


def _wait_for_the_others() -> None:
    """Let every rank speak: a launcher ends the others as soon as the first has left."""
    with suppress(RuntimeError):  # one of them is gone already
        leave_group()


def guarded_once(action: Callable[[], int | None]) -> int:
    """Do as `guarded`, on rank 0 alone: what trains nothing would be written by every rank."""
    return DONE if launch_env.rank() else guarded(action)


def _dispatch(method: str, argv: list[str]) -> int:
    arguments = parse_argv(argv)
    if arguments.help:
        from align.config_help import help_text

        print(help_text(method))
        return DONE
    config = load_config(method, argv)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return DONE
    check_suite(config)
    set_environment(config)
    if arguments.dry_run:
        from align.dry_run import dry_run

        return dry_run(config)
    launch_env.refuse_lost_ranks()
    refuse_other_run(config)
    return _execute(config, argv)


def set_environment(config: Config) -> None:
    """Set defaults that libraries read when they are imported."""
    if config.train.args["report_to"] in ("none", ["none"]):
        os.environ.setdefault("WANDB_DISABLED", "true")


def _execute(config: Config, argv: list[str]) -> int:
    from align.prerequisites import prepare, say
    from align.train.resume import find_checkpoint

    run_dir = Path(config.train.output_dir)
    check_writable(run_dir)
    prepare(config)
    if config.method == "pretrain":
        from align.data.corpus_check import check_corpus

        check_corpus(config)
    if config.method != "tokenizer":
        find_checkpoint(config)  # a refusal comes before anything is written
    writes = launch_env.rank() == 0
    manifest: dict[str, Any] = {}
    if writes:
        if config.train.resume == "never":
            set_aside(run_dir)
        manifest = begin(config, argv, launch_env.asked_world())
        write_atomic(run_dir / "config.yaml", config.to_yaml())
        write_manifest(run_dir, manifest)
    say(f"{config.method}: writing to {run_dir}")
    own = [
        name for name, _ in config.arguments.overrides if name.startswith(("policy.path", "data."))
    ]
    if own and config.arguments.file is None:
        say("no --config: what you did not set is the demo's setting; --print_config shows it")
    start = time.monotonic()
    try:
        metrics = _train(config)
    except BaseException as error:
        stopped = isinstance(error, StopRequested)
        lost = end_watch(None if stopped else error)
        if writes:
            reason = None if stopped else lost or f"{type(error).__name__}: {error}"
            ended = {"ended": now(), "stopped": stopped, "error": reason}
            with suppress(OSError):  # a full disk has been reported
                write_manifest(run_dir, manifest | ended)
            _report(run_dir)
        raise
    end_watch(None)
    if writes:
        ended = {
            "finished": True,
            "ended": now(),
            "duration_s": round(time.monotonic() - start, 1),
            "metrics": {**(metrics or {}), **peak_memory()},
        }
        write_manifest(run_dir, manifest | ended)
        report = _report(run_dir)
        say(f"{config.method}: done in {ended['duration_s']} s; {report or run_dir}")
    leave_group()
    return DONE


def _train(config: Config) -> dict[str, Any] | None:
    """Train; Failed where an error has a known cause outside of this program."""
    use_device(config)
    train = importlib.import_module(TRAINERS[config.method]).train
    try:
        metrics = train(config)
    except Exception as error:
        message = disk_trouble(error, Path(config.train.output_dir))
        if message is None and "torch" in sys.modules:
            from align.out_of_memory import advice, is_out_of_memory

            message = advice(config, error) if is_out_of_memory(error) else None
        if message is None:
            raise
        raise Failed(message) from error
    launch_env.check_world(actual_world())
    return metrics


def use_device(config: Config) -> None:
    """Tell the trainer to use the CPU where there is nothing else; never under DeepSpeed.

    DeepSpeed finds its ranks only without `use_cpu`, and on CPU needs gloo named explicitly.
    """
    if config.method == "tokenizer":
        return
    import torch

    if torch.accelerator.is_available() and not config.train.args.get("use_cpu"):
        return
    args = config.train.args
    if args.get("fsdp") or launch_env.under_fsdp():
        from align.config_checks import fsdp_on_cpu

        raise fsdp_on_cpu(args.get("fsdp", True))
    # Said aloud, because deepspeed (imported by accelerate) otherwise warns that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if launch_env.under_deepspeed():
        args.setdefault("ddp_backend", "gloo")
        return
    args["use_cpu"] = True
    if launch_env.asked_world() > 1:
        args.setdefault("ddp_backend", "gloo")


def actual_world() -> int:
    """Return how many processes trained together, as the process group knows it."""
    if launch_env.asked_world() == 1:
        return 1
    if "torch" not in sys.modules:  # a tokenizer needs no process group
        return launch_env.asked_world()
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def end_watch(error: BaseException | None) -> str | None:
    """End the watch over the other ranks, and tell them the error that ends this one.

    Returns what is known of a rank whose loss was the cause.
    """
    if "align.train.watch" not in sys.modules:
        return None
    from align.train import watch

    return watch.stop() if error is None else watch.failed(error)


def leave_group() -> None:
    """Wait for the other ranks, one of which holds what all meet in, and close the process group.

    Libraries may hold groups of their own beyond it: see `launch_env.end_without_destructors`.
    """
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def set_aside(run_dir: Path) -> None:
    """Move the files of an earlier run into a folder beside it: a fresh run must not mix in."""
    if not read_manifest(run_dir) and not any(run_dir.glob("checkpoint-*")):
        return
    number = 1
    while (old := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    old.mkdir(parents=True)
    for pattern in RUN_FILES:
        for path in run_dir.glob(pattern):
            os.replace(path, old / path.name)
    print(f"[align] the earlier run in {run_dir} is now in {old}", flush=True)


def _report(run_dir: Path) -> Path | None:
    """Write report.html; a report that cannot be drawn must not turn a good run into a failure."""
    try:
        from align.report import write_run_report

        return write_run_report(run_dir)
    except Exception as error:
        print(f"[align] no report: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m align.run METHOD …`: how stages are started as child processes."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in METHODS:
        print(f"usage: python -m align.run {{{','.join(METHODS)}}} …", file=sys.stderr)
        return WRONG_INPUT
    return run(words[0], words[1:])


if __name__ == "__main__":
    sys.exit(main())
