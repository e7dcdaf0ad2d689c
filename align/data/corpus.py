"""Reading text for training: text files, JSON lines, Parquet, or a cleaned corpus by its index."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.jsonl import Counts, RecordError, as_object, read_jsonl

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
# What `clean_corpus` writes beside its shards.
INDEX_NAME, INDEX_FORMAT = "index.json", "align-corpus-1"


def text_files(path: str | os.PathLike[str], split: str = "train") -> list[Path]:
    """The text files that a path names: itself, or those under a folder in name order.

    Of a cleaned corpus (a folder with index.json) these are the shards of `split`. Raises
    RecordError when there are none, or when a file's suffix says nothing of its kind.
    """
    root = Path(path)
    if root.is_dir():
        index = read_index(root)
        if index is not None:
            return _shards(root, index, split)
        files = sorted(p for p in root.rglob("*") if p.is_file() and _kind(p) is not None)
        if not files:
            raise RecordError(f"no .txt, .jsonl or .parquet file under {root}", code="no_text")
        return files
    if not root.is_file():
        raise RecordError(f"{root} does not exist", code="missing_file")
    if _kind(root) is None:
        raise RecordError(
            f"{root}: pre-training text must be .txt (one paragraph a line), .jsonl "
            '({"text": …}), either optionally .gz, .parquet, or a folder of them',
            code="unknown_format",
        )
    return [root]


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a cleaned corpus, or None where a folder is none."""
    file = folder / INDEX_NAME
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{file} is not JSON: {error}", code="bad_json") from error
    return index if isinstance(index, dict) and index.get("format") == INDEX_FORMAT else None


def _shards(root: Path, index: dict[str, Any], split: str) -> list[Path]:
    found = [root / s["file"] for s in index["splits"].get(split, {}).get("shards", ())]
    if not found:
        raise RecordError(f"{root} holds no {split} documents: clean_corpus "
                          "--validation_fraction says how many are held out", code="no_text")
    for file in found:
        if not file.is_file():
            raise RecordError(f"{file} is missing, which {INDEX_NAME} names", code="missing_file")
    return found


def iter_texts(path: str | os.PathLike[str], split: str = "train") -> Iterator[str]:
    """The non-empty texts of a file or folder, in order: lines of .txt, `text` of the others.

    A byte order mark is skipped. split: of a cleaned corpus. Raises RecordError with file and line:
    text that is not UTF-8, a row without a ``text`` string.
    """
    for file in text_files(path, split):
        yield from _READERS[_kind(file) or "text"](file)


@contextmanager
def readable(path: str | os.PathLike[str], field: str) -> Iterator[None]:
    """What cannot be read as text becomes a UserError about the configuration's `field`."""
    try:
        yield
    except RecordError as error:
        reason = f"cannot be read: {error}"
        raise UserError(field, str(path), reason, "Correct the file") from error


def load_texts(path: str | os.PathLike[str], split: str = "train") -> tuple[list[str], Counts]:
    """All texts, and how many were used; an empty file raises RecordError (no_text)."""
    texts = list(iter_texts(path, split))
    if not texts:
        raise RecordError(f"{path} holds no text", code="no_text")
    return texts, Counts(str(path), len(texts))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file, which appears whole or not at all; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_text(text, encoding="utf-8")
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _kind(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last == ".parquet":
        return "parquet"
    return "text" if last in TEXT_SUFFIXES else "jsonl" if last in JSONL_SUFFIXES else None


def _txt_texts(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecordError(
                    f"not UTF-8 at byte {error.start}: convert the file first, or let "
                    "recipes/clean_corpus.py read it",
                    code="bad_encoding", where=f"{path}:{number}",
                ) from error  # fmt: skip
            line = line.rstrip("\r\n")
            if line.strip():
                yield line


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        yield from _text_of(row, path, number)


def _parquet_texts(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise RecordError(f"{path} has no column text (it has {names})", code="missing_field")
        number = 0
        for batch in table.iter_batches(batch_size=1000, columns=["text"]):
            for row in batch.to_pylist():
                number += 1
                yield from _text_of(row, path, number)
    except pa.ArrowException as error:
        raise RecordError(f"{path} is no Parquet file: {error}", code="bad_parquet") from error


def _text_of(row: Any, path: Path, number: int) -> Iterator[str]:
    try:
        text = as_object(row, "text")["text"]
        if not isinstance(text, str):
            raise RecordError(f"text must be a string, got {type(text).__name__}",
                              code="not_text")  # fmt: skip
    except RecordError as error:
        raise error.at(f"{path}:{number}") from error
    if text.strip():
        yield text


_READERS = {"text": _txt_texts, "jsonl": _jsonl_texts, "parquet": _parquet_texts}
