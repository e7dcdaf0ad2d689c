"""Command line of the importer: annotation exports → preferences.jsonl, splits and a report."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from reward_models.annotations import FORMATS
from reward_models.annotations.base import Options
from reward_models.annotations.columns import parse_mapping
from reward_models.annotations.encoding import check_name
from reward_models.annotations.label_config import load_label_config
from reward_models.importing import SPLITS, ImportSettings, run_import
from reward_models.preferences import AGGREGATES, TIES
from reward_models.workers import usual_workers


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="import_annotations",
        description="Turn annotation exports into preference groups for reward, DPO and ORPO runs.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add(
        "--input",
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="exports: files, folders, zip archives; formats may be mixed",
    )
    add("--output", required=True, metavar="DIR", help="where the files are written")
    add("--format", choices=[f.name for f in FORMATS], help="default: detected by content")
    add(
        "--label_config",
        metavar="XML|FIELDS",
        help="Label Studio labelling config, or left=FIELD,right=FIELD[,prompt=FIELD]",
    )
    add(
        "--bucket_order",
        default="",
        metavar="A,B,…",
        help="ranker buckets from best to worst; without it buckets express no preference",
    )
    add(
        "--mapping",
        default="",
        metavar="NAME=COLUMN,…",
        help="columns of a table: prompt=问题,response_1=回答A,response_2=回答B,winner=更好",
    )
    add("--encoding", help="of text that is not UTF-8: gb18030, big5, cp1252, …")
    add("--unescape_html", action="store_true", help="turn &lt; and the like into characters")
    add("--aggregate", choices=AGGREGATES, default="soft", help="several votes into one target")
    add("--ties", choices=TIES, default="half", help="a tie is half a vote, or none")
    add("--alpha", type=float, default=0.0, help="smoothing of vote shares (default 0)")
    add("--suspects", choices=("keep", "drop"), default="keep", help="flagged judgements")
    add("--min_annotators", type=int, default=1, metavar="N", help="votes that a pair needs")
    add("--fractions", default="0.9,0.05,0.05", metavar="TRAIN,VALIDATION,TEST")
    add("--seed", type=int, default=0, help="of the split")
    add(
        "--workers",
        type=int,
        default=usual_workers(),
        metavar="N",
        help="processes (default here: %(default)s); 0: this one does it all",
    )
    add("--dry_run", action="store_true", help="report only; write nothing")
    return made


def settings_from(argv: Sequence[str] | None) -> ImportSettings:
    """Checked settings; argparse exits 2 on an unknown option, UserError on a wrong value."""
    args = parser().parse_args(argv)
    if args.min_annotators < 1:
        raise UserError("min_annotators", args.min_annotators, "is below 1", "Use 1 or more")
    if not 0 <= args.workers <= 64:
        raise UserError("workers", args.workers, "is not from 0 to 64", "Leave it out")
    config = load_label_config(args.label_config) if args.label_config else None
    order = tuple(b.strip() for b in args.bucket_order.split(",") if b.strip())
    return ImportSettings(
        inputs=tuple(dict.fromkeys(args.input)),
        output=Path(args.output),
        format=args.format,
        options=Options(
            config,
            order,
            encoding=check_name(args.encoding) if args.encoding else None,
            mapping=parse_mapping(args.mapping) if args.mapping else {},
            unescape_html=args.unescape_html,
        ),
        aggregate=args.aggregate,
        ties=args.ties,
        alpha=args.alpha,
        suspects=args.suspects,
        min_annotators=args.min_annotators,
        fractions=_fractions(args.fractions),
        seed=args.seed,
        dry_run=args.dry_run,
        workers=args.workers,
    )


def _fractions(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        numbers = ()
    fine = len(numbers) == len(SPLITS) and all(math.isfinite(n) and n >= 0 for n in numbers)
    if not fine or sum(numbers) <= 0:
        raise UserError("fractions", text, "is not three numbers ≥ 0", "Write 0.9,0.05,0.05")
    return numbers


def table(report: dict[str, Any]) -> str:
    """The short table that is printed at the end."""
    lines = []
    for name in ("rows", "votes", "groups"):
        counts = report[name]
        dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
        total = counts["used"] + sum(counts["dropped"].values())
        lines.append(f"{name:<8}{total:>8} in  {counts['used']:>8} used   {dropped}".rstrip())
    splits = ", ".join(f"{name} {n}" for name, n in report["splits"].items())
    lines.append(f"{'pairs':<8}{report['pairs']:>8}     {splits}")
    if report["merged_rows"]:
        lines[-2] += f"   {report['merged_rows']} more joined a comparison that was there already"
    lines += [f"warning: {text}" for text in report["warnings"]]
    return "\n".join(lines + [f"note: {text}" for text in report["advice"]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the import. Returns 0, or 2 where the input or an option is wrong."""
    try:
        settings = settings_from(argv)
        report = run_import(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(report))
    if settings.dry_run:
        print("dry run: nothing was written")
    else:
        print(
            f"wrote {settings.output / 'preferences.jsonl'} and {settings.output / 'report.html'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
