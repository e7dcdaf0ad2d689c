"""What stays, written: split by document, sources weighed, shuffled, in shards with an index.

Rows go to buckets by a seeded random key, each bucket is sorted in memory and appended to the
shards: the order is random over the whole corpus, and the memory that of one bucket.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from align.cleaning.counting import Counting, Tally
from align.cleaning.duplicates import Verdicts
from align.cleaning.repetition import line_keys
from align.cleaning.settings import Settings, factors
from align.cleaning.shards import Shards
from align.cleaning.store import Stored
from align.cleaning.tokens import Batch, mix

SPLITS = ("train", "validation")
# A bucket is sorted in memory; more of them than this would be too many open files.
_BUCKET_BYTES, _BUCKETS = 32 << 20, 200
_HEAD = struct.Struct("<QI")
_SALTS = {"split": 1, "order": 2, "repeat": 3}


class Output:
    """Goes through all units and writes the corpus to a folder."""

    def __init__(
        self, units: list[Stored], verdicts: Verdicts, settings: Settings, sources: list[str],
        files: list[str], folder: Path, counting: Counting,
    ) -> None:  # fmt: skip
        self.units, self.verdicts, self.settings = units, verdicts, settings
        self.sources, self.files, self.folder, self.counting = sources, files, folder, counting
        self.samples: list[tuple[int, str, str]] = []
        self._rejected: IO[str] | None = None

    def write(self, single: str = "") -> dict[str, Any]:
        """Write the shards; return the splits of the index. single: the one shard's name."""
        sizes = self._sizes()
        factor = self._factors(sizes)
        written = sum(f * s for f, s in zip(factor, sizes, strict=True))
        many = min(_BUCKETS, int(written / _BUCKET_BYTES) + 1)
        buckets = many if self.settings.shuffle else 1
        paths = {s: [self.folder / f".{s}-{i}" for i in range(buckets)] for s in SPLITS}
        with ExitStack() as stack:
            if self.settings.keep_rejected:
                self._rejected = stack.enter_context(
                    open(self.folder / "rejected.jsonl", "a", encoding="utf-8")
                )
            files = {s: [stack.enter_context(open(p, "wb")) for p in paths[s]] for s in SPLITS}
            for split, key, row in self._rows(factor):
                bucket = (key * buckets) >> 64 if self.settings.shuffle else 0
                files[split][bucket].write(_HEAD.pack(key, len(row)) + row)
        return {split: self._shards(split, paths[split], single) for split in SPLITS}

    def _shards(self, split: str, buckets: list[Path], single: str) -> dict[str, Any]:
        shards = Shards(self.folder, split, self.settings, single)
        for path in buckets:
            rows = _unpack(path)
            for _, row in sorted(rows) if self.settings.shuffle else rows:
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

    def _factors(self, sizes: list[float]) -> list[float]:
        """How often a document of each source is written. sizes: as `_sizes`."""
        repeat = factors(self.settings.repeat, "repeat")
        share = factors(self.settings.share, "share")
        if not share:
            return [repeat.get(name, 1.0) for name in self.sources]
        # The largest source for its share is written once, the others more often.
        wanted = [share.get(name, 0.0) / size if size else 0.0
                  for name, size in zip(self.sources, sizes, strict=True)]  # fmt: skip
        least = min((w for w in wanted if w > 0), default=1.0)
        return [w / least for w in wanted]

    def _rows(self, factor: list[float]) -> Iterator[tuple[str, int, bytes]]:
        """(split, order key, row) of every document and copy."""
        seed, fraction = self.settings.seed, self.settings.validation_fraction
        for number, unit in enumerate(self.units):
            rows, start = np.array(unit.rows()), int(self.verdicts.first[number])
            keys = rows["key"][:, 0]
            held = _uniform(keys, seed, "split") < fraction
            copies = np.take(factor, rows["source"])
            more = _uniform(keys, seed, "repeat") < copies % 1
            copies = np.floor(copies).astype(np.int64) + more
            copies[held] = 1  # nothing is held out twice
            salt = np.uint64(seed * 8 + _SALTS["order"])
            orders = mix(keys ^ mix(np.full(1, salt)))
            for i, row in self._documents(unit, rows, start):
                order, split = int(orders[i]), SPLITS[int(held[i])]
                if copies[i] == 1:
                    yield split, order, row
                else:
                    for again in _orders(order, int(copies[i])):
                        yield split, again, row

    def _documents(self, unit: Stored, rows: np.ndarray, start: int) -> Iterator[tuple[int, bytes]]:
        """(row, JSON object) of what stays, counted."""
        columns = zip(rows["key"].tolist(), rows["language"].tolist(), rows["source"].tolist(),
                      rows["file"].tolist(), rows["place"].tolist(), strict=True)  # fmt: skip
        facts = list(columns)
        counting = self.counting
        for i, text in self._texts(unit, rows, start):
            (key, other), language, source, file, place = facts[i]
            size, name = len(text.encode()), language.decode()
            counting.kept.add(size)
            counting.languages_kept[name] += 1
            counting.lengths_kept[len(text).bit_length()] += 1
            counting.source(self.sources[source], True, size)
            self._sample(other, text, name)
            yield i, orjson.dumps({
                "text": text, "id": f"{key:016x}", "source": f"{self.files[file]}:{place}",
                "language": name,
            })  # fmt: skip

    def _texts(self, unit: Stored, rows: np.ndarray, start: int) -> Iterator[tuple[int, str]]:
        """(row, text) of what stays; the rest is counted."""
        near = self.verdicts.near
        copy_of = self.verdicts.copy_of[start : start + len(rows)]
        stays = (copy_of == np.arange(start, start + len(rows))).tolist()
        waiting: list[tuple[int, str]] = []
        size = 0
        with open(unit.folder / "texts", "rb") as stream:
            for i, length in enumerate(rows["bytes"].tolist()):
                text = stream.read(length).decode()
                if not stays[i]:
                    reason = "near_duplicate" if near[start + i] else "exact_duplicate"
                    self._drop(reason, rows[i], text, f"like document {copy_of[i]}")
                    continue
                waiting.append((i, text))
                size += len(text)
                if size > 1 << 19:
                    yield from self._final(waiting, rows, start)
                    waiting, size = [], 0
        yield from self._final(waiting, rows, start)

    def _final(
        self, waiting: list[tuple[int, str]], rows: np.ndarray, start: int
    ) -> list[tuple[int, str]]:
        if waiting and len(self.verdicts.lines):
            return self._without_lines(waiting, rows, start)
        return waiting

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
        if self._rejected is not None:
            line = {"text": text, "reason": reason, "source": where, "note": why}
            self._rejected.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _sample(self, key: int, text: str, language: str) -> None:
        """Keep the texts with the thirty least keys: the same ones whatever the order."""
        self.samples.append((key, text[:600], language))
        if len(self.samples) > 500:
            self.samples = sorted(self.samples)[:30]


def _uniform(keys: np.ndarray, seed: int, use: str) -> np.ndarray:
    """(n,) in [0, 1): depends on the text, the seed and the use."""
    salt = mix(np.array([seed * 8 + _SALTS[use]], np.uint64))
    return (mix(keys ^ salt) >> np.uint64(11)) / float(1 << 53)


def _orders(order: int, copies: int) -> list[int]:
    """Order keys of a document's copies."""
    return mix(np.uint64(order) ^ np.arange(copies, dtype=np.uint64)).tolist()


def _unpack(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as stream:
        while head := stream.read(_HEAD.size):
            key, size = _HEAD.unpack(head)
            yield key, stream.read(size)
