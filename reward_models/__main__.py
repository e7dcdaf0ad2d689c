"""``python -m reward_models score|evaluate|compare|serve``; torch is imported after the checks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from align.config_errors import UserError
from reward_models.evaluation_command import (
    add_compare,
    add_evaluate,
    compare,
    evaluate,
    load_scorer,
    progress,
)
from reward_models.server_options import add_arguments


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m reward_models", allow_abbrev=False)
    commands = made.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="score the completions of a JSONL file")
    score.add_argument("--output", required=True, metavar="JSONL")
    score.add_argument(
        "--calibrated",
        action="store_true",
        help="in standard deviations of the contract's reference samples",
    )
    judge = commands.add_parser("evaluate", help="how good it is on held-out groups")
    add_evaluate(judge)
    two = commands.add_parser("compare", help="how far two reward models agree")
    add_compare(two)
    for command in (score, judge, two):
        command.add_argument(
            "--model",
            required=True,
            metavar="DIR",
            action="append" if command is two else "store",
            help="a reward checkpoint" + ("; give two" if command is two else ""),
        )
        command.add_argument("--input", required=True, metavar="FILE")
        command.add_argument("--batch_size", type=int, default=16)
        command.add_argument("--max_length", type=int, help="tokens; default: the contract's")
        command.add_argument("--device", help="cpu, cuda, cuda:1, …; default cpu")
    add_arguments(commands.add_parser("serve", help="scores over HTTP, until stopped"))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 2 where the input or an option is wrong."""
    args = parser().parse_args(argv)
    try:
        if args.command == "serve":
            from reward_models.server import serve

            return serve(args)
        if not Path(args.input).is_file():
            raise UserError("input", args.input, "is not a file", "Check the path")
        if args.command == "compare":
            return compare(args)
        return _score(args) if args.command == "score" else evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _score(args: argparse.Namespace) -> int:
    from reward_models.annotations.reading import read
    from reward_models.score_file import bar, check_output, fingerprint, score_file

    check_output(args.input, args.output)
    next(read(args.input), None)  # an unusable file is an error before a model is loaded
    scorer = load_scorer(args, args.model, quiet=True)
    mark = fingerprint(args.model, args.calibrated, scorer.max_length)
    total = sum(1 for _ in read(args.input)) if sys.stderr.isatty() else 0  # cheap beside scoring
    counts = score_file(
        scorer,
        args.input,
        args.output,
        mark=mark,
        calibrated=args.calibrated,
        progress=lambda done: progress(bar(done, total)),
    )
    progress("\n")
    print(", ".join(f"{name} {n}" for name, n in counts.items()) + f" -> {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
