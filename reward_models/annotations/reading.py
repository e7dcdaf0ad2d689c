"""Files into rows in bounded memory: JSON arrays, JSON documents, JSONL and tables of any kind.

What a file is is told from its content. A value that cannot be read becomes a ``Row`` with an
error, never an exception. A JSONL file or a table goes on at the next line. An array cannot be
re-synchronised, so a syntax error ends the file with one error row that has ``ends``: what stands
behind it is not counted.
"""

from __future__ import annotations

import codecs
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from align.config_errors import UserError
from align.json_text import loads
from reward_models.annotations.archives import BROKEN, Source, as_source, is_workbook
from reward_models.annotations.binary_tables import arrow_rows, parquet_rows, seekable, xlsx_rows
from reward_models.annotations.columns import renamed
from reward_models.annotations.encoding import as_utf8, check_encoding, unmarked
from reward_models.annotations.intake import Options, Row
from reward_models.annotations.tables import csv_rows

CHUNK = 1 << 16
MAX_ROW_BYTES = 64 << 20
MAX_DEPTH = 100
# White space, and what a crash leaves of a file.
NOTHING = b" \t\r\n\v\f\0"
TOO_DEEP = ("bad_json", f"nested over {MAX_DEPTH} deep")
# What other files begin with: name → how to make them readable.
UNREADABLE = {
    b"PK": ("a zip archive", "Unpack it and give its files"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook (.xls)", "Save it as .xlsx or CSV"),
    b"%PDF": ("a PDF", "Export the annotations as JSON or CSV"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it: zstd -d FILE"),
    b"BZh": ("compressed by bzip2", "Unpack it: bunzip2 FILE"),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it: unxz FILE"),
    b"SQLite format 3": ("an SQLite data base", "Export the annotations as JSON or JSONL"),
}

# A row, or a line of a JSONL file that is not parsed: (number of the line, of the row, bytes).
Raw = Row | tuple[int, int, bytes]


def read(source: str | Path | Source, options: Options | None = None) -> Iterator[Row]:
    """Yields each row of a file or of an archive's member.

    UserError where it as a whole is unusable: missing, empty, of an unknown kind or encoding.
    """
    options = options or Options()
    return finished(read_unparsed(source, options), as_source(source).name, options)


def read_as_named(source: str | Path | Source, options: Options) -> Iterator[Row]:
    """Like ``read`` but with the columns' own names; the mapping says which line is the header."""
    return _parsed(read_unparsed(source, options), as_source(source).name)


def finished(raws: Iterable[Raw], name: str, options: Options) -> Iterator[Row]:
    """The rows that ``read`` gives, of what ``read_unparsed`` gave, whole or in parts.

    name: of the source.
    """
    rows = _parsed(raws, name)
    if options.mapping:
        rows = renamed(rows, options.mapping)
    return _unescaped(rows) if options.unescape_html else rows


def _parsed(raws: Iterable[Raw], name: str) -> Iterator[Row]:
    for raw in raws:
        yield raw if isinstance(raw, Row) else _parse_line(*raw, name)


def read_unparsed(source: str | Path | Source, options: Options) -> Iterator[Raw]:
    """Like ``read`` but with the lines of a JSONL file as they stand there.

    Parsing takes longer than reading: this way it can be done elsewhere.
    """
    source = as_source(source)
    try:
        with source.open() as file:
            head = file.read(CHUNK)
    except BROKEN as error:
        reason = f"cannot be read: {error}"
        raise UserError("input", source.name, reason, "Check the file") from None
    if not unmarked(head).strip(NOTHING):
        raise UserError("input", source.name, "is empty", "Export the annotations again")
    with source.open() as file:
        yield from _rows(file, head, source.name, options)


def _rows(file: Any, head: bytes, name: str, options: Options) -> Iterator[Raw]:
    if head.startswith(b"PAR1"):
        return parquet_rows(seekable(file, name), name)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        stream = not head.startswith(b"ARROW1")
        return arrow_rows(file if stream else seekable(file, name), name, stream)
    if head.startswith(b"PK") and is_workbook(book := seekable(file, name)):
        return xlsx_rows(book, name, options.mapping)
    for begin, (what, fix) in UNREADABLE.items():
        if head.startswith(begin):
            raise UserError("input", name, f"is {what}", fix)
    if head[257:262] == b"ustar":
        raise UserError("input", name, "is a tar archive", "Unpack it and give its files")
    text = as_utf8(file, head, options.encoding)
    if text is not file:
        head = text.peek(CHUNK)
    kind = _kind(head.removeprefix(codecs.BOM_UTF8).lstrip(), name)
    if not options.encoding:
        check_encoding(head, len(head) < CHUNK, name, kind in ("lines", "table"))
    if kind == "table":
        return csv_rows(text, name, head, options.mapping, MAX_ROW_BYTES)
    if kind == "lines":
        return _lines(text, name)
    return _documents(text, name, in_array=kind == "array")


def _kind(text: bytes, name: str) -> str:
    """array, document, lines or table. text: the beginning of the file in UTF-8."""
    rest = text[1:].lstrip()[:1]
    if text[:1] == b"[" and rest in (b"", *(bytes([c]) for c in b'[{]"-0123456789tfn')):
        return "array"
    if text[:1] == b"{" and rest in (b"", b'"', b"}"):
        return "document" if _spans_lines(text) else "lines"
    lower = name.lower().removesuffix(".gz")
    return "lines" if lower.endswith((".json", ".jsonl", ".ndjson")) else "table"


def _unescaped(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield Row(row.file, row.line, row.number, _unescape(row.obj), row.error, row.ends)


def _unescape(value: Any) -> Any:
    if isinstance(value, str):
        return html.unescape(value) if "&" in value else value
    if isinstance(value, list):
        return [_unescape(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _unescape(v) for k, v in value.items()}
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than ``limit`` deep."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _spans_lines(text: bytes) -> bool:
    """Whether the first object goes on after its first line (a pretty-printed document)."""
    first = text.split(b"\n", 1)[0].rstrip()
    return first.endswith((b"{", b"[", b","))


def _lines(file: BinaryIO, name: str) -> Iterator[Raw]:
    number = line = 0
    while True:
        try:
            raw = file.readline(MAX_ROW_BYTES + 1)
        except BROKEN as error:
            problem = ("truncated_file", str(error))
            yield Row(name, line + 1, number + 1, error=problem, ends=True)
            return
        if not raw:
            return
        line += 1
        if len(raw) > MAX_ROW_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_ROW_BYTES)
            number += 1
            yield Row(name, line, number, error=("row_too_long", f"over {MAX_ROW_BYTES} bytes"))
            continue
        if line == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw.strip():
            continue
        number += 1
        yield line, number, raw


def _parse_line(line: int, number: int, raw: bytes, name: str) -> Row:
    try:
        value = loads(raw)
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper([value], MAX_DEPTH):
            return Row(name, line, number, error=TOO_DEEP)
        return Row(name, line, number, value)
    except UnicodeDecodeError as error:
        detail = f"not UTF-8: {error.reason} at byte {error.start}"
        return Row(name, line, number, error=("bad_encoding", detail))
    except json.JSONDecodeError as error:
        return Row(name, line, number, error=("bad_json", f"{error.msg} at column {error.colno}"))
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5,000 digits
        return Row(name, line, number, error=("bad_json", str(error)))


class _Text:
    """A growing window of decoded text that knows which line it begins on."""

    def __init__(self, file: BinaryIO):
        self.file, self.text, self.line, self.ended = file, "", 1, False
        self.error: tuple[str, str] | None = None
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    def more(self, size: int) -> bool:
        """Reads on; False at the end or at an undecodable byte (then ``error`` is set)."""
        if self.ended:
            return False
        try:
            raw = self.file.read(size)
            self.text += self._decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            self.text += error.object[: error.start].decode("utf-8")
            self.ended, self.error = True, ("bad_encoding", f"not UTF-8: {error.reason}")
            return False
        except BROKEN as error:
            self.ended, self.error = True, ("truncated_file", str(error))
            return False
        self.ended = not raw
        return bool(raw)

    def skip(self, n: int) -> None:
        self.line += self.text.count("\n", 0, n)
        self.text = self.text[n:]

    def skip_space(self, also: str = "") -> str:
        """Skips white space and ``also``; returns the next character, "" at the end."""
        while True:
            rest = self.text.lstrip(" \t\r\n" + also)
            self.skip(len(self.text) - len(rest))
            if self.text or not self.more(CHUNK):
                return self.text[:1]


def _documents(file: BinaryIO, name: str, in_array: bool) -> Iterator[Row]:
    """Values of arrays, one or several behind each other, or white-space separated values."""
    text, number, inside = _Text(file), 0, False
    while True:
        nxt = text.skip_space("," if inside else "")
        if in_array and nxt == ("]" if inside else "["):
            text.skip(1)
            inside = not inside
            continue
        number += 1
        if nxt == "":
            never = ("truncated_file", "the array is never closed") if inside else None
            if error := text.error or never:
                yield Row(name, text.line, number, error=error, ends=True)
            return
        if in_array and not inside:
            error = ("bad_json", f"text behind the array: {text.text[:20]!r}")
            yield Row(name, text.line, number, error=error, ends=True)
            return
        value, end, error = _value(text)
        yield Row(name, text.line, number, value, error, ends=not end)
        if not end:
            return
        text.skip(end)


def _value(text: _Text) -> tuple[Any, int, tuple[str, str] | None]:
    """(value, its length, None), or (None, its length or 0 if that is unknown, error)."""
    decoder, size = json.JSONDecoder(), CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(text.text)
            brackets = text.text.count("[", 0, end) + text.text.count("{", 0, end)
            if brackets > MAX_DEPTH and _deeper([value], MAX_DEPTH):
                return None, end, TOO_DEEP
            # A number at the edge of the window may go on behind it.
            if end < len(text.text) or not text.more(CHUNK):
                return value, end, None
            continue
        except json.JSONDecodeError as error:
            # Doubling keeps the repeated parsing of one huge value linear in its length.
            if _may_go_on(error, len(text.text)):
                if len(text.text) > MAX_ROW_BYTES:
                    return None, 0, ("row_too_long", f"over {MAX_ROW_BYTES} characters")
                if text.more(size):
                    size *= 2
                    continue
                cut = ("truncated_file", f"ends inside a value: {error.msg}")
                return None, 0, text.error or cut
            line = text.line + error.lineno - 1
            detail = f"{error.msg} at line {line} column {error.colno}"
            return None, 0, ("bad_json", detail)
        except (RecursionError, ValueError) as error:
            return None, 0, ("bad_json", str(error))


def _may_go_on(error: json.JSONDecodeError, length: int) -> bool:
    return error.msg.startswith("Unterminated string") or error.pos >= length - 12
