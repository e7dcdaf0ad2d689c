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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from align.config_errors import UserError
from align.data.splits import assign
from align.jsonl import short
from align.records import Counts, PreferenceGroup, messages_json, prompt_key
from reward_models.annotations.base import Detection, Intake, Options
from reward_models.annotations.detect import detect, format_named
from reward_models.annotations.reading import read
from reward_models.import_passes import Aggregator, Collected, Where, aggregator_for
from reward_models.quality import Quality, advice

SPLITS = ("train", "validation", "test")


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


def split_of(key: str, fractions: Sequence[float], seed: int) -> str:
    """The split of a prompt key; fractions need not add up to 1."""
    parts = {n: f / sum(fractions) for n, f in zip(SPLITS, fractions, strict=True)}
    return assign(key, parts, seed)


def run_import(settings: ImportSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Imports and returns the report (also written as report.json unless ``dry_run``).

    Raises UserError where the input or the settings are wrong; nothing is left behind then, and
    what an earlier import wrote stays.
    """
    detections = [_detection(path, settings) for path in settings.inputs]
    for path, found in zip(settings.inputs, detections, strict=True):
        say(f"{path}: {found.format.name} ({found.evidence})")
    with _workspace(settings) as work:
        report = _import(settings, detections, work)
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


def _detection(path: str, settings: ImportSettings) -> Detection:
    if settings.format is None:
        return detect(path)
    next(iter(read(path)), None)  # an unreadable file is an error before anything is written
    return Detection(format_named(settings.format), "named by --format")


def _import(settings: ImportSettings, found: Sequence[Detection], work: Path) -> dict[str, Any]:
    quality, groups = Quality(), Counts()
    with ExitStack() as stack:
        rejects = stack.enter_context(open(work / "rejects.jsonl", "w", encoding="utf-8"))
        intake = Intake(settings.options, lambda record: _write(rejects, record), work)
        collected = stack.enter_context(closing(Collected(work)))
        per_file = _read_all(settings, found, intake, quality, collected)
        if not intake.rows.used:
            _nothing_usable(settings, intake)
        aggregator = aggregator_for(settings)
        if isinstance(aggregator, Aggregator):
            for _, group in collected.merged():
                aggregator.observe(group)
        names = ("preferences", "pairs", *SPLITS)
        out = {
            n: stack.enter_context(open(work / f"{n}.jsonl", "w", encoding="utf-8")) for n in names
        }
        splits: Counter[str] = Counter()
        pairs = 0
        for where, group in collected.merged():
            made = aggregator.targets(group)
            if not made:
                groups.drop("no_pair", where=f"{where[0]}:{where[1]}" if where[0] else None)
                _write(rejects, _no_pair(where, group))
                continue
            groups.use()
            key = prompt_key(group.prompt)
            split = split_of(key, settings.fractions, settings.seed)
            splits[split] += 1
            pairs += len(made)
            quality.observe(group, key, split)
            record = group.to_json()
            _write(out["preferences"], record)
            _write(out[split], record)
            for row in pair_rows(group, made, split):
                _write(out["pairs"], row)
        if not groups.used:
            raise UserError(
                "input",
                ", ".join(settings.inputs),
                "gives no pair to train on",
                "Loosen --ties, --min_annotators or --suspects",
            )
    report = _report(settings, found, intake, quality, groups, splits, pairs, per_file)
    from reward_models.import_report import render  # jinja2 only when a page is written

    for name, text in (
        ("report.json", json.dumps(report, ensure_ascii=False, indent=2) + "\n"),
        ("report.html", render(report)),
    ):
        # Field names and annotators come from the input: they may hold a lone surrogate.
        (work / name).write_bytes(text.encode("utf-8", "backslashreplace"))
    return report


def _read_all(
    settings: ImportSettings,
    found: Sequence[Detection],
    intake: Intake,
    quality: Quality,
    collected: Collected,
) -> list[dict[str, Any]]:
    """Reads all files; returns the row counts per file."""
    per_file = []
    for path, detection in zip(settings.inputs, found, strict=True):
        before, intake.rows = intake.rows, Counts(file=str(path))
        for group in detection.format.parse(read(path), intake):
            quality.observe_shown(group)
            collected.add(intake.row, group)
        per_file.append({"format": detection.format.name, **intake.rows.to_json()})
        intake.rows = before + intake.rows
    return per_file


def _no_pair(where: Where, group: PreferenceGroup) -> dict[str, Any]:
    """The rejects.jsonl record of a group whose rows were read but whose votes make no pair."""
    file, line, number = where
    detail = f"its {len(group.judgements)} judgement(s) make no pair under these settings"
    return {
        "file": file,
        "line": line,
        "row": number,
        "reason": "no_pair",
        "detail": detail,
        "record": short(group.to_json(), 500),
    }


def pair_rows(group: PreferenceGroup, made: Sequence[Any], split: str) -> Iterator[dict[str, Any]]:
    """The derived view of a group for other trainers: prompt, chosen, rejected and how sure."""
    for pair in made:
        yield {
            "prompt": messages_json(group.prompt),
            "chosen": messages_json(group.candidates[pair.a].messages),
            "rejected": messages_json(group.candidates[pair.b].messages),
            "target": pair.target,
            "weight": pair.weight,
            "margin": pair.margin,
            "group_id": group.group_id,
            "split": split,
        }


def _nothing_usable(settings: ImportSettings, intake: Intake) -> None:
    dropped = intake.rows.dropped.most_common()
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped)
    first = intake.rows.examples.get(dropped[0][0]) if dropped else None
    fix = "See docs/annotations.md for what each reason means"
    if intake.rows.dropped["bad_encoding"]:
        fix = "Save the file as UTF-8 (iconv -f GB18030 -t UTF-8 FILE for a Chinese Windows file)"
    raise UserError(
        "input", ", ".join(settings.inputs), f"has no usable row: {reasons} (first at {first})", fix
    )


def _report(
    settings: ImportSettings,
    found: Sequence[Detection],
    intake: Intake,
    quality: Quality,
    groups: Counts,
    splits: Counter[str],
    pairs: int,
    per_file: list[dict[str, Any]],
) -> dict[str, Any]:
    figures = quality.report()
    warnings = [f"{text} ({n} times)" for text, n in intake.warnings.most_common()]
    empty = [n for n, f in zip(SPLITS, settings.fractions, strict=False) if f > 0 and not splits[n]]
    if empty:
        warnings.append(f"{', '.join(empty)} is empty: too few prompts for the fractions")
    return {
        "inputs": [
            {**counts, "evidence": d.evidence} for d, counts in zip(found, per_file, strict=True)
        ],
        "rows": intake.rows.to_json(),
        "votes": intake.votes.to_json(),
        # Rows used == groups used and dropped + rows merged into a group that was there already.
        "groups": groups.to_json(),
        "merged_rows": intake.rows.used - groups.total,
        "pairs": pairs,
        "splits": {name: splits[name] for name in SPLITS},
        "settings": {
            "label_config": settings.options.label_config is not None,
            "bucket_order": list(settings.options.bucket_order),
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


def _write(file: TextIO, record: Any) -> None:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only the escaped form can be written
        text = json.dumps(record, allow_nan=False)
    file.write(text + "\n")
