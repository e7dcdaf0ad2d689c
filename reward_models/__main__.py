"""Command line: ``python -m reward_models score|evaluate``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config_errors import UserError


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
    evaluate = commands.add_parser("evaluate", help="accuracy and calibration on held-out groups")
    evaluate.add_argument("--output", metavar="JSON", help="write the figures here too")
    evaluate.add_argument("--aggregate", default="soft")
    evaluate.add_argument("--ties", default="half")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    for command in (score, evaluate):
        command.add_argument("--model", required=True, metavar="DIR", help="a reward checkpoint")
        command.add_argument("--input", required=True, metavar="FILE")
        command.add_argument("--batch_size", type=int, default=16)
        command.add_argument("--max_length", type=int)
        command.add_argument("--device")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 2 where the input or an option is wrong."""
    args = parser().parse_args(argv)
    try:
        if not Path(args.input).is_file():
            raise UserError("input", args.input, "does not exist", "Check the path")
        return _score(args) if args.command == "score" else _evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _scorer(args: argparse.Namespace, progress: Any = None) -> Any:
    from reward_models.scorer import Scorer

    return Scorer(args.model, args.device, args.batch_size, args.max_length, progress=progress)


def _score(args: argparse.Namespace) -> int:
    from reward_models.score_file import fingerprint, score_file

    scorer = _scorer(args)
    mark = fingerprint(args.model, args.calibrated)
    counts = score_file(
        scorer,
        args.input,
        args.output,
        mark=mark,
        calibrated=args.calibrated,
        progress=lambda n: _progress(f"{n} rows scored"),
    )
    _progress("\n")
    print(", ".join(f"{name} {n}" for name, n in counts.items()) + f" -> {args.output}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from reward_models.annotations.base import Intake
    from reward_models.annotations.detect import detect
    from reward_models.annotations.reading import read
    from reward_models.evaluation import evaluate_groups

    intake = Intake()
    groups = list(detect(args.input).format.parse(read(args.input), intake))
    if not groups:
        raise UserError(
            "input",
            args.input,
            f"has no usable row: {dict(intake.rows.dropped)}",
            "Give test.jsonl of an import",
        )
    scorer = _scorer(args, lambda done, total: _progress(f"{done}/{total} candidates scored"))
    result = evaluate_groups(
        scorer, groups, aggregate=args.aggregate, ties=args.ties, seed=args.seed
    )
    _progress("\n")
    result["rows"], result["truncated"] = intake.rows.to_json(), scorer.truncated
    for name, value in result.items():
        if name.startswith("eval_"):
            print(f"{name:<24}{value:.4f}" if isinstance(value, float) else f"{name:<24}{value}")
    if args.output:
        temp = Path(args.output).with_name(f".{Path(args.output).name}.{os.getpid()}.tmp")
        temp.parent.mkdir(parents=True, exist_ok=True)
        temp.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", "utf-8")
        os.replace(temp, args.output)
    return 0


def _progress(text: str) -> None:
    """A line that overwrites itself; silent where standard error is no terminal."""
    if sys.stderr.isatty():
        print(text if text == "\n" else f"\r{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
