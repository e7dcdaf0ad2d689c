"""What a unit left, on disk: texts, a row of figures each, signatures, lines, counts.

The folder of a unit appears whole; an interrupted one leaves nothing that a restart would read.
Everything is appended as it comes, so that a unit may be larger than memory.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.cleaning.counting import Counting

ROW = np.dtype([
    ("offset", "<u8"), ("bytes", "<u4"), ("chars", "<u4"), ("key", "<u8", (2,)),
    ("language", "S8"), ("source", "<u4"), ("file", "<u4"), ("place", "<u8"), ("score", "<f4"),
])  # fmt: skip
LINE = np.dtype([("key", "<u8"), ("row", "<u4")])


class Writer:
    """Collects a unit's results; `close` makes them appear under the final name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A worker of a run that was killed may still be at it: each has a folder of its own.
        self.temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self._open = {
            name: open(self.temporary / name, "wb")  # noqa: SIM115 - closed by close()
            for name in ("texts", "rows", "signatures", "bands", "lines", "rejected")
        }
        self.rows = self.offset = 0

    def add(self, texts: list[str], rows: np.ndarray, **arrays: np.ndarray | None) -> None:
        """Append texts and their figures; arrays: signatures, bands, lines (rows from 0 here)."""
        raw = [text.encode("utf-8", "replace") for text in texts]
        sizes = np.fromiter(map(len, raw), np.int64, len(raw))
        rows["bytes"] = sizes
        rows["offset"] = self.offset + np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self._open["texts"].write(b"".join(raw))
        self._open["rows"].write(rows.tobytes())
        for name, array in arrays.items():
            if array is not None:
                if name == "lines":
                    array["row"] += self.rows
                self._open[name].write(array.tobytes())
        self.rows += len(texts)
        self.offset += int(sizes.sum())

    def reject(self, row: dict[str, Any]) -> None:
        """Append a dropped document."""
        self._open["rejected"].write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        self._open["rejected"].write(b"\n")

    def close(self, counting: Counting) -> None:
        """Finish the unit."""
        for file in self._open.values():
            file.close()
        text = json.dumps(counting.to_json(), ensure_ascii=False)
        (self.temporary / "counts.json").write_text(text, encoding="utf-8", errors="replace")
        try:
            self.temporary.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():
                raise
            shutil.rmtree(self.temporary)  # the same unit, finished by another

    def abandon(self) -> None:
        """Leave nothing."""
        for file in self._open.values():
            file.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


@dataclass
class Stored:
    """A finished unit; its arrays stay on disk."""

    folder: Path

    def counting(self) -> Counting:
        """The unit's counts."""
        return Counting.from_json(json.loads((self.folder / "counts.json").read_text("utf-8")))

    def rows(self) -> np.ndarray:
        """(D,) of ROW."""
        return self.array("rows", ROW)

    def array(self, name: str, dtype: Any, width: int = 0) -> np.ndarray:
        """A mapped array, (n,) or (n, width)."""
        path = self.folder / name
        if path.stat().st_size == 0:
            return np.zeros((0, width) if width else 0, dtype)
        mapped = np.memmap(path, dtype, "r")
        return mapped.reshape(-1, width) if width else mapped
