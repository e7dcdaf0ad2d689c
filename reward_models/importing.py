"""The import pipeline: files in; canonical groups, splits, pairs, accounting and a report out.

Groups go to disk as they are read. Those that turn out to hold the same prompt and the same answers
are merged in a second pass (``import_passes``), so memory holds a digest a group and the parts of
one comparison.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from reward_models.annotations.archives import Skipped, Source, expand
from reward_models.annotations.base import Detection, Intake, Options
from reward_models.annotations.columns import check_columns
from reward_models.annotations.detect import SAMPLE, detect, format_named
from reward_models.annotations.reading import read, read_as_named
from reward_models.import_groups import Collected, Written
from reward_models.import_lines import json_line
from reward_models.import_passes import (
    SPLITS,
    PerGroup,
    aggregator_for,
    split_of,
    write_all,
)
from reward_models.import_reading import FirstPass
from reward_models.quality import Quality, advice
from reward_models.workers import Workers

__all__ = ["SPLITS", "ImportSettings", "run_import", "split_of"]

# Less than this is done before workers are.
WORTH_WORKERS = 4 << 20
MAX_SKIPPED = 1000


@dataclass(frozen=True)
class ImportSettings:
    """What import_annotations was asked to do; names are those of its options."""

    inputs: tuple[str, ...]
    output: Path
    format: str | None = None
    options: Options = field(default_factory=Options)
    aggregate: str = "soft"
    ties: str = "half"
    alpha: float = 0.0
    suspects: str = "keep"
    min_annotators: int = 1
    fractions: tuple[float, ...] = (0.9, 0.05, 0.05)
    seed: int = 0
    dry_run: bool = False
    workers: int = 0


def run_import(settings: ImportSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Imports and returns the report (also written as report.json unless ``dry_run``).

    Raises UserError where the input or the settings are wrong; nothing is left behind then, and
    what an earlier import wrote stays.
    """
    sources, skipped = expand(settings.inputs, settings.options.encoding)
    _check_mapping(sources, settings.options)
    found = [(source, _detection(source, settings)) for source in sources]
    for source, detection in found:
        say(f"{source.name}: {detection.format.name} ({detection.evidence})")
    size = sum(path.stat().st_size for path in {source.path for source in sources})
    count = settings.workers if size >= WORTH_WORKERS else 0
    with _workspace(settings) as work, closing(Workers(count, settings)) as workers:
        report = _import(settings, found, skipped, work, workers)
        if not settings.dry_run:
            _publish(work, settings.output)
    return report


@contextmanager
def _workspace(settings: ImportSettings) -> Iterator[Path]:
    """A folder to write in, gone afterwards. Beside the output, so that renaming is enough."""
    if settings.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    # A random name would survive a crash unnoticed; this one is overwritten by the next run.
    work = settings.output / ".import.tmp"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise UserError("output", str(settings.output), reason, "Give another folder") from None
    try:
        yield work
    finally:
        for path in work.iterdir():
            path.unlink()
        work.rmdir()
        if not any(settings.output.iterdir()):
            settings.output.rmdir()


def _publish(work: Path, output: Path) -> None:
    """Moves the files; the old report.json goes first and the new one comes last.

    Where there is a report.json, the files beside it are those that it counts.
    """
    (output / "report.json").unlink(missing_ok=True)
    names = sorted(path.name for path in work.iterdir())
    for name in sorted(names, key=lambda name: name == "report.json"):
        os.replace(work / name, output / name)


def _check_mapping(sources: Sequence[Source], options: Options) -> None:
    """Every mapped column stands in each file that has one of them, and in one file at least."""
    if not options.mapping:
        return
    names: dict[str, dict[str, None]] = {}
    for source in sources:
        rows = islice(read_as_named(source, options), SAMPLE)
        names[source.name] = {str(k): None for r in rows if isinstance(r.obj, dict) for k in r.obj}
    wanted = set(options.mapping.values())
    meant = {name: keys for name, keys in names.items() if wanted & keys.keys()} or names
    for name, keys in meant.items():
        check_columns(options.mapping, name, keys)


def _detection(source: Source, settings: ImportSettings) -> Detection:
    if settings.format is None:
        return detect(source, settings.options)
    # An unreadable file is an error before anything is written.
    next(iter(read(source, settings.options)), None)
    return Detection(format_named(settings.format), "named by --format")


def _import(
    settings: ImportSettings,
    found: Sequence[tuple[Source, Detection]],
    skipped: Sequence[Skipped],
    work: Path,
    workers: Workers,
) -> dict[str, Any]:
    quality, aggregator = Quality(), aggregator_for(settings)
    with open(work / "rejects.jsonl", "wb") as rejects, closing(Collected(work)) as collected:

        def reject(record: dict[str, Any]) -> None:
            rejects.write(json_line(record))

        intake = Intake(settings.options, reject, work)
        write = isinstance(aggregator, PerGroup)
        per_file = FirstPass(intake, quality, collected, workers, write).read_all(found)
        if not intake.rows.used:
            _nothing_usable(settings, intake)
        comparisons = len(collected)
        written = write_all(collected, aggregator, quality, work, reject, workers)
    if not written.groups.used:
        raise UserError(
            "input",
            ", ".join(settings.inputs),
            "gives no pair to train on",
            "Loosen --ties, --min_annotators or --suspects",
        )
    report = _report(settings, intake, quality, written, per_file, skipped, comparisons)
    if not isinstance(aggregator, PerGroup):
        report["aggregation"] = aggregator.report()
    from reward_models.import_report import render  # jinja2 only when a page is written

    for name, text in (
        ("report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n"),
        ("report.html", render(report)),
    ):
        # Field names and annotators come from the input: they may hold a lone surrogate.
        (work / name).write_bytes(text.encode("utf-8", "backslashreplace"))
    return report


def _nothing_usable(settings: ImportSettings, intake: Intake) -> None:
    dropped = intake.rows.dropped.most_common()
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped)
    first = intake.rows.examples.get(dropped[0][0]) if dropped else None
    fix = "See docs/annotations.md for what each reason means"
    if intake.rows.dropped["bad_encoding"]:
        fix = "Name the encoding (--encoding gb18030 for a Chinese Windows file)"
    raise UserError(
        "input", ", ".join(settings.inputs), f"has no usable row: {reasons} (first at {first})", fix
    )


def _report(
    settings: ImportSettings,
    intake: Intake,
    quality: Quality,
    written: Written,
    per_file: list[dict[str, Any]],
    skipped: Sequence[Skipped],
    comparisons: int,
) -> dict[str, Any]:
    figures = quality.report()
    warnings = [f"{text} ({n} times)" for text, n in intake.warnings.most_common()]
    splits = {name: written.splits[name] for name in SPLITS}
    empty = [n for n, f in zip(SPLITS, settings.fractions, strict=True) if f > 0 and not splits[n]]
    if empty:
        warnings.append(
            f"{', '.join(empty)} is empty: too few prompts for the fractions, or an earlier import "
            "put them elsewhere (a prompt's text decides; preferences.jsonl holds all)"
        )
    unread = Counter(s.reason for s in skipped if s.reason not in ("hidden", "result of an import"))
    if unread:
        reasons = ", ".join(f"{n} {reason}" for reason, n in unread.most_common())
        warnings.append(f"{sum(unread.values())} files were not read: {reasons}")
    options = settings.options
    return {
        "inputs": per_file,
        "skipped": {
            "count": len(skipped),
            "files": [{"file": s.file, "reason": s.reason} for s in skipped[:MAX_SKIPPED]],
        },
        "rows": intake.rows.to_json(),
        "votes": intake.votes.to_json(),
        # Comparisons read == groups used and dropped + comparisons that joined an earlier one. A
        # row is one comparison in most formats, several in some, a part of one in others.
        "comparisons": comparisons,
        "groups": written.groups.to_json(),
        "merged_rows": comparisons - written.groups.total,
        "pairs": written.pairs,
        "splits": splits,
        "settings": {
            "label_config": options.label_config is not None,
            "bucket_order": list(options.bucket_order),
            "encoding": options.encoding,
            "mapping": dict(options.mapping),
            "unescape_html": options.unescape_html,
            "aggregate": settings.aggregate,
            "ties": settings.ties,
            "alpha": settings.alpha,
            "suspects": settings.suspects,
            "min_annotators": settings.min_annotators,
            "fractions": list(settings.fractions),
            "seed": settings.seed,
        },
        "quality": figures,
        "advice": advice(figures),
        "warnings": warnings,
    }
