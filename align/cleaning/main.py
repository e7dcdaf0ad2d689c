"""``clean_corpus``: the command line, and the files that tell what happened."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from align.config_errors import UserError
from align.jsonl import RecordError

if TYPE_CHECKING:
    from align.cleaning.pipeline import Job, Result


def parser() -> argparse.ArgumentParser:
    """Every option; the steps' own come from Settings."""
    from align.cleaning.settings import add_options

    made = argparse.ArgumentParser(
        prog="clean_corpus",
        description="Read, repair, filter, de-duplicate and mix text, and say what every step did. "
        "0 switches a limit off, --no-… a step.",
    )
    made.add_argument("--input", nargs="+", required=True,
                      help="files, folders or patterns: text, Markdown, HTML, WARC, JSON lines, "
                      "Parquet, PDF, source code, compressed or not")  # fmt: skip
    made.add_argument(
        "--output",
        required=True,
        help="folder of shards; or one .txt (a document a line) or .jsonl file",
    )
    made.add_argument("--report", help="JSON report; default: report.json in the folder")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                      help="processes; the output does not depend on them")  # fmt: skip
    add_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Clean; 0 done, 2 the input is wrong, 1 the run failed and can be started again."""
    args = parser().parse_args(argv)
    try:
        job = _job(args)
        from align.cleaning import pipeline

        result = pipeline.run(job, lambda text: print(f"[clean] {text}", flush=True))
        if result is None:
            print(f"[clean] {args.output} is finished already, from the same inputs and settings")
            return 0
        pipeline.publish(job, result, lambda folder: _reports(folder, args, job, result))
    except (UserError, RecordError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(result.counting.lines()))
    for split, found in result.index["splits"].items():
        if found["documents"]:
            print(f"{split}: {found['documents']} documents in {len(found['shards'])} shards")
    print(f"Report: {_report_path(job)}")
    return 0


def _job(args: argparse.Namespace) -> Job:
    from align.cleaning.pipeline import Job
    from align.cleaning.settings import from_arguments

    output, single = Path(args.output), ""
    if output.suffix and not output.is_dir():
        if output.suffix not in (".txt", ".jsonl", ".parquet"):
            raise UserError(
                "output",
                args.output,
                "has a suffix that says no known format",
                "Use a folder, or a name that ends in .txt, .jsonl or .parquet.",
            )
        args.format, single, output = output.suffix[1:], output.name, output.parent
        args.validation_fraction = 0.0  # one file has one split
    if args.workers < 1:
        raise UserError("workers", args.workers, "must be at least 1", "Use the number of cores.")
    return Job(args.input, output, from_arguments(args), args.workers, single)


def _report_path(job: Job) -> Path:
    return job.output / (f"{job.single}.report.html" if job.single else "report.html")


def _reports(folder: Path, args: argparse.Namespace, job: Job, result: Result) -> None:
    from align.cleaning.report import write_report

    body = {
        **result.counting.to_json(), "splits": result.index["splits"],
        "settings": dataclasses.asdict(job.settings), "seconds": round(result.seconds, 1),
    }  # fmt: skip
    text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
    name = f"{job.single}.report.json" if job.single else "report.json"
    (folder / name).write_text(text, encoding="utf-8")
    if args.report:
        from align.data.corpus import write_text

        write_text(args.report, text)
    write_report(folder / _report_path(job).name, job.settings, result)


if __name__ == "__main__":
    sys.exit(main())
