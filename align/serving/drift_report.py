"""`recipes/drift_report.py`: two days of a request log, compared. Options are checked first."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from align.argument_types import number, whole
from align.config_errors import NO_VALUE, UserError, missing_file
from align.feedback.records import read_log
from align.files import write_atomic
from align.model_safety import add_options, allow_as_asked
from align.serving.drift_rows import Day, make_day, text_of
from align.serving.request_log import day_file, days_in

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def parser() -> argparse.ArgumentParser:
    """Command line of recipes/drift_report.py."""
    p = argparse.ArgumentParser(
        prog="drift_report.py",
        description="Compare two days of a request log: failures, latency, lengths, refusals, "
        "reward, votes.",
    )
    p.add_argument("--log", help="the log's folder, or one .jsonl file")
    p.add_argument("--days", nargs=2, metavar=("BEFORE", "AFTER"), help="two days: 2026-01-31")
    p.add_argument("--before", help="a file instead: all its lines are one side")
    p.add_argument("--after", help="the other side")
    p.add_argument("--reward", help="checkpoint, module:function or file.py:function; reads the "
                                    "texts that were logged")  # fmt: skip
    p.add_argument("--max_scored", type=whole(1), default=500,
                   help="texts of a side, drawn; default %(default)s")  # fmt: skip
    p.add_argument("--min_n", type=whole(2), default=30,
                   help="values that a side needs; default %(default)s")  # fmt: skip
    p.add_argument("--min_change", type=number(0), default=0.0,
                   help="share of the value before that a change must exceed")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of what is drawn")
    p.add_argument("--output", default="runs/drift", help="folder to write; default %(default)s")
    p.add_argument("--fail_on_drift", action="store_true", help="exit code 1 where a line drifted")
    add_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Compare from the command line: 0 done, 1 drifted with --fail_on_drift."""
    args = parser().parse_args(argv)
    allow_as_asked(args)
    if Path(args.output).is_file():
        raise UserError("--output", args.output, "is a file", "Give a folder")
    if args.reward and ":" not in args.reward and not Path(args.reward).exists():
        raise missing_file("--reward", args.reward)
    before, after = read_sides(args)
    rewards: Any = "no reward model was given"
    if args.reward:
        rewards = _rewards(args, before, after)
    from align.report.drift import write_drift
    from align.serving.drift import DRIFTED, compare

    lines = compare(
        before, after, rewards, min_n=args.min_n, min_change=args.min_change, seed=args.seed
    )
    drifted = [line.name for line in lines if line.verdict == DRIFTED]
    result = {
        "before": _about(before), "after": _about(after), "min_n": args.min_n,
        "min_change": args.min_change, "reward": args.reward, "drifted": drifted,
        "lines": [line.to_json() for line in lines],
    }  # fmt: skip
    output = Path(args.output)
    write_atomic(output / "drift.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    write_drift(result, output / "report.html")
    print(table(result))
    print(f"\nreport: {output / 'report.html'}")
    if drifted and args.fail_on_drift:
        print(f"failed: drifted: {', '.join(drifted)}", file=sys.stderr, flush=True)
        return 1
    return 0


def read_sides(args: argparse.Namespace) -> tuple[Day, Day]:
    """The two sides; UserError where options do not go together or a side has no request."""
    files, days = bool(args.before or args.after), bool(args.log or args.days)
    if files == days or (files and not (args.before and args.after)):
        fix = "Give --log DIR --days BEFORE AFTER, or --before FILE --after FILE"
        raise UserError("--log", NO_VALUE, "or --before and --after is needed", fix)
    if files:
        sides = [_read(f"--{n}", Path(getattr(args, n)), None) for n in ("before", "after")]
    else:
        if not (args.log and args.days):
            raise UserError("--log" if args.days else "--days", NO_VALUE, "is missing",
                            "Give --log DIR --days BEFORE AFTER")  # fmt: skip
        sides = [_read("--days", Path(args.log), day) for day in _checked(args.days)]
    return sides[0], sides[1]


def _checked(days: Sequence[str]) -> Sequence[str]:
    for day in days:
        try:
            real = bool(_DAY.fullmatch(day)) and date.fromisoformat(day)
        except ValueError:
            real = False
        if not real:
            raise UserError("--days", day, "is no day", "Write it as 2026-01-31")
    if days[0] == days[1]:
        raise UserError("--days", days[0], "is given twice", "Give two days")
    return days


def _read(field: str, path: Path, day: str | None) -> Day:
    """One side: a whole file, or a day of a folder or a file."""
    where = path
    if not path.exists():
        raise missing_file("--log" if day else field, str(path))
    if path.is_dir():
        if day is None:
            raise UserError(field, str(path), "is a folder", "Give one of its files")
        where = day_file(path, day)
        if not where.is_file():
            known = ", ".join(days_in(path)[-10:]) or "none"
            raise UserError(field, day, f"has no file in {path}", f"There are days: {known}")
    rows, torn = read_log(where)
    if day is not None:
        rows = [row for row in rows if str(row.get("time")).startswith(day)]
    side = make_day(day or path.name, rows, torn)
    if not side.answers:
        raise UserError(field, day or str(path), f"has no request in {where}", "Check the log")
    return side


def _rewards(args: argparse.Namespace, before: Day, after: Day) -> Any:
    """(rewards before, rewards after) of logged texts, or why there are none."""
    texts = [_texts(day, args.max_scored, args.seed) for day in (before, after)]
    if not all(texts):
        return "no texts logged"
    from align.evaluation.sampling import load_reward

    reward = load_reward(args.reward)
    made = []
    for rows in texts:
        prompts, answers, finished = zip(*rows, strict=True)
        made.append([float(v) for v in reward(list(prompts), list(answers), list(finished))])
    return tuple(made)


def _texts(day: Day, most: int, seed: int) -> list[tuple[list[Any], str, bool]]:
    """(conversation, answer, whether it ended by itself) of some answers whose texts were kept."""
    from align.records import RecordError, parse_messages

    found = []
    for row in day.answers:
        text, prompt = text_of(row), row.get("prompt")
        if not prompt or not text:
            continue
        try:
            messages = list(parse_messages(prompt))
        except RecordError:
            continue
        reason = (row.get("request") or {}).get("finish_reason")
        found.append((messages, text, reason != "length"))
    return random.Random(seed).sample(found, most) if len(found) > most else found


def _about(day: Day) -> dict[str, Any]:
    """What a side is made of."""
    kinds: dict[str, int] = {}
    models: dict[str, int] = {}
    for row in day.answers:
        failure = (row.get("request") or {}).get("failure")
        if failure is not None:
            kinds[failure] = kinds.get(failure, 0) + 1
        model = str(row["completions"][0].get("model"))
        models[model] = models.get(model, 0) + 1
    return {"name": day.name, "requests": len(day.answers), "votes": len(day.votes),
            "failures": kinds, "models": models, "other_rows": day.skipped,
            "torn_lines": day.torn}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The report as text."""
    from align.report.drift import cell

    sides = [result[side]["name"] for side in ("before", "after")]
    rows = [["", *sides, "difference", "verdict"]]
    for line in result["lines"]:
        unit = f" ({line['unit']})" if line["unit"] else ""
        verdict = line["verdict"] + (f": {line['reason']}" if line["reason"] else "")
        parts = (("before", ""), ("after", ""), ("difference", "+"))
        found = [cell(line[part], line["kind"], sign) for part, sign in parts]
        cells = [f"{shown} ({interval})" if interval else shown for shown, interval in found]
        rows.append([line["name"] + unit, *cells, verdict])
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]).rstrip() for row in rows
    )
