"""Shards: rows of JSON appended to files of about one size, in one of three formats."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import orjson

from align.cleaning.settings import Settings
from align.files import sha256_of

COLUMNS = ("text", "id", "source", "language")


class Shards:
    """Appends rows to files of about shard_mb each and remembers what is in them.

    name: of the only file; "" makes <split>-00000.<format> and so on.
    """

    def __init__(self, folder: Path, split: str, settings: Settings, name: str = "") -> None:
        self.folder, self.split, self.settings, self.name = folder, split, settings, name
        self.done: list[dict[str, Any]] = []
        self._sink: _Sink | None = None

    def add(self, row: bytes) -> None:
        """Append a row, a JSON object."""
        if self._sink is None:
            suffix = self.settings.format
            name = self.name or f"{self.split}-{len(self.done):05d}.{suffix}"
            self._sink = _SINKS[suffix](self.folder / name)
        self._sink.add(row)
        if not self.name and self._sink.size >= self.settings.shard_mb * 1_000_000:
            self.close()

    def close(self) -> None:
        """End the shard that is open."""
        if self._sink is not None:
            self._sink.close()
            path, rows = self._sink.path, self._sink.rows
            self.done.append({"file": path.name, "documents": rows, "bytes": path.stat().st_size,
                              "sha256": sha256_of(path)})  # fmt: skip
            self._sink = None


class _Sink:
    """One shard of JSON lines. size: bytes of the rows so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.size = path, 0, 0
        self.file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by close()

    def add(self, row: bytes) -> None:
        self.file.write(self.line(row) + b"\n")
        self.rows += 1
        self.size += len(row)

    def line(self, row: bytes) -> bytes:
        return row

    def close(self) -> None:
        self.file.close()


class _Lines(_Sink):
    """A document a line; line ends inside become spaces."""

    def line(self, row: bytes) -> bytes:
        return " ".join(orjson.loads(row)["text"].split("\n")).encode()


class _Parquet(_Sink):
    """Row groups of some megabytes."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(path)
        self.schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        self.writer = pq.ParquetWriter(self.file, self.schema, compression="zstd")
        self.waiting: list[bytes] = []
        self.held = 0

    def add(self, row: bytes) -> None:
        self.waiting.append(row)
        self.rows += 1
        self.size += len(row)
        self.held += len(row)
        if self.held > 8 << 20:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        rows = [orjson.loads(row) for row in self.waiting]
        self.writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
        self.waiting, self.held = [], 0

    def close(self) -> None:
        if self.waiting:
            self.flush()
        self.writer.close()
        super().close()


_SINKS: dict[str, type[_Sink]] = {"jsonl": _Sink, "txt": _Lines, "parquet": _Parquet}
