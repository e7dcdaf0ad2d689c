"""Reading plain text for pre-training: one paragraph a line, or ``{"text"}`` JSON lines."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

from align.jsonl import Counts, RecordError, as_object, read_jsonl

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """The text files that a path names: itself, or those under a folder in name order.

    Raises RecordError when there are none, or when a file's suffix says nothing of its kind.
    """
    root = Path(path)
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.is_file() and _kind(p) is not None)
        if not files:
            raise RecordError(f"no .txt or .jsonl file under {root}", code="no_text")
        return files
    if not root.is_file():
        raise RecordError(f"{root} does not exist", code="missing_file")
    if _kind(root) is None:
        raise RecordError(
            f"{root}: pre-training text must be .txt (one paragraph a line) or .jsonl "
            '({"text": …}), optionally .gz',
            code="unknown_format",
        )
    return [root]


def iter_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """The non-empty paragraphs of a file or folder, in order, without their line ends.

    A byte order mark is skipped. Raises RecordError with file and line: text that is not UTF-8, a
    JSON line without a ``text`` string.
    """
    for file in text_files(path):
        yield from _jsonl_texts(file) if _kind(file) == "jsonl" else _txt_texts(file)


def load_texts(path: str | os.PathLike[str]) -> tuple[list[str], Counts]:
    """All paragraphs, and how many were used; an empty file raises RecordError (no_text)."""
    texts = list(iter_texts(path))
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
    return "text" if last in TEXT_SUFFIXES else "jsonl" if last in JSONL_SUFFIXES else None


def _txt_texts(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecordError(
                    f"not UTF-8 at byte {error.start}: convert the file first",
                    code="bad_encoding", where=f"{path}:{number}",
                ) from error  # fmt: skip
            line = line.rstrip("\r\n")
            if line.strip():
                yield line


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        try:
            text = as_object(row, "text")["text"]
            if not isinstance(text, str):
                raise RecordError(f"text must be a string, got {type(text).__name__}",
                                  code="not_text")  # fmt: skip
        except RecordError as error:
            raise error.at(f"{path}:{number}") from error
        if text.strip():
            yield text
