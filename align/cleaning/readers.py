"""Documents of a unit, format by format: what cannot be read is reported, never raised.

Every reader yields (place, text): the place is the byte offset of a line, or the number of a row,
record or page file from 0.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from align.cleaning import extract
from align.cleaning.decoding import by_mark, decode, decode_all, guess, is_binary
from align.cleaning.settings import Settings
from align.cleaning.sources import InputFile, Unit
from align.cleaning.streams import DAMAGE, LINE_BYTES, line_blocks, line_offsets, open_bytes
from align.config_errors import UserError

HEAD_BYTES = 64 << 10
# Up to here a text file with blank lines is one document; beyond, each paragraph is.
WHOLE_BYTES = 8 << 20
FILE_BYTES = 64 << 20
TEXT_FIELDS = ("text", "content", "raw_content", "body", "document", "article", "passage")
_BLANK_LINE = re.compile(rb"\n[ \t\r]*(?=\n)")

Place = tuple[int, str]
# (file, place, reason, what it looks like)
Refuse = Callable[[InputFile, int, str, str], None]


@dataclass
class Reader:
    """What readers share: the settings, and where refused documents go."""

    settings: Settings
    refuse: Refuse

    def documents(self, unit: Unit) -> Iterator[tuple[InputFile, Iterator[Place]]]:
        """(file, its documents) of every readable file of a unit."""
        for file in unit.files:
            yield file, self._guarded(file, unit)

    def _guarded(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        try:
            yield from _READERS[file.kind](self, file, unit)
        except (PermissionError, FileNotFoundError) as error:
            self.refuse(file, 0, "unreadable_file", str(error.strerror))
        except DAMAGE as error:
            self.refuse(file, 0, "damaged_file", f"{type(error).__name__}: {error}")

    # Plain text

    def text(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """A line, a paragraph or the whole file, as `documents` says."""
        with open_bytes(file.path) as stream:
            head = stream.read(HEAD_BYTES)
        if is_binary(head):
            if unit.start == 0:
                self.refuse(file, 0, "binary_file", "")
            return iter(())
        what = self.settings.documents
        if what == "auto":
            what = self._likely(head, file)
        if what == "file":
            return self.whole(file, unit)
        lines = self._lines(file, unit, head, paragraphs=what == "paragraph")
        return _paragraphs(lines) if what == "paragraph" else (p for p in lines if p[1].strip())

    def _likely(self, head: bytes, file: InputFile) -> str:
        if mark := by_mark(head):
            head = head.decode(mark, "ignore").encode()
        blank = len(_BLANK_LINE.findall(head))
        if blank < 0.1 * head.count(b"\n") or blank == 0:
            return "line"
        return "file" if file.size <= WHOLE_BYTES else "paragraph"

    def _lines(
        self, file: InputFile, unit: Unit, head: bytes, paragraphs: bool = False
    ) -> Iterator[Place]:
        """(offset, line without its end) of the unit's part, blank lines included."""
        mark = by_mark(head) or (None if self.settings.encoding == "auto" else "")
        if mark and mark != "utf-8-sig":
            # Lines of UTF-16 do not end where bytes say; the first unit reads the whole file.
            if unit.start == 0:
                yield from self._wide_lines(file, mark)
            return
        with open_bytes(file.path) as stream:
            start, end = unit.start, unit.end
            if start and not paragraphs:
                stream.seek(start - 1)
                start = _next_line(stream, start - 1)
            elif start:
                stream.seek(start - 1)
                start = _next_paragraph(stream, start - 1)
            stop = None if paragraphs else end
            for offset, block in line_blocks(stream, start, stop):
                if block is None:
                    self.refuse(file, offset, "line_too_long", "")
                    continue
                done = False
                for place, line in self._decoded(file, offset, block):
                    if paragraphs and end is not None and place >= end and not line.strip():
                        done = True
                        break
                    yield place, line
                if done:
                    return

    def _decoded(self, file: InputFile, offset: int, block: bytes) -> Iterator[Place]:
        """Lines of a block; where it is not UTF-8, each as it can be read."""
        given = self.settings.encoding
        if not block.endswith(b"\n"):
            block += b"\n"
        places = line_offsets(block, offset)[:-1].tolist()
        try:
            text = block.decode("utf-8" if given == "auto" else given)
        except (UnicodeDecodeError, LookupError):
            yield from self._mixed(file, places, block)
            return
        if offset == 0:
            text = text.removeprefix("\ufeff")
        lines = text.split("\n")[:-1]
        if "\r" in text:
            lines = [line.rstrip("\r") for line in lines]
        yield from zip(places, lines, strict=True)

    def _mixed(self, file: InputFile, places: list[int], block: bytes) -> Iterator[Place]:
        raws = block.split(b"\n")[:-1]
        strange = [raw for raw in raws if decode_all(raw, "utf-8") is None]
        hint = guess(b"\n".join(strange)[: 1 << 20]) if self.settings.encoding == "auto" else None
        for place, raw in zip(places, raws, strict=True):
            text = decode(raw, self.settings.encoding, hint)
            if text is None:
                self.refuse(file, place, "undecodable", raw[:80].decode("latin-1"))
                continue
            yield place, text.rstrip("\r\n")

    def _wide_lines(self, file: InputFile, mark: str) -> Iterator[Place]:
        with open_bytes(file.path) as stream:
            text, number = io.TextIOWrapper(stream, mark, errors="replace"), -1
            while line := text.readline(LINE_BYTES):
                number += 1
                if len(line) == LINE_BYTES and not line.endswith("\n"):
                    self.refuse(file, number, "line_too_long", "")
                    while (rest := text.readline(LINE_BYTES)) and not rest.endswith("\n"):
                        pass
                    continue
                yield number, line.rstrip("\n").removeprefix("\ufeff")

    def whole(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The file as one document."""
        if unit.start:
            return
        raw = self._content(file)
        if raw is None:
            return
        text = decode(raw, self.settings.encoding)
        if text is None:
            self.refuse(file, 0, "undecodable", raw[:80].decode("latin-1"))
        elif text.strip():
            yield 0, text

    def _content(self, file: InputFile) -> bytes | None:
        with open_bytes(file.path) as stream:
            raw = stream.read(FILE_BYTES + 1)
        if len(raw) > FILE_BYTES:
            self.refuse(file, 0, "file_too_large", f"above {FILE_BYTES >> 20} MB")
            return None
        if is_binary(raw[:HEAD_BYTES]) and file.kind != "pdf":
            self.refuse(file, 0, "binary_file", "")
            return None
        return raw

    # Rows

    def jsonl(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The text field of every object, a line each, or of a JSON array."""
        with open_bytes(file.path) as stream:
            head = stream.read(HEAD_BYTES)
        if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            raw = self._content(file) if unit.start == 0 else None
            rows = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf")) if raw else []
            for number, row in enumerate(rows):
                yield from self._field(file, number, row)
            return
        for place, line in self._lines(file, unit, head):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                self.refuse(file, place, "bad_json", line[:200])
                continue
            yield from self._field(file, place, row)

    def _field(self, file: InputFile, place: int, row: Any) -> Iterator[Place]:
        wanted = self.settings.text_field
        names = TEXT_FIELDS if wanted == "auto" else (wanted,)
        value = row if isinstance(row, str) else None
        if isinstance(row, dict):
            value = next((row[n] for n in names if isinstance(row.get(n), str)), None)
        if value is None:
            seen = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            self.refuse(file, place, "no_text_field", seen[:200])
        elif value.strip():
            yield place, value.replace("\r\n", "\n")
        else:
            self.refuse(file, place, "empty", "")

    def parquet(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The text column of every row."""
        import pyarrow.parquet as pq

        table = pq.ParquetFile(file.path)
        names = table.schema_arrow.names
        wanted = self.settings.text_field
        column = next((n for n in TEXT_FIELDS if n in names), None) if wanted == "auto" else wanted
        if column not in names:
            raise UserError("text_field", wanted, f"is no column of {file.name}",
                            f"Its columns: {', '.join(names)}.")  # fmt: skip
        number = 0
        for batch in table.iter_batches(batch_size=512, columns=[column]):
            for value in batch.column(0).to_pylist():
                if isinstance(value, str) and value.strip():
                    yield number, value.replace("\r\n", "\n")
                else:
                    self.refuse(file, number, "empty" if value is None or isinstance(value, str)
                                else "no_text_field", "")  # fmt: skip
                number += 1

    # Pages

    def html(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The main text of a page."""
        raw = self._content(file)
        if raw is not None:
            yield from self._page(file, 0, raw)

    def _page(self, file: InputFile, place: int, raw: bytes, hint: str | None = None) -> Any:
        page = extract.decode_page(raw, self.settings.encoding, hint)
        if page is None:
            self.refuse(file, place, "undecodable", raw[:80].decode("latin-1"))
            return
        text = extract.main_text(page, self.settings.extract_html)
        if text:
            yield place, text
        else:
            self.refuse(file, place, "no_main_text", page[:200])

    def warc(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The main text of every page that a crawl answered with."""
        for number, kind, charset, raw in extract.warc_pages(file.path):
            if kind == "html":
                yield from self._page(file, number, raw, charset)
            elif kind == "text":
                text = decode(raw, self.settings.encoding, charset)
                if text is None:
                    self.refuse(file, number, "undecodable", raw[:80].decode("latin-1"))
                elif text.strip():
                    yield number, text
            else:
                self.refuse(file, number, kind, "")

    def pdf(self, file: InputFile, unit: Unit) -> Iterator[Place]:
        """The text layer of all pages."""
        raw = self._content(file)
        if raw is None:
            return
        text = extract.pdf_text(raw)
        if text:
            yield 0, text
        else:
            self.refuse(file, 0, "no_text_layer", "")


_READERS: dict[str, Callable[[Reader, InputFile, Unit], Iterator[Place]]] = {
    "text": Reader.text, "markdown": Reader.whole, "code": Reader.whole, "html": Reader.html,
    "jsonl": Reader.jsonl, "parquet": Reader.parquet, "warc": Reader.warc, "pdf": Reader.pdf,
}  # fmt: skip


def _next_line(stream: Any, offset: int) -> int:
    """Go to the first line that starts after byte `offset`; return its place."""
    while True:
        part = stream.read(1 << 20)
        stop = part.find(b"\n")
        if stop >= 0 or not part:
            found = offset + (stop + 1 if part else 0)
            stream.seek(found)
            return found
        offset += len(part)


def _next_paragraph(stream: Any, offset: int) -> int:
    """Go to the first blank line after byte `offset`; return its place."""
    place = _next_line(stream, offset)
    while line := stream.readline(1 << 20):
        if not line.strip():
            break
        place += len(line)
    stream.seek(place)
    return place


def _paragraphs(lines: Iterator[Place]) -> Iterator[Place]:
    """Runs of lines between blank ones, in pieces of a million characters at most."""
    place, parts, size = 0, [], 0
    for offset, line in lines:
        if line.strip() and size < 1_000_000:
            if not parts:
                place = offset
            parts.append(line)
            size += len(line) + 1
            continue
        if parts:
            yield place, "\n".join(parts)
        parts, size, place = ([line], len(line), offset) if line.strip() else ([], 0, 0)
    if parts:
        yield place, "\n".join(parts)
