"""The import pipeline: files in; canonical groups, splits, pairs, accounting and a report out.

Groups are spooled to disk as they are read. Those that turn out to hold the same prompt and the
same answers are merged in a second pass, so memory holds one digest a group and the repeated groups
only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from align.config_errors import UserError
from align.records import Counts, PreferenceGroup, RecordError, messages_json, prompt_key
from reward_models.annotations.base import Detection, Intake, Options, merge
from reward_models.annotations.detect import detect, format_named
from reward_models.annotations.reading import read
from reward_models.preferences import targets
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
    """The split of a prompt key: a hash of seed and key, so it never depends on the other rows."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(fractions)
    for name, fraction in zip(SPLITS, fractions, strict=False):
        if place < fraction:
            return name
        place -= fraction
    return next(n for n, f in reversed(list(zip(SPLITS, fractions, strict=False))) if f > 0)


def run_import(settings: ImportSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Imports and returns the report (also written as report.json unless ``dry_run``).

    Raises UserError where the input or the settings are wrong; nothing is left behind then.
    """
    detections = [_detection(path, settings) for path in settings.inputs]
    for path, found in zip(settings.inputs, detections, strict=True):
        say(f"{path}: {found.format.name} ({found.evidence})")
    settings.output.mkdir(parents=True, exist_ok=True)
    # A random name would survive a crash unnoticed; this one is overwritten by the next run.
    work = settings.output / ".import.tmp"
    work.mkdir(exist_ok=True)
    try:
        report = _import(settings, detections, work)
        if not settings.dry_run:
            for path in sorted(work.iterdir()):
                if path.name != "spool":
                    os.replace(path, settings.output / path.name)
    finally:
        for path in work.iterdir():
            path.unlink()
        work.rmdir()
        if not any(settings.output.iterdir()):
            settings.output.rmdir()
    return report


def _detection(path: str, settings: ImportSettings) -> Detection:
    if settings.format is None:
        return detect(path)
    next(iter(read(path)), None)  # an unreadable file is an error before anything is written
    return Detection(format_named(settings.format), "named by --format")


def _import(settings: ImportSettings, found: Sequence[Detection], work: Path) -> dict[str, Any]:
    quality, groups = Quality(), Counts()
    with ExitStack() as stack:
        rejects = stack.enter_context(open(work / "rejects.jsonl", "w", encoding="utf-8"))
        intake = Intake(settings.options, lambda record: _write(rejects, record))
        with open(work / "spool", "w", encoding="utf-8") as spool:
            times, per_file = _spool(settings, found, intake, quality, spool)
        if not intake.rows.used:
            _nothing_usable(settings, intake)
        names = ("preferences", "pairs", *SPLITS)
        out = {
            n: stack.enter_context(open(work / f"{n}.jsonl", "w", encoding="utf-8")) for n in names
        }
        splits: Counter[str] = Counter()
        pairs = 0
        for group in _merged(work / "spool", times):
            made = _targets(group, settings)
            if not made:
                groups.drop("no_pair")
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
    with open(work / "report.json", "w", encoding="utf-8") as file:
        json.dump(report, file, ensure_ascii=False, indent=2)
    from reward_models.import_report import render  # jinja2 only when a page is written

    (work / "report.html").write_text(render(report), encoding="utf-8")
    return report


def _spool(
    settings: ImportSettings,
    found: Sequence[Detection],
    intake: Intake,
    quality: Quality,
    spool: TextIO,
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Reads all files; returns how often each group id occurs, and the row counts per file."""
    times: Counter[str] = Counter()
    per_file = []
    for path, detection in zip(settings.inputs, found, strict=True):
        before, intake.rows = intake.rows, Counts(file=str(path))
        for group in detection.format.parse(read(path), intake):
            times[group.group_id] += 1
            quality.observe_shown(group)
            _write(spool, group.to_json())
        per_file.append({"format": detection.format.name, **intake.rows.to_json()})
        intake.rows = before + intake.rows
    return times, per_file


def _merged(spool: Path, times: Counter[str]) -> Iterator[PreferenceGroup]:
    waiting: dict[str, list[PreferenceGroup]] = {}
    with open(spool, encoding="utf-8") as file:
        for line in file:
            group = PreferenceGroup.from_json(json.loads(line))
            n = times[group.group_id]
            if n > 1:
                parts = waiting.setdefault(group.group_id, [])
                parts.append(group)
                if len(parts) < n:
                    continue
                group = merge(waiting.pop(group.group_id))
            yield group


def _targets(group: PreferenceGroup, settings: ImportSettings) -> list[Any]:
    return targets(
        group,
        aggregate=settings.aggregate,
        ties=settings.ties,
        alpha=settings.alpha,
        margin=True,
        min_annotators=settings.min_annotators,
        suspects=settings.suspects,
    )


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
    reasons = ", ".join(f"{n} {r}" for r, n in intake.rows.dropped.most_common())
    first = next(iter(intake.rows.examples.values()), "")
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
        "groups": groups.to_json(),
        "pairs": pairs,
        "splits": {name: splits[name] for name in SPLITS},
        "settings": {
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


def _write(file: TextIO, record: dict[str, Any]) -> None:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only the escaped form can be written
        text = json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise RecordError(str(error), code="bad_value") from None
    file.write(text + "\n")
