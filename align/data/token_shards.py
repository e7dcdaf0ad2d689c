"""Token ids on disk: a corpus is tokenised once, and read through memory maps ever after.

A folder holds shards `00000.bin` (ids, uint16 or uint32, little endian), `00000.ends` (int64,
places in the shard of the EOS that ends each text) and `index.json`, which names the tokenizer. It
is built in `<name>.part`: every shard appears under its name when it is whole, a build that was
killed goes on after the last one, and the folder gets its own name at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from align.config_errors import UserError
from align.data.token_pieces import Encoded, encode_all, pieces, portions
from align.files import write_atomic
from align.jsonl import RecordError
from align.tokenizer_identity import tokenizer_fingerprint

KIND, INDEX, FORMAT = "tokens", "index.json", 1
SHARD_TOKENS = 1 << 26
"""Ids of a shard, at least: 128 MiB of uint16."""


def is_token_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of finished token shards."""
    try:
        index = json.loads((Path(path) / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("kind") == KIND


def id_type(tokenizer: Any) -> str:
    """`uint16` where every id fits in it, else `uint32`."""
    return "uint16" if max(tokenizer.get_vocab().values()) < 1 << 16 else "uint32"


class TokenShards:
    """A corpus of token ids, none of which is read before it is asked for.

    path: the folder. tokenizer: the one that will read them; another than that which made them
    raises UserError, as does a folder whose files are not what its index says. field: for messages.
    """

    def __init__(self, path: str | Path, tokenizer: Any, field: str = "data.text") -> None:
        self.path = Path(path)
        try:
            index = json.loads((self.path / INDEX).read_text(encoding="utf-8"))
            shards, kind = index["shards"], np.dtype(index["dtype"]).newbyteorder("<")
            theirs, counts = index["tokenizer"], [int(s["tokens"]) for s in shards]
            documents = [int(s["documents"]) for s in shards]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"has no index of token shards that can be read ({type(error).__name__})"
            raise UserError(field, str(path), reason, "Build the folder again") from error
        own = tokenizer_fingerprint(tokenizer)
        if theirs != own:
            raise UserError(
                field, str(path), f"was made with another tokenizer ({theirs}, this one is {own})",
                "Use the tokenizer that it was made with, or give the text itself",
            )  # fmt: skip
        self._ids = [
            self._map(s["file"], n, kind, field) for s, n in zip(shards, counts, strict=True)
        ]
        self._ends = [
            self._map(s["file"].replace(".bin", ".ends"), n, np.dtype("<i8"), field)
            for s, n in zip(shards, documents, strict=True)
        ]
        self._starts = [0, *np.cumsum(counts).tolist()]
        self.documents = sum(documents)

    def _map(self, name: str, count: int, kind: np.dtype, field: str) -> np.ndarray:
        file = self.path / name
        size = file.stat().st_size if file.is_file() else -1
        if size != count * kind.itemsize:
            reason = f"is damaged: {name} has {size} bytes, not {count * kind.itemsize}"
            raise UserError(field, str(self.path), reason, "Remove the folder, it is built again")
        return np.memmap(file, dtype=kind, mode="r") if count else np.zeros(0, dtype=kind)

    def __len__(self) -> int:
        """Number of token ids, EOS included."""
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop), (stop − start,) int64."""
        parts = [self._ids[s][low:high] for s, low, high in self._places(start, stop)]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def ends(self, start: int, stop: int) -> np.ndarray:
        """Places in [start, stop) of the EOS that end texts, rising, int64."""
        parts = [np.zeros(0, dtype=np.int64)]
        for shard, low, high in self._places(start, stop):
            ends = self._ends[shard]
            first, last = np.searchsorted(ends, low), np.searchsorted(ends, high)
            parts.append(ends[first:last].astype(np.int64) + self._starts[shard])
        return np.concatenate(parts)

    def lengths(self, limit: int = 100_000) -> np.ndarray:
        """Tokens of the first `limit` texts, EOS not counted."""
        ends = np.concatenate([
            part[:limit].astype(np.int64) + start
            for part, start in zip(self._ends, self._starts[:-1], strict=True)
        ])[:limit]  # fmt: skip
        return np.diff(ends, prepend=-1) - 1

    def _places(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first, last) of the ids [start, stop)."""
        shard = bisect_right(self._starts, start) - 1
        while start < stop and shard < len(self._ids):
            base = self._starts[shard]
            end = min(stop, self._starts[shard + 1])
            yield shard, start - base, end - base
            start, shard = end, shard + 1


def build(
    folder: Path,
    texts: Callable[[], Iterable[str]],
    tokenizer: Any,
    *,
    shard_tokens: int = SHARD_TOKENS,
    num_proc: int = 1,
    field: str = "data.text",
    source: str = "",
) -> None:
    """Tokenise texts() into `folder`, unless that is done; go on where an earlier build stopped.

    The result does not depend on num_proc. Memory is bounded whatever the length of a text. Raises
    UserError for a corpus without text, and leaves nothing behind then.
    """
    if is_token_folder(folder):
        return
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    done = _finished(part)
    read = sum(shard["pieces"] for shard in done)
    found = portions(islice(pieces(texts()), read, None))
    try:
        for shard in _write_shards(
            part, encode_all(tokenizer, found, num_proc), len(done), id_type(tokenizer),
            shard_tokens,
        ):  # fmt: skip
            done.append(shard)
        if not done:
            raise UserError(field, source, "holds no text", "Give .txt or .jsonl with {text}")
    except (UserError, RecordError):
        shutil.rmtree(part, ignore_errors=True)
        raise
    index = {
        "kind": KIND, "format": FORMAT, "dtype": id_type(tokenizer),
        "tokenizer": tokenizer_fingerprint(tokenizer), "eos": tokenizer.eos_token_id,
        "tokens": sum(s["tokens"] for s in done), "documents": sum(s["documents"] for s in done),
        "shards": [{k: s[k] for k in ("file", "tokens", "documents")} for s in done],
    }  # fmt: skip
    write_atomic(part / INDEX, json.dumps(index, indent=1) + "\n")
    for note in part.glob("[0-9]*.json"):
        note.unlink()
    os.replace(part, folder)


def _finished(part: Path) -> list[dict[str, Any]]:
    """The shards that an earlier build finished, in order; what lies behind a gap is left out."""
    done: list[dict[str, Any]] = []
    while True:
        try:
            text = (part / f"{len(done):05d}.json").read_text(encoding="utf-8")
            done.append(json.loads(text))
        except (OSError, ValueError):
            return done


def _write_shards(
    part: Path, encoded: Iterator[Encoded], first: int, kind: str, shard_tokens: int
) -> Iterator[dict[str, Any]]:
    """Write what is encoded in shards of at least `shard_tokens` ids; yield each one's figures."""
    waiting = next(encoded, None)
    while waiting is not None:
        name = f"{first:05d}"
        shard: dict[str, Any] = {"file": f"{name}.bin", "tokens": 0, "documents": 0, "pieces": 0}
        with _appearing(part / f"{name}.bin") as ids, _appearing(part / f"{name}.ends") as ends:
            while waiting is not None and shard["tokens"] < shard_tokens:
                ids.write(waiting.ids.astype(np.dtype(kind).newbyteorder("<")).tobytes())
                ends.write((waiting.ends + shard["tokens"]).astype("<i8").tobytes())
                shard["tokens"] += len(waiting.ids)
                shard["documents"] += len(waiting.ends)
                shard["pieces"] += waiting.pieces
                waiting = next(encoded, None)
        write_atomic(part / f"{name}.json", json.dumps(shard) + "\n")
        yield shard
        first += 1


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that gets its name when the block ends without error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
