"""Which format a file has, told from its content, with the evidence."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from align.config_errors import UserError, nearest
from align.jsonl import short
from reward_models.annotations import FORMATS
from reward_models.annotations.base import Detection, Format
from reward_models.annotations.reading import read

SAMPLE = 50


def format_named(name: str) -> Format:
    """The format called ``name``."""
    names = [f.name for f in FORMATS]
    for known in FORMATS:
        if known.name == name:
            return known
    close = nearest(name, names)
    hint = f"Did you mean {close}? " if close else ""
    raise UserError("format", name, "is not known", f"{hint}Use one of {', '.join(names)}")


def detect(path: str | Path) -> Detection:
    """The one format that most of the first rows have.

    Raises UserError naming the candidates where none or more than one fits.
    """
    rows = list(islice(read(path), SAMPLE))
    objects = [row.obj for row in rows if row.error is None]
    if not objects:
        first = (rows[0].error if rows else None) or ("empty", "no rows")
        raise UserError(
            "input",
            str(path),
            f"has no readable row ({first[0]}: {first[1]})",
            "Give JSON or JSONL in UTF-8",
        )
    found = []
    for known in FORMATS:
        evidence = [e for e in map(known.matches, objects) if e]
        if 2 * len(evidence) >= len(objects):
            said = max(set(evidence), key=evidence.count)
            text = f"{len(evidence)} of the first {len(objects)} rows: {said}"
            found.append(Detection(known, text))
    if len(found) == 1:
        return found[0]
    if found:
        names = "; ".join(f"{d.format.name} ({d.evidence})" for d in found)
        raise UserError(
            "input", str(path), f"fits more than one format: {names}", "Choose one with --format"
        )
    keys = sorted({k for o in objects if isinstance(o, dict) for k in o})
    names = ", ".join(f.name for f in FORMATS)
    raise UserError(
        "input",
        str(path),
        f"fits no known format; its keys are {short(keys, 200)}",
        f"Known formats: {names}; see docs/annotations.md",
    )
