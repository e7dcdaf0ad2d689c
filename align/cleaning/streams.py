"""Bytes of a file, decompressed and in whole lines, with bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from align.cleaning.optional import package

BLOCK_BYTES = 2 << 20
# No text has lines like this; what has is data in one line, which no reader should hold.
LINE_BYTES = 16 << 20
# So much of a zstandard file at a time: four bytes of it can stand for 128 kB.
_FEED_BYTES = 4 << 10
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


def open_bytes(path: str) -> IO[bytes]:
    """A file opened for reading, decompressed as its name says."""
    name = path.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if name.endswith(".bz2"):
        return bz2.open(path, "rb")
    if name.endswith(".xz"):
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if name.endswith(".zst"):
        return _Zstd(path)  # type: ignore[return-value]
    return open(path, "rb")


class _Zstd:
    """A zstandard stream whose errors are OSErrors, as those of the other formats."""

    def __init__(self, path: str) -> None:
        zstandard = package("zstandard", "input", path)
        self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._frame: Any = self._new()
        self._ready, self._fed = b"", False

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._ready) < size:
            raw = self._file.read(_FEED_BYTES)
            if not raw:
                if self._fed and not self._frame.eof:
                    raise EOFError("the stream ends inside a frame")
                break
            self._feed(raw)
        size = len(self._ready) if size < 0 else size
        out, self._ready = self._ready[:size], self._ready[size:]
        return out

    def _feed(self, raw: bytes) -> None:
        try:
            while raw:
                if self._frame.eof:  # another frame follows
                    self._frame = self._new()
                self._fed = True
                self._ready += self._frame.decompress(raw)
                raw = self._frame.unused_data if self._frame.eof else b""
        except self._error as error:
            raise OSError(str(error)) from None

    def __enter__(self) -> _Zstd:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def line_blocks(
    stream: IO[bytes], start: int, end: int | None
) -> Iterator[tuple[int, bytes | None]]:
    """Blocks of whole lines whose first bytes lie in [start, end): (offset, bytes).

    stream: at position `start`. A line above LINE_BYTES gives (offset, None) and is skipped.
    """
    offset, kept = start, b""
    while end is None or offset < end:
        part = stream.read(BLOCK_BYTES)
        block = kept + part
        if not block:
            return
        cut = _cut(block, offset, end) or (0 if part else len(block))
        if cut:
            yield offset, block[:cut]
            offset, kept = offset + cut, block[cut:]
        elif len(block) <= LINE_BYTES:
            kept = block
        else:
            yield offset, None
            offset, kept = _skip_line(stream, offset + len(block))


def _cut(block: bytes, offset: int, end: int | None) -> int:
    """Bytes up to the end of the last whole line that starts before `end`; 0: no line ends."""
    if end is not None and offset + len(block) >= end:
        # The line that holds the byte before `end` is the last of this unit.
        stop = block.find(b"\n", max(0, end - 1 - offset))
        return stop + 1
    return block.rfind(b"\n") + 1


def _skip_line(stream: IO[bytes], offset: int) -> tuple[int, bytes]:
    """Read on to the next line: (its offset, what was read of it)."""
    while part := stream.read(BLOCK_BYTES):
        stop = part.find(b"\n")
        if stop >= 0:
            return offset + stop + 1, part[stop + 1 :]
        offset += len(part)
    return offset, b""


def line_offsets(block: bytes, offset: int) -> np.ndarray:
    """File offsets of the first bytes of a block's lines."""
    feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
    starts = np.concatenate(([0], feeds + 1))
    return starts + offset
