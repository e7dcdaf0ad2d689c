"""What is to be read: files behind the inputs, their kinds, and the units that workers take.

A unit is some small files or one part of a large one. Units depend on the inputs alone, never on
the number of workers, so that the output does not either.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from align.config_errors import UserError, missing_file

TEXT = (".txt", ".text")
MARKDOWN = (".md", ".markdown", ".rst", ".org")
HTML = (".html", ".htm", ".xhtml")
JSON_LINES = (".jsonl", ".ndjson", ".json")
CODE = (
    ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".java", ".js", ".jsx", ".ts", ".tsx", ".go",
    ".rs", ".rb", ".php", ".swift", ".kt", ".scala", ".sh", ".sql", ".lua", ".pl", ".r", ".jl",
    ".hs", ".ml", ".vue",
)  # fmt: skip
KINDS = {
    **dict.fromkeys(TEXT, "text"), **dict.fromkeys(MARKDOWN, "markdown"),
    **dict.fromkeys(HTML, "html"), **dict.fromkeys(JSON_LINES, "jsonl"),
    **dict.fromkeys(CODE, "code"), ".warc": "warc", ".parquet": "parquet", ".pdf": "pdf",
}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
UNIT_BYTES = 32 << 20
# A page takes as long as so many times its bytes of plain text.
_EFFORT = {"html": 16, "pdf": 64}
UNIT_FILES = 2000


@dataclass(frozen=True)
class InputFile:
    """A file, the input that named it, and how messages call it."""

    path: str
    kind: str
    source: str
    name: str
    size: int


@dataclass(frozen=True)
class Unit:
    """Work for one worker: whole files, or the bytes [start, end) of the only file.

    A line belongs to the unit that its first byte is in. end: None reads to the end.
    """

    files: tuple[InputFile, ...]
    start: int = 0
    end: int | None = None


def kind_of(path: Path) -> str | None:
    """The kind that a file's name says, compression aside; None for names that say nothing."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def find_files(inputs: list[str]) -> tuple[list[InputFile], list[str]]:
    """(files of the inputs in order, names of files whose kind is unknown).

    An input is a file, a folder (searched through) or a pattern. Raises UserError for an input that
    does not exist, and when no file can be read.
    """
    found: dict[str, InputFile] = {}
    unknown: list[str] = []
    for given in inputs:
        for path, name in _expand(given):
            kind = kind_of(path)
            if kind is None:
                unknown.append(name)
            elif str(path) not in found:
                size = path.stat().st_size if os.access(path, os.R_OK) else 0
                found[str(path)] = InputFile(str(path), kind, given, name, size)
    if not found:
        known = ", ".join(sorted({*KINDS}))
        raise UserError("input", " ".join(inputs[:5]), "names no file that can be read",
                        f"Give files or folders with {known}, compressed or not.")  # fmt: skip
    return list(found.values()), unknown


def _expand(given: str) -> list[tuple[Path, str]]:
    """Each file that an input names, with the name it has in messages."""
    root = Path(given)
    if root.is_dir():
        inside = sorted(
            Path(folder) / name
            for folder, folders, names in os.walk(root)
            if not folders.sort() and not _hidden(Path(folder), root)
            for name in names
            if not name.startswith(".")
        )
        # A link to nothing is a file that cannot be read, which is said.
        inside = [p for p in inside if p.is_file() or p.is_symlink()]
        return [(p, p.relative_to(root).as_posix()) for p in inside]
    if root.exists():
        return [(root, root.name)]
    if glob.has_magic(given):
        return [(Path(p), p) for p in sorted(glob.glob(given, recursive=True)) if os.path.isfile(p)]
    raise missing_file("input", given)


def _hidden(folder: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in folder.relative_to(root).parts)


def units_of(files: list[InputFile], unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Cut the files into units: small neighbours together, large plain files in byte ranges."""
    units: list[Unit] = []
    group: list[InputFile] = []
    effort = 0

    def close() -> None:
        if group:
            units.append(Unit(tuple(group)))
            group.clear()

    for file in files:
        if file.size > unit_bytes and _splits(file):
            close()
            starts = range(0, file.size, unit_bytes)
            units += [Unit((file,), s, min(s + unit_bytes, file.size)) for s in starts]
            continue
        cost = file.size * _EFFORT.get(file.kind, 1)
        if group and (effort + cost > unit_bytes or len(group) >= UNIT_FILES):
            close()
        effort = effort + cost if group else cost
        group.append(file)
    close()
    return units


def _splits(file: InputFile) -> bool:
    plain = not file.path.lower().endswith(COMPRESSED)
    return plain and file.kind in ("text", "jsonl") and not file.path.lower().endswith(".json")
