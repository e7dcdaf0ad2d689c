"""Command-line options that evaluate_policy and compare_runs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from align.argument_types import number, whole
from align.config_errors import NO_VALUE, UserError
from align.evaluation.history import config_value
from align.evaluation.sampling import Decoding
from align.model_safety import add_options


def add_decoding(p: argparse.ArgumentParser, *, num_prompts: bool = True) -> None:
    """Add the options of sampling. num_prompts: also how many prompts of a file are read."""
    if num_prompts:
        p.add_argument(
            "--num_prompts", type=whole(1), default=64, help="use the first N prompts"
        )
    p.add_argument("--seeds", type=seeds, default=[0], help="comma-separated, e.g. 0,1,2")
    p.add_argument("--max_new_tokens", type=whole(1), default=64)
    p.add_argument("--min_new_tokens", type=int, default=0)
    p.add_argument("--temperature", type=number(0), default=1.0, help="0: greedy")
    p.add_argument("--top_p", type=float, default=1.0)
    p.add_argument("--top_k", type=int, default=0)
    p.add_argument("--batch_size", type=whole(1), default=32)
    add_options(p)


def decoding_of(args: argparse.Namespace) -> Decoding:
    """Decoding from parsed arguments."""
    return Decoding(
        args.max_new_tokens, args.min_new_tokens, args.temperature, args.top_p, args.top_k,
        args.batch_size,
    )  # fmt: skip


def seeds(text: str) -> list[int]:
    """`0,1,2` or `[0, 1, 2]` as distinct integers."""
    try:
        values = [int(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0,1,2") from None
    if len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return values


def from_runs(run_dirs: Sequence[Path], keys: Sequence[str], option: str) -> str:
    """A path that one of the runs' config.yaml names, so that the option may be left out.

    A list (the `rewards` section) must have one item; `auto` for a reward is the demo's reward
    model. Raises UserError, naming the option, when no run says it, or when it is Python code: a
    run folder may be somebody else's, and what it names must not run.
    """
    for run_dir in run_dirs:
        for key in keys:
            value = config_value(run_dir, key)
            if isinstance(value, list):
                value = value[0].get("path") if len(value) == 1 else None
            if value == "auto" and option == "reward":
                root = config_value(run_dir, "demo.root")
                value = str(Path(root) / "reward" / "final") if root else None
            if not isinstance(value, str):
                continue
            if Path(value).exists():
                return value
            if option == "reward" and ":" in value:
                reason = f"is needed: {run_dir}/config.yaml names code or a server ({value})"
                raise UserError(
                    f"--{option}", NO_VALUE, reason, f"if you trust it: --reward {value}"
                )
    raise UserError(
        f"--{option}", NO_VALUE, "is needed: no run's config.yaml names an existing one",
        f"give --{option} PATH",
    )  # fmt: skip
