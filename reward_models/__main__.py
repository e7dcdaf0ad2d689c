"""Command line: ``python -m reward_models score|evaluate``; torch is imported after the checks."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.files import write_atomic
from align.records import PreferenceGroup, RecordError
from reward_models.annotations.base import Intake, merge
from reward_models.preferences import AGGREGATES, TIES


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
    evaluate.add_argument("--aggregate", choices=AGGREGATES, default="soft")
    evaluate.add_argument("--ties", choices=TIES, default="half")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    for command in (score, evaluate):
        command.add_argument("--model", required=True, metavar="DIR", help="a reward checkpoint")
        command.add_argument("--input", required=True, metavar="FILE")
        command.add_argument("--batch_size", type=int, default=16)
        command.add_argument("--max_length", type=int, help="tokens; default: the contract's")
        command.add_argument("--device", help="cpu, cuda, cuda:1, …; default cpu")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 2 where the input or an option is wrong."""
    args = parser().parse_args(argv)
    try:
        if not Path(args.input).is_file():
            raise UserError("input", args.input, "is not a file", "Check the path")
        return _score(args) if args.command == "score" else _evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _scorer(args: argparse.Namespace, progress: Any = None) -> Any:
    from reward_models.scorer import Scorer

    return Scorer(args.model, args.device, args.batch_size, args.max_length, progress=progress)


def _score(args: argparse.Namespace) -> int:
    from reward_models.annotations.reading import read
    from reward_models.score_file import check_output, fingerprint, score_file

    check_output(args.input, args.output)
    next(read(args.input), None)  # an unusable file is an error before a model is loaded
    scorer = _scorer(args)
    mark = fingerprint(args.model, args.calibrated, scorer.max_length)
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
    from reward_models.evaluation import evaluate_scores

    if args.output and Path(args.output).is_dir():
        raise UserError("output", args.output, "is a folder", "Give a file")
    intake = Intake()
    groups = _groups(args.input, intake)
    scorer = _scorer(args, lambda done, total: _progress(f"{done}/{total} candidates scored"))
    kept, ids, dropped = _encoded(scorer, groups)
    if not kept:
        raise UserError("input", args.input, f"has no group that the model can read: {dropped}")
    flat = iter(scorer.reduce(scorer.score_ids(ids)))
    scores = [list(islice(flat, len(group.candidates))) for group in kept]
    try:
        result = evaluate_scores(
            kept, scores, aggregate=args.aggregate, ties=args.ties, seed=args.seed
        )
    except ValueError as error:
        raise UserError("model", args.model, f"cannot be evaluated: {error}") from None
    _progress("\n")
    result["rows"], result["truncated"] = intake.rows.to_json(), scorer.truncated
    result["groups"] = {"scored": len(kept), "dropped": dict(dropped)}
    for line in _lines(result):
        print(line)
    if args.output:
        write_atomic(Path(args.output), json.dumps(result, ensure_ascii=True, indent=2) + "\n")
    return 0


def _groups(path: str, intake: Intake) -> list[PreferenceGroup]:
    """The comparisons of a file in any known format, rows about the same answers merged."""
    from reward_models.annotations.detect import detect
    from reward_models.annotations.reading import read

    found: dict[str, list[PreferenceGroup]] = {}
    for group in detect(path).format.parse(read(path), intake):
        found.setdefault(group.group_id, []).append(group)
    if not found:
        reasons = dict(intake.rows.dropped)
        raise UserError(
            "input", path, f"has no usable row: {reasons}", "Give test.jsonl of an import"
        )
    return [merge(parts) for parts in found.values()]


def _encoded(
    scorer: Any, groups: Sequence[PreferenceGroup]
) -> tuple[list[PreferenceGroup], list[list[int]], Counter[str]]:
    """(groups that the model can read, token ids of their candidates, reasons of the others)."""
    kept, ids, dropped = [], [], Counter()
    for group in groups:
        try:
            rows = [scorer.encode(group.prompt, c.content) for c in group.candidates]
        except RecordError as error:
            dropped[error.code] += 1
            continue
        kept.append(group)
        ids += rows
    return kept, ids, dropped


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for name in ("rows", "groups"):
        counts = result[name]
        dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
        used = counts.get("used", counts.get("scored"))
        yield f"{name:<24}{used} used" + (f", dropped: {dropped}" if dropped else "")
    if result["truncated"]:
        yield f"{'truncated':<24}{result['truncated']} candidates"
    for name, value in result.items():
        if name.startswith("eval_"):
            yield f"{name:<24}{value:.4f}" if isinstance(value, float) else f"{name:<24}{value}"


def _progress(text: str) -> None:
    """A line that overwrites itself; silent where standard error is no terminal."""
    if sys.stderr.isatty():
        print(text if text == "\n" else f"\r{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
