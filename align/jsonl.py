"""JSONL files: read with locations, write atomically, account for every row."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.json_text import loads


class RecordError(ValueError):
    """A record that cannot be used.

    message: what is wrong. code: short reason name for counting. where: ``file:line`` or None.
    """

    def __init__(self, message: str, *, code: str = "bad_record", where: str | None = None):
        super().__init__(message)
        self.message, self.code, self.where = message, code, where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def at(self, where: str) -> RecordError:
        """The same error with a location; an error that already has one keeps it."""
        return RecordError(self.message, code=self.code, where=self.where or where)


@dataclass
class Counts:
    """What became of every row of a file: used, dropped by reason, truncated by kind."""

    file: str = ""
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def use(self, n: int = 1) -> None:
        """Count ``n`` used rows."""
        self.used += n

    def drop(self, reason: str, where: str | None = None, n: int = 1) -> None:
        """Count ``n`` dropped rows; the first location per reason is kept for the report."""
        self.dropped[reason] += n
        if where:
            self.examples.setdefault(reason, where)

    def truncate(self, kind: str = "prompt_truncated", n: int = 1) -> None:
        """Count ``n`` rows that are used but shortened."""
        self.truncated[kind] += n

    @property
    def total(self) -> int:
        """Rows seen."""
        return self.used + sum(self.dropped.values())

    def __add__(self, other: Counts) -> Counts:
        """Sum; the file names are joined when they differ."""
        files = dict.fromkeys(f for f in (self.file, other.file) if f)
        return Counts(", ".join(files), self.used + other.used, self.dropped + other.dropped,
                      self.truncated + other.truncated,
                      {**other.examples, **self.examples})  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The entry in a run's ``data_counts.json``."""
        return {
            "file": self.file,
            "used": self.used,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": sum(self.truncated.values()),
            "truncated_by": dict(sorted(self.truncated.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, obj: Any) -> Counts:
        """The inverse of ``to_json``."""
        return cls(obj.get("file", ""), obj["used"], Counter(obj.get("dropped", {})),
                   Counter(obj.get("truncated_by", {})), dict(obj.get("examples", {})))  # fmt: skip


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, value) of each non-empty line; ``.gz`` is read as such.

    A byte order mark is skipped. Raises RecordError (bad_json, bad_encoding) with file:line.
    """
    with _open(Path(path)) as file:
        for lineno, raw in enumerate(file, start=1):
            line = _decode(raw, f"{path}:{lineno}")
            if line.strip():
                yield lineno, _loads(line, f"{path}:{lineno}")


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """Like ``read_jsonl``, and also reads one JSON array (numbered by element from 1)."""
    with _open(Path(path)) as file:
        first = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first != b"[":
        yield from read_jsonl(path)
        return
    with _open(Path(path)) as file:
        rows = _loads(_decode(file.read(), str(path)), str(path))
    yield from enumerate(rows, start=1)


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Any]) -> int:
    """Writes one JSON value a line and returns how many; the file appears whole or not at all.

    rows: JSON values, or objects with ``to_json``. NaN and infinity raise RecordError (bad_value):
    they are not JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with gzip.open(temp, "wb") if path.suffix == ".gz" else open(temp, "wb") as file:
            for row in rows:
                file.write(_dumps(row) + b"\n")
                count += 1
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    return count


def short(value: Any, limit: int = 80) -> str:
    """A value as it appears in an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # an int may have 400 digits


def as_object(obj: Any, *required: str) -> dict[str, Any]:
    """The value as a dict that has the required names; RecordError otherwise."""
    if not isinstance(obj, dict):
        raise RecordError(f"expected an object, got {short(obj)}", code="not_an_object")
    missing = [name for name in required if name not in obj]
    if missing:
        raise RecordError(f"missing {', '.join(missing)} in {short(obj)}", code="missing_field")
    return obj


def list_field(obj: dict[str, Any], name: str) -> list[Any]:
    """A list field; missing or null is empty."""
    value = obj.get(name) or []
    if not isinstance(value, list):
        raise RecordError(f"{name} must be a list, got {short(value)}")
    return value


def name_field(obj: dict[str, Any], name: str) -> str | None:
    """A name, which may be written as a number; missing or null is None."""
    value = obj.get(name)
    if value is None or isinstance(value, str):
        return value
    if not is_finite(value):
        raise RecordError(f"{name} must be a name, got {short(value)}")
    return str(value)


def meta_field(obj: dict[str, Any]) -> dict[str, Any]:
    """The free-form ``meta`` object; missing or null is empty."""
    meta = obj.get("meta") or {}
    if not isinstance(meta, dict):
        raise RecordError(f"meta must be an object, got {short(meta)}")
    return meta


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 ({error.reason} at byte {error.start})"
        raise RecordError(reason, code="bad_encoding", where=where) from None


def _loads(text: str, where: str) -> Any:
    try:
        return loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        reason = f"not JSON: {error.msg} at {place}"
        raise RecordError(reason, code="bad_json", where=where) from None
    except RecursionError:
        raise RecordError("JSON nested too deep", code="bad_json", where=where) from None


def _dumps(row: Any) -> bytes:
    if hasattr(row, "to_json"):
        row = row.to_json()
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{error}: {short(row)}", code="bad_value") from None
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only the escaped form can be written
        return json.dumps(row, allow_nan=False).encode("ascii")
