"""Which format a file has, told from its content, with the evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from align.config_errors import UserError, nearest
from align.jsonl import short
from reward_models.annotations import FORMATS
from reward_models.annotations.archives import Source, as_source
from reward_models.annotations.base import Detection, Format, Options
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


def detect(source: str | Path | Source, options: Options | None = None) -> Detection:
    """The one format that most of the first rows have.

    In each row a generic format gives way to any other. Raises UserError naming the candidates
    where none or more than one fits.
    """
    source = as_source(source)
    rows = list(islice(read(source, options), SAMPLE))
    objects = [row.obj for row in rows if row.error is None]
    if not objects:
        first = (rows[0].error if rows else None) or ("empty", "no rows")
        raise UserError(
            "input",
            source.name,
            f"has no readable row ({first[0]}: {first[1]})",
            "Give JSON, JSONL or a table",
        )
    found = fitting(objects)
    if len(found) == 1:
        return found[0]
    if found:
        names = "; ".join(f"{d.format.name} ({d.evidence})" for d in found)
        raise UserError(
            "input", source.name, f"fits more than one format: {names}", "Choose one with --format"
        )
    keys = sorted({k for o in objects if isinstance(o, dict) for k in o})
    names = ", ".join(f.name for f in FORMATS)
    raise UserError(
        "input",
        source.name,
        f"fits no known format; its keys are {short(keys, 200)}",
        f"Known formats: {names}; see docs/annotations.md",
    )


def fitting(objects: Sequence[Any], formats: Sequence[Format] | None = None) -> list[Detection]:
    """The formats that at least half of the rows have, whatever the order of the list.

    A row that another format fits is none of a generic one.
    """
    asked = FORMATS if formats is None else formats
    evidence: list[Counter[str]] = [Counter() for _ in asked]
    for obj in objects:
        said = [(k, text) for k, known in enumerate(asked) if (text := known.matches(obj))]
        special = [(k, text) for k, text in said if not asked[k].generic]
        for k, text in special or said:
            evidence[k][text] += 1
    found = []
    for known, texts in zip(asked, evidence, strict=True):
        n = sum(texts.values())
        if n and 2 * n >= len(objects):
            said = texts.most_common(1)[0][0]
            found.append(Detection(known, f"{n} of the first {len(objects)} rows: {said}"))
    return found
