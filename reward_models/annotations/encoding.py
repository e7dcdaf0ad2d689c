"""Text encodings: what a file has, and any of them read as UTF-8.

Bytes that their encoding does not know become bytes that UTF-8 does not know, so that the row they
stand in is dropped as ``bad_encoding`` and the others are read.
"""

from __future__ import annotations

import codecs
import io
from typing import Any, BinaryIO

from align.config_errors import UserError, nearest

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Tried on text that is not UTF-8. GB18030 is what Chinese Windows and its Excel call GBK or ANSI;
# it accepts most double-byte text, so the guess is the one that gives the most of the commonest
# characters.
GUESSES = ("gb18030", "big5", "cp932", "cp1252")
COMMONEST = set(
    "的一是不了人在有我他这这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小"
    "這個來說們為時會過對裡後國學著你您嗎吗什麼么，。？！、：；「」（）のはをにでとがたしいるてな"
)
NAMES = {
    "gb18030": "GB18030 or GBK (Chinese Windows)",
    "big5": "Big5 (traditional Chinese)",
    "cp932": "Shift-JIS (Japanese Windows)",
    "cp1252": "Windows-1252 (Western Europe)",
    "utf-16-le": "UTF-16 without a byte order mark",
    "utf-16-be": "UTF-16 without a byte order mark",
}
UNDECODABLE = "align_undecodable"


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(UNDECODABLE, _undecodable)


def check_name(encoding: str) -> str:
    """An encoding that Python knows; UserError otherwise."""
    try:
        b"a".decode(encoding)
    except LookupError:
        from encodings.aliases import aliases

        close = nearest(encoding.lower().replace("-", "_"), [*aliases, *aliases.values()])
        hint = f"Did you mean {close}?" if close else "Write utf-8, gb18030, big5, cp1252, utf-16"
        raise UserError("encoding", encoding, "is not known", hint) from None
    except UnicodeError:
        pass  # a wide encoding: one byte is no character
    return encoding


def mark_of(head: bytes) -> str | None:
    """The encoding that a byte order mark tells."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def unmarked(head: bytes) -> bytes:
    """The beginning of a file without its byte order mark."""
    mark = next((mark for mark, _ in MARKS if head.startswith(mark)), b"")
    return head[len(mark) :]


def as_utf8(file: BinaryIO, head: bytes, encoding: str | None) -> Any:
    """The file as UTF-8. encoding: what the user said; a byte order mark is stronger."""
    encoding = mark_of(head) or encoding
    if encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        return file
    return io.BufferedReader(_Recoded(file, encoding), 1 << 16)


class _Recoded(io.RawIOBase):
    """A file of another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str):
        self._file, self._left, self._ended = file, b"", False
        self._decode = codecs.getincrementaldecoder(encoding)(UNDECODABLE).decode

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and not self._ended:
            raw = self._file.read(1 << 16)
            self._ended = not raw
            self._left = self._decode(raw, final=not raw).encode("utf-8", "surrogatepass")
        part = self._left[: len(buffer)]
        buffer[: len(part)] = part
        self._left = self._left[len(part) :]
        return len(part)


def guess(head: bytes, whole: bool) -> tuple[str, float]:
    """(encoding, share of lines) that the beginning of a file has where it is not UTF-8.

    "" where it is UTF-8, but for single characters perhaps, or nothing that is known. whole:
    nothing follows ``head``.
    """
    if mark_of(head):
        return "", 0.0
    some = head[:4096]
    for name, odd in (("utf-16-le", some[1::2]), ("utf-16-be", some[::2])):
        if len(odd) > 4 and odd.count(0) > len(odd) / 2:
            return name, 1.0
    lines = head.split(b"\n")
    lines = [line for line in (lines if whole or len(lines) == 1 else lines[:-1]) if line.strip()]
    wide = [line for line in lines if not line.isascii()]
    cut = not whole and len(lines) == 1
    if not wide or any(_is_utf8(line, cut) for line in wide):
        return "", 0.0
    read = {name: _read_as(b"\n".join(wide), name, whole) for name in GUESSES}
    fitting = [(sum(ch in COMMONEST for ch in text), name) for name, text in read.items() if text]
    found = max(fitting, key=lambda found: found[0], default=(0, ""))[1]
    return found, len(wide) / len(lines) if found else 0.0


def _is_utf8(line: bytes, cut: bool) -> bool:
    """Whether a line is UTF-8, a few broken characters aside. cut: it may end within one."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(line, final=not cut)
    good, bad = sum(ch > "\x7f" and ch != "\ufffd" for ch in text), text.count("\ufffd")
    return good > 2 * bad or (cut and not bad)


def _read_as(raw: bytes, encoding: str, whole: bool) -> str:
    """The text if this can be its encoding, else ""."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(raw, final=whole)
    except UnicodeDecodeError:
        return ""
    wide = [ch for ch in text if ch > "\x7f"]
    if encoding == "cp1252":
        fits = len(wide) * 4 < len(text)
    else:
        fits = sum(map(_east_asian, wide)) >= 0.9 * len(wide)
    return text if fits else ""


def _east_asian(ch: str) -> bool:
    ranges = (
        ("\u2010", "\u2027"),
        ("\u3000", "\u30ff"),
        ("\u4e00", "\u9fa5"),
        ("\uff00", "\uffef"),
    )
    return any(low <= ch <= high for low, high in ranges)


def check_encoding(head: bytes, whole: bool, name: str, by_line: bool) -> None:
    """Raises UserError for a file in another encoding than UTF-8.

    by_line: one bad line does not spoil the next, so less than half of them are rejects only.
    """
    encoding, share = guess(head, whole)
    if not encoding or (by_line and share < 0.5):
        return
    raise UserError(
        "input",
        name,
        f"is not UTF-8; it reads as {NAMES[encoding]}",
        f"Add --encoding {encoding}, or save it as UTF-8",
    )
