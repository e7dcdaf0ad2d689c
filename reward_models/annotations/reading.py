"""Reads JSON arrays, JSON documents and JSONL row by row in bounded memory, errors as rows.

A value that cannot be read becomes a ``Row`` with an error, never an exception. A JSONL file goes
on at the next line. An array cannot be re-synchronised, so a syntax error ends the file with one
error row that has ``ends``: what stands behind it is not counted.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from align.config_errors import UserError
from reward_models.annotations.base import Row

CHUNK = 1 << 16
MAX_ROW_BYTES = 64 << 20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A damaged or unfinished .gz, a disk that fails.
BROKEN = (OSError, EOFError, zlib.error)


def read(path: str | Path) -> Iterator[Row]:
    """Yields each row of a file. UserError where the file as a whole is unusable."""
    path = Path(path)
    if path.is_dir():
        raise UserError("input", str(path), "is a folder", "Give the files in it one by one")
    if not path.is_file():
        raise UserError("input", str(path), "does not exist", "Check the path")
    head = _head(path)
    if not head.strip():
        raise UserError("input", str(path), "is empty", "Export the annotations again")
    if head.startswith(UTF16):
        raise UserError(
            "input",
            str(path),
            "is UTF-16 text",
            f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}",
        )
    if head.startswith(b"PK\x03\x04"):
        raise UserError("input", str(path), "is a zip archive", "Unpack it and give its files")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    with _open(path) as file:
        if text[:1] == b"[":
            yield from _documents(file, str(path), in_array=True)
        elif text[:1] == b"{" and _spans_lines(text):
            yield from _documents(file, str(path), in_array=False)
        else:
            yield from _lines(file, str(path))


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _head(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read(CHUNK)
    except BROKEN as error:
        raise UserError("input", str(path), f"cannot be read: {error}", "Check the file") from None


def _spans_lines(text: bytes) -> bool:
    """Whether the first object goes on after its first line (a pretty-printed document)."""
    first = text.split(b"\n", 1)[0].rstrip()
    return first.endswith((b"{", b"[", b","))


def _lines(file: BinaryIO, name: str) -> Iterator[Row]:
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
        yield _parse_line(raw, name, line, number)


def _parse_line(raw: bytes, name: str, line: int, number: int) -> Row:
    try:
        return Row(name, line, number, json.loads(raw.decode("utf-8")))
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
        yield Row(name, text.line, number, value, error, ends=error is not None)
        if error:
            return
        text.skip(end)


def _value(text: _Text) -> tuple[Any, int, tuple[str, str] | None]:
    """(value, its length, None), or (None, 0, error)."""
    decoder, size = json.JSONDecoder(), CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(text.text)
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
