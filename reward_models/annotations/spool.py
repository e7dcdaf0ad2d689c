"""Values on disk that come back grouped by key, in memory of some 40 bytes a value.

Files are often longer than memory, and what belongs together may stand anywhere in them: two
annotators' votes on one comparison, the rows of one conversation tree.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

BATCH = 4096


def digest(parts: Any) -> bytes:
    """16 bytes that stand for a JSON value; equal for equal values, whatever their key order."""
    if isinstance(parts, str):
        text = f"\0{parts}"
    elif type(parts) is tuple:
        try:
            text = f"\1{[*map(len, parts)]}{''.join(parts)}"  # much cheaper than JSON
        except TypeError:
            text = _encode(parts)
    else:
        text = _encode(parts)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Made once: json.dumps makes an encoder at every call.
_encode = json.JSONEncoder(sort_keys=True, default=str).encode


class Spool:
    """Byte strings by key: ``add`` them all, then go through ``groups`` as often as needed."""

    def __init__(self, folder: Path | None = None):
        """folder: where the file lies that holds the values; it has no name and leaves no rest."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._size = 0
        self._starts, self._keys, self._at = array("Q"), bytearray(), 0

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, key: bytes, value: bytes) -> None:
        """Appends a value. key: 16 bytes, see ``digest``."""
        self._starts.append(self._size)
        self._keys += key
        self._file.write(value)
        self._size += len(value)

    def groups(self) -> Iterator[list[bytes]]:
        """The values of each key, in the order in which they came; keys in order of their first.

        The values of one key are in memory together.
        """
        for numbers in self.numbers():
            yield [self.read(i) for i in numbers]

    def numbers(self) -> Iterator[list[int]]:
        """Like ``groups``, with the values' numbers from 0 in the order in which they came."""
        import numpy as np  # not before files are grouped: --help stays fast

        n = len(self._starts)
        if not n:
            return
        high, low = np.frombuffer(self._keys, dtype=np.uint64).reshape(n, 2).T
        small = np.uint32 if n < 1 << 32 else np.int64
        # Stable: within a key the order of arrival stays.
        order = np.lexsort((low, high)).astype(small)
        high, low = high[order], low[order]
        begins = np.flatnonzero(
            np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])))
        ).astype(small)
        del high, low
        ends = np.append(begins[1:], small(n))
        by_first = np.argsort(order[begins]).astype(small)
        begins, ends = begins[by_first], ends[by_first]
        del by_first
        self._file.seek(0)
        self._at = 0
        for at in range(0, len(begins), BATCH):
            some = slice(at, at + BATCH)
            for begin, end in zip(begins[some].tolist(), ends[some].tolist(), strict=True):
                yield order[begin:end].tolist()

    def read(self, i: int) -> bytes:
        """A value by its number. Not between two calls of ``add``."""
        start = self._starts[i]
        end = self._starts[i + 1] if i + 1 < len(self._starts) else self._size
        if self._at != start:
            self._file.seek(start)
        self._at = end
        return self._file.read(end - start)

    def close(self) -> None:
        """Frees the disk."""
        self._file.close()
