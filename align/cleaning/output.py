"""What stays, written: split by document, sources weighed, shuffled, in shards with an index.

Rows go to buckets by a seeded random key, each bucket is sorted in memory and appended to the
shards: the order is random over the whole corpus, and the memory that of one bucket.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from align.cleaning.counting import Counting, Tally
from align.cleaning.duplicates import Verdicts
from align.cleaning.repetition import line_keys
from align.cleaning.settings import Settings, factors
from align.cleaning.store import Stored
from align.cleaning.tokens import Batch, mix

SPLITS = ("train", "validation")
_BUCKET_BYTES = 64 << 20
_HEAD = struct.Struct("<QI")
_SALTS = {"split": 1, "order": 2, "repeat": 3}


@dataclass
class Shards:
    """Appends rows to files of about shard_mb each and remembers what is in them."""

    folder: Path
    split: str
    settings: Settings
    name: str = ""
    done: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[bytes] = field(default_factory=list)
    _size: int = 0

    def add(self, row: bytes) -> None:
        """Append a row, a JSON object."""
        self._rows.append(row)
        self._size += len(row)
        if not self.name and self._size >= self.settings.shard_mb * 1_000_000:
            self.close()

    def close(self) -> None:
        """Write the rows that wait."""
        if not self._rows:
            return
        suffix = self.settings.format
        name = self.name or f"{self.split}-{len(self.done):05d}.{suffix}"
        path = self.folder / name
        if suffix == "parquet":
            self._parquet(path)
        else:
            ends = self._rows if suffix == "jsonl" else map(_as_line, self._rows)
            path.write_bytes(b"".join(row + b"\n" for row in ends))
        digest = hashlib.sha256(path.read_bytes())
        self.done.append({"file": name, "documents": len(self._rows),
                          "bytes": path.stat().st_size, "sha256": digest.hexdigest()})  # fmt: skip
        self._rows, self._size = [], 0

    def _parquet(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [orjson.loads(row) for row in self._rows]
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def _as_line(row: bytes) -> bytes:
    return " ".join(orjson.loads(row)["text"].split("\n")).encode()


class Output:
    """Goes through all units and writes the corpus to a folder."""

    def __init__(
        self, units: list[Stored], verdicts: Verdicts, settings: Settings, sources: list[str],
        files: list[str], folder: Path, counting: Counting,
    ) -> None:  # fmt: skip
        self.units, self.verdicts, self.settings = units, verdicts, settings
        self.sources, self.files, self.folder, self.counting = sources, files, folder, counting
        self.samples: list[tuple[int, str, str]] = []

    def write(self, single: str = "") -> dict[str, Any]:
        """Write the shards; return the splits of the index. single: the one shard's name."""
        factor = self._factors()
        total = sum(int(u.rows()["bytes"].sum()) for u in self.units)
        weight = sum(f * s for f, s in zip(factor, self._sizes(), strict=True))
        buckets = max(1, int(max(total, weight) / _BUCKET_BYTES) + 1) if self.settings.shuffle else 1
        paths = {s: [self.folder / f".{s}-{i}" for i in range(buckets)] for s in SPLITS}
        files = {s: [open(path, "wb") for path in paths[s]] for s in SPLITS}
        try:
            for split, key, row in self._rows(factor):
                bucket = (key * buckets) >> 64 if self.settings.shuffle else 0
                files[split][bucket].write(_HEAD.pack(key, len(row)) + row)
        finally:
            for opened in files.values():
                for file in opened:
                    file.close()
        return {split: self._shards(split, paths[split], single) for split in SPLITS}

    def _shards(self, split: str, buckets: list[Path], single: str) -> dict[str, Any]:
        shards = Shards(self.folder, split, self.settings, single)
        for path in buckets:
            rows = [*_unpack(path)]
            if self.settings.shuffle:
                rows.sort()
            for _, row in rows:
                shards.add(row)
            path.unlink()
        shards.close()
        done = shards.done
        return {"documents": sum(s["documents"] for s in done),
                "bytes": sum(s["bytes"] for s in done), "shards": done}  # fmt: skip

    def _sizes(self) -> list[float]:
        """Bytes that stay, by source."""
        sizes = np.zeros(len(self.sources))
        for unit, start in zip(self.units, self.verdicts.first, strict=False):
            rows = unit.rows()
            of = np.arange(start, start + len(rows))
            stays = self.verdicts.copy_of[of] == of
            sizes += np.bincount(rows["source"][stays], rows["bytes"][stays], len(sizes))
        return sizes.tolist()

    def _factors(self) -> list[float]:
        """How often a document of each source is written."""
        repeat = factors(self.settings.repeat, "repeat")
        share = factors(self.settings.share, "share")
        if not share:
            return [repeat.get(name, 1.0) for name in self.sources]
        # The largest source for its share is written once, the others more often.
        wanted = [share.get(name, 0.0) / size if size else 0.0
                  for name, size in zip(self.sources, self._sizes(), strict=True)]  # fmt: skip
        least = min((w for w in wanted if w > 0), default=1.0)
        return [w / least for w in wanted]

    def _rows(self, factor: list[float]) -> Iterator[tuple[str, int, bytes]]:
        """(split, order key, row) of every document and copy."""
        fraction = self.settings.validation_fraction
        for number, unit in enumerate(self.units):
            rows, start = unit.rows(), int(self.verdicts.first[number])
            held = _uniform(rows["key"][:, 0], self.settings.seed, "split") < fraction
            part = _uniform(rows["key"][:, 0], self.settings.seed, "repeat")
            copies = np.take(factor, rows["source"])
            copies = (np.floor(copies) + (part < copies % 1)).astype(np.int64)
            copies[held] = 1  # nothing is held out twice
            for i, text in self._texts(unit, rows, start):
                row = self._row(rows[i], text)
                salts = np.arange(copies[i], dtype=np.uint64) << np.uint64(32)
                salts += np.uint64(self.settings.seed * 8 + _SALTS["order"])
                for order in mix(rows["key"][i, 0] ^ mix(salts)).tolist():
                    yield SPLITS[int(held[i])], order, row

    def _row(self, row: Any, text: str) -> bytes:
        where = f"{self.files[int(row['file'])]}:{int(row['place'])}"
        return orjson.dumps({
            "text": text, "id": f"{int(row['key'][0]):016x}",
            "source": where, "language": row["language"].decode(),
        })  # fmt: skip

    def _texts(self, unit: Stored, rows: np.ndarray, start: int) -> Iterator[tuple[int, str]]:
        """(row, text) of what stays; the rest is counted."""
        copy_of, near = self.verdicts.copy_of, self.verdicts.near
        waiting: list[tuple[int, str]] = []
        size = 0
        with open(unit.folder / "texts", "rb") as stream:
            for i in range(len(rows)):
                text = stream.read(int(rows["bytes"][i])).decode()
                if copy_of[start + i] != start + i:
                    reason = "near_duplicate" if near[start + i] else "exact_duplicate"
                    self._drop(reason, rows[i], text, f"like document {copy_of[start + i]}")
                    continue
                waiting.append((i, text))
                size += len(text)
                if size > 1 << 19:
                    yield from self._final(waiting, rows, start)
                    waiting, size = [], 0
        yield from self._final(waiting, rows, start)

    def _final(
        self, waiting: list[tuple[int, str]], rows: np.ndarray, start: int
    ) -> Iterator[tuple[int, str]]:
        if not waiting:
            return
        if len(self.verdicts.lines):
            waiting = self._without_lines(waiting, rows, start)
        for i, text in waiting:
            tally = self.counting.kept
            tally.add(len(text.encode()))
            self.counting.languages_kept[rows["language"][i].decode()] += 1
            self.counting.lengths_kept[len(text).bit_length()] += 1
            source = self.sources[int(rows["source"][i])]
            self.counting.source(source, True, len(text.encode()))
            self._sample(int(rows["key"][i, 1]), text, rows["language"][i].decode())
            yield i, text

    def _without_lines(
        self, waiting: list[tuple[int, str]], rows: np.ndarray, start: int
    ) -> list[tuple[int, str]]:
        """The texts without lines that an earlier document keeps."""
        batch = Batch([text for _, text in waiting])
        keys, doc, begin, end = line_keys(batch, self.settings.min_line)
        known = self.verdicts.lines
        place = np.minimum(np.searchsorted(known[:, 0], keys), len(known) - 1)
        number = np.array([start + i for i, _ in waiting], np.uint64)[doc]
        gone = (known[place, 0] == keys) & (known[place, 1] != number)
        tally = self.counting.repaired.setdefault("repeated_lines", Tally())
        kept = []
        for d, (i, text) in enumerate(waiting):
            cuts = np.flatnonzero(gone & (doc == d)) if gone.any() else ()
            if len(cuts):
                low = int(batch.starts[d])
                parts, at = [], 0
                for cut in cuts:
                    parts.append(text[at : int(begin[cut]) - low])
                    at = int(end[cut]) - low + 1
                before, text = text, "".join([*parts, text[at:]]).strip("\n")
                tally.add(len(text.encode()), before=before, after=text)
                if len(text) < max(1, self.settings.limit("min_chars")):
                    self._drop("only_repeated_lines", rows[i], before, "")
                    continue
            kept.append((i, text))
        return kept

    def _drop(self, reason: str, row: Any, text: str, why: str) -> None:
        where = f"{self.files[int(row['file'])]}:{int(row['place'])}"
        self.counting.drop(reason, int(row["bytes"]), text, where)
        if self.settings.keep_rejected:
            line = {"text": text, "reason": reason, "source": where, "note": why}
            with open(self.folder / "rejected.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _sample(self, key: int, text: str, language: str) -> None:
        """Keep the texts with the thirty least keys: the same ones whatever the order."""
        self.samples.append((key, text[:600], language))
        if len(self.samples) > 500:
            self.samples = sorted(self.samples)[:30]


def _uniform(keys: np.ndarray, seed: int, use: str) -> np.ndarray:
    """(n,) in [0, 1): depends on the text, the seed and the use."""
    salt = mix(np.array([seed * 8 + _SALTS[use]], np.uint64))
    return (mix(keys ^ salt) >> np.uint64(11)) / float(1 << 53)


def _unpack(path: Path) -> Iterator[tuple[int, bytes]]:
    raw = memoryview(path.read_bytes())
    at = 0
    while at < len(raw):
        key, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        yield key, bytes(raw[at : at + size])
        at += size
