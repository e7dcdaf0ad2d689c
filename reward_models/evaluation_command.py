"""The commands ``evaluate`` and ``compare``; torch and numpy are imported after the checks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.files import write_atomic
from align.records import PreferenceGroup, RecordError
from reward_models.annotations.base import Intake
from reward_models.evaluation_input import PROTOCOLS, read_groups, read_items
from reward_models.evaluation_lines import lines
from reward_models.preferences import AGGREGATES, MODELS, TIES, targets

OUTPUT = "FILE.json or a folder (report.json); the page stands beside it as .html"
Answers = tuple[Any, Sequence[Any]]


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate`` beside those that every command has."""
    parser.add_argument("--output", metavar="PATH", help=OUTPUT)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, help="a benchmark's rows and its published aggregation"
    )
    _add_shared(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare`` beside those that every command has; --model is given twice."""
    parser.add_argument("--output", metavar="PATH", help=OUTPUT)
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--aggregate", choices=AGGREGATES, default="soft")
    parser.add_argument("--ties", choices=TIES, default="half")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def evaluate(args: argparse.Namespace) -> int:
    """Scores held-out groups, or a benchmark's rows, and prints and writes the figures."""
    paths = _checked(args)
    result = _benchmark(args) if args.protocol else _groups(args)
    _finish(result, {"model": args.model, "input": args.input}, paths)
    return 0


def _groups(args: argparse.Namespace) -> dict[str, Any]:
    from reward_models.evaluation import evaluate_scores

    intake = Intake()
    groups = read_groups(args.input, intake)
    _check_targets(args, groups)
    scorer = load_scorer(args, args.model)
    rows, dropped = score_answers(scorer, [_answers(g) for g in groups])
    kept = [g for g, row in zip(groups, rows, strict=True) if row is not None]
    heads = [row for row in rows if row is not None]
    _require(kept, args.input, dropped)
    try:
        result = evaluate_scores(
            kept,
            [scorer.reduce(row) for row in heads],
            heads=_members(scorer, heads),
            aggregate=args.aggregate,
            ties=args.ties,
            seed=args.seed,
        )
    except ValueError as error:
        raise UserError("model", args.model, f"cannot be evaluated: {error}") from None
    if not (result["eval_pairs"] or result["eval_ties"] or result["best_of_n"]):
        raise UserError("input", args.input, "has neither votes nor gold scores", "Add one of them")
    result["truncated"] = scorer.truncated
    result["groups"] = {"scored": len(kept), "dropped": dict(dropped)}
    return {**result, **_about_input(intake, groups)}


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    from reward_models.rewardbench import evaluate_items

    items, counts = read_items(args.input, args.protocol)
    scorer = load_scorer(args, args.model)
    rows, dropped = score_answers(scorer, [(i.prompt, i.answers) for i in items])
    for code, n in dropped.items():
        counts.used -= n
        counts.drop(code, n=n)
    kept = [(i, scorer.reduce(r)) for i, r in zip(items, rows, strict=True) if r is not None]
    _require(kept, args.input, dropped)
    lengths = [[float(len(_text(a))) for a in item.answers] for item, _ in kept]
    found = [item for item, _ in kept], [row for _, row in kept]
    _check_finite(args.model, found[1])
    result = evaluate_items(args.protocol, *found, lengths, seed=args.seed)
    answers = sum(len(item.answers) for item in items)
    return {
        **result, "rows": counts.to_json(), "truncated": scorer.truncated, "answers": answers,
    }  # fmt: skip


def compare(args: argparse.Namespace) -> int:
    """Scores the same answers with two models and prints and writes how far they agree."""
    if len(args.model) != 2:
        raise UserError("model", args.model, "is not two models", "Give --model A --model B")
    from reward_models.evaluation_compare import compare_scores

    paths = _checked(args)
    intake = Intake()
    groups = read_groups(args.input, intake)
    _check_targets(args, groups)
    answers = [_answers(g) for g in groups]
    scores, truncated, dropped = [], [], Counter()
    for model in args.model:
        scorer = load_scorer(args, model)
        rows, reasons = score_answers(scorer, answers)
        scores.append([None if row is None else scorer.reduce(row) for row in rows])
        truncated.append(scorer.truncated)
        dropped |= reasons
        _check_finite(model, [row for row in scores[-1] if row is not None])
    at = [i for i in range(len(groups)) if all(s[i] is not None for s in scores)]
    _require(at, args.input, dropped)
    result = compare_scores(
        [groups[i] for i in at],
        *([s[i] for i in at] for s in scores),
        aggregate=args.aggregate,
        ties=args.ties,
        seed=args.seed,
    )
    result["truncated"] = truncated
    result["groups"] = {"scored": len(at), "dropped": dict(dropped)}
    result |= _about_input(intake, groups)
    _finish(result, {"A": args.model[0], "B": args.model[1], "input": args.input}, paths)
    return 0


def load_scorer(args: argparse.Namespace, model: str, quiet: bool = False) -> Any:
    """The model, with a progress line on a terminal unless quiet."""
    from reward_models.scorer import Scorer

    def shown(done: int, total: int) -> None:
        filled = 30 * done // total
        progress(f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} answers")

    watched = None if quiet else shown
    return Scorer(model, args.device, args.batch_size, args.max_length, progress=watched)


def progress(text: str) -> None:
    """A line that overwrites itself; silent where standard error is no terminal."""
    if sys.stderr.isatty():
        print(text if text == "\n" else f"\r{text}", end="", file=sys.stderr, flush=True)


def score_answers(
    scorer: Any, items: Sequence[Answers]
) -> tuple[list[list[list[float]] | None], Counter[str]]:
    """(scores of every item's answers, (answers, heads), or None; reasons of those with None).

    items: (prompt, answers). The same text after the same prompt is scored once, so that its scores
    are equal to the last bit.
    """
    encoded: list[list[tuple[int, ...]] | None] = []
    dropped: Counter[str] = Counter()
    for prompt, answers in items:
        try:
            encoded.append([tuple(scorer.encode(prompt, answer)) for answer in answers])
        except RecordError as error:
            dropped[error.code] += 1
            encoded.append(None)
    unique = list(dict.fromkeys(ids for rows in encoded if rows for ids in rows))
    found = dict(zip(unique, scorer.score_ids(unique), strict=True))
    progress("\n")
    return [None if rows is None else [found[ids] for ids in rows] for rows in encoded], dropped


def _checked(args: argparse.Namespace) -> tuple[Path, Path] | None:
    """The output's paths; what the parser lets through is an error before a model is loaded."""
    if args.seed < 0:
        raise UserError("seed", args.seed, "is below 0", "Use 0 or more")
    return output_paths(args.output)


def output_paths(given: str | None) -> tuple[Path, Path] | None:
    """(JSON file, HTML file) of --output: a file's name ends with .json, all else is a folder."""
    if given is None:
        return None
    path = Path(given)
    if path.suffix.lower() != ".json":
        if path.exists() and not path.is_dir():
            raise UserError("output", given, "is a file", "Give a folder or a name ending in .json")
        path = path / "report.json"
    if path.is_dir():
        raise UserError("output", str(path), "is a folder", "Give a file or another folder")
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = f"cannot be written: {there} is no folder that can be written to"
        raise UserError("output", given, reason, "Give another place")
    return path, path.with_suffix(".html")


def _about_input(intake: Intake, groups: Sequence[PreferenceGroup]) -> dict[str, Any]:
    return {
        "rows": intake.rows.to_json(),
        "answers": sum(len(g.candidates) for g in groups),
        "warnings": [f"{text} ({n} times)" for text, n in intake.warnings.most_common()],
    }


def _answers(group: PreferenceGroup) -> Answers:
    return group.prompt, [c.content for c in group.candidates]


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else "\n\n".join(m.content for m in answer)


def _members(scorer: Any, rows: Sequence[Sequence[Sequence[float]]]) -> Any:
    """(groups, answers, members) scores of an ensemble; None for a single model."""
    from reward_models.outputs import member_scores

    found = [[member_scores(scorer.contract, row) for row in group] for group in rows]
    return found if len(found[0][0]) > 1 else None


def _check_targets(args: argparse.Namespace, groups: Sequence[PreferenceGroup]) -> None:
    """An aggregate that the groups do not have is an error before a model is loaded."""
    if args.aggregate in MODELS:
        for group in groups:
            targets(group, aggregate=args.aggregate, ties=args.ties)


def _require(kept: Sequence[Any], source: str, dropped: Counter[str]) -> None:
    if not kept:
        reason = f"has nothing that the model can read: {dict(dropped)}"
        raise UserError("input", source, reason, "Check --max_length")


def _check_finite(model: str, rows: Sequence[Sequence[float]]) -> None:
    import math

    if not all(math.isfinite(s) for row in rows for s in row):
        reason = "cannot be evaluated: the model gives scores that are not finite"
        raise UserError("model", model, reason)


def _finish(result: dict[str, Any], about: dict[str, Any], paths: tuple[Path, Path] | None) -> None:
    for line in lines(result):
        print(line)
    if paths is None:
        return
    from reward_models.evaluation_report import render

    text = json.dumps({**about, **result}, ensure_ascii=True, indent=2, allow_nan=False)
    # A lone surrogate of the input has no UTF-8 form.
    page = render(result, about).encode("utf-8", "replace").decode("utf-8")
    try:
        write_atomic(paths[0], text + "\n")
        write_atomic(paths[1], page)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise UserError("output", str(paths[0]), reason, "Give another place") from None
    print(f"-> {paths[0]}, {paths[1]}")
