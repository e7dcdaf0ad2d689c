"""What ``--input`` names: files, the files in folders, and the members of zip archives.

Archives are never unpacked to disk: a member is read in place, so its path cannot leave the
archive. One whose sizes are those of a zip bomb is refused before it is read.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from align.config_errors import UserError

EXTENSIONS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx")
# What an import writes; beside a report.json these are results and not annotations.
RESULTS = {
    "preferences.jsonl", "pairs.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl",
    "rejects.jsonl", "report.json", "report.html",
}  # fmt: skip
# Files about a data set that stand beside its rows (the datasets library writes them).
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
MAX_UNPACKED = 64 << 30
MAX_RATIO = 200
# Below this much text no ratio is dangerous.
RATIO_FROM = 64 << 20
MAX_MEMBERS = 10_000
# A damaged or unfinished archive, an unknown compression, a disk that fails.
BROKEN = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file, or a member of a zip archive. shown: the member's name as people wrote it."""

    path: Path
    member: str | None = None
    shown: str | None = None

    @property
    def name(self) -> str:
        """How reports call it: the path, or ``archive.zip/member``."""
        return str(self.path) if self.member is None else f"{self.path}/{self.shown or self.member}"

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Its bytes, those of a ``.gz`` unpacked. Raises one of ``BROKEN``."""
        with self._raw() as raw:
            packed = self.name.lower().endswith(".gz") or raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw, mode="rb") as file:
                yield file

    def _raw(self) -> IO[bytes]:
        if self.member is None:
            return open(self.path, "rb")
        mark = self.path.stat()
        return _archive(str(self.path), mark.st_mtime_ns, mark.st_size).open(self.member)


@dataclass(frozen=True)
class Skipped:
    """A file that was met and not read, and why."""

    file: str
    reason: str


def as_source(source: str | Path | Source) -> Source:
    """A path as a source; UserError where there is no such file."""
    if isinstance(source, Source):
        return source
    path = Path(source)
    if path.is_dir():
        raise UserError("input", str(path), "is a folder", "Give the files in it one by one")
    if not path.is_file():
        raise UserError("input", str(path), "does not exist", "Check the path")
    return Source(path)


def expand(
    inputs: Iterable[str], encoding: str | None = None
) -> tuple[list[Source], list[Skipped]]:
    """(what to read, what not) of files, folders and zip archives, each file once.

    Folders are walked in order of name; hidden files, results of an import and unknown extensions
    in them are skipped. encoding: of member names that do not say theirs.
    """
    found: dict[tuple[str, str | None], Source] = {}
    skipped: list[Skipped] = []
    for name in inputs:
        before = len(found)
        parts = _walk(Path(name), skipped) if Path(name).is_dir() else [as_source(name)]
        for source in parts:
            inside = _members(source.path, encoding, skipped) if _is_zip(source.path) else [source]
            for one in inside:
                found.setdefault((os.path.realpath(one.path), one.member), one)
        if len(found) == before and Path(name).is_dir():
            _nothing_in(Path(name), skipped)
    return list(found.values()), skipped


def _nothing_in(folder: Path, skipped: list[Skipped]) -> None:
    fix = "Give the files themselves"
    if (folder / "preferences.jsonl").is_file() and (folder / "report.json").is_file():
        fix = f"To import an import's result again give {folder / 'preferences.jsonl'}"
    reasons = ", ".join(sorted({s.reason for s in skipped if s.file.startswith(str(folder))}))
    why = f" ({reasons})" if reasons else ""
    raise UserError("input", str(folder), f"holds no file that can be read{why}", fix)


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Source]:
    for top, folders, files in os.walk(folder):
        for name in sorted(folders):
            reason = _hidden(name)
            if not reason and os.path.islink(os.path.join(top, name)):
                reason = "link to a folder"  # it may lead back here
            if reason:
                skipped.append(Skipped(os.path.join(top, name, ""), reason))
                folders.remove(name)
        folders.sort()
        results = {"report.json", "preferences.jsonl", "rejects.jsonl"} <= set(files)
        for file in sorted(files):
            path = Path(top) / file
            reason = _why_not(file, zips=True)
            if results and file in RESULTS:
                reason = "result of an import"
            if reason:
                skipped.append(Skipped(str(path), reason))
            elif path.is_file():
                yield Source(path)
            else:
                skipped.append(Skipped(str(path), "no regular file"))


def _why_not(name: str, zips: bool) -> str | None:
    """Why a file in a folder or an archive is not read."""
    lower = name.lower()
    if name.startswith((".", "~$", "__MACOSX")):
        return "hidden"
    if lower in DESCRIPTIONS:
        return "description of a data set"
    extension = Path(lower.removesuffix(".gz")).suffix
    if extension in EXTENSIONS or (zips and extension == ".zip"):
        return None
    return f"unknown extension {extension}" if extension else "no extension"


def _is_zip(path: Path) -> bool:
    """Whether this is an archive of files; an .xlsx is a zip too."""
    try:
        with open(path, "rb") as file:
            if not file.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return False
        return not is_workbook(path)
    except OSError as error:
        raise UserError("input", str(path), f"cannot be read: {error}", "Check the file") from None


def is_workbook(file: Any) -> bool:
    """Whether a zip is an Excel workbook. file: a path or a binary file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except BROKEN:
        return False


@lru_cache(maxsize=2)  # an archive's list of members may be long: it is not read for each of them
def _archive(path: str, changed: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _members(path: Path, encoding: str | None, skipped: list[Skipped]) -> Iterator[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except BROKEN as error:
        reason = f"is a damaged zip archive: {error}"
        raise UserError("input", str(path), reason, "Download or pack it again") from None
    _check(path, infos)
    found = 0
    for info in sorted(infos, key=lambda info: info.filename):
        shown = _member_name(info, encoding)
        parts = shown.replace("\\", "/").split("/")
        reason = next((r for part in parts[:-1] if (r := _hidden(part))), None)
        if stat.S_ISLNK(info.external_attr >> 16):
            reason = "a link"  # its text is a path, which nobody follows
        reason = reason or _why_not(parts[-1], zips=False)
        if parts[-1].lower().endswith((".zip", ".zip.gz")):
            raise UserError(
                "input",
                f"{path}/{shown}",
                "is an archive inside an archive",
                "Unpack the outer one",
            )
        if reason:
            skipped.append(Skipped(f"{path}/{shown}", reason))
            continue
        found += 1
        yield Source(path, info.filename, shown)
    if not found:
        raise UserError(
            "input", str(path), "is a zip archive without a file that can be read", "Unpack it"
        )


def _hidden(folder: str) -> str | None:
    return "hidden" if folder.startswith(".") or folder == "__MACOSX" else None


def _member_name(info: zipfile.ZipInfo, encoding: str | None) -> str:
    """A member's name; without the UTF-8 flag many tools write UTF-8 or their own code page."""
    if info.flag_bits & 0x800:
        return info.filename
    for name in ("utf-8", encoding):
        try:
            return info.filename.encode("cp437").decode(name) if name else info.filename
        except UnicodeError:
            continue
    return info.filename


def check_sizes(name: str, infos: list[zipfile.ZipInfo], packed: int) -> None:
    """Refuses an archive whose sizes are those of a zip bomb. packed: its size in bytes."""
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_MEMBERS:
        _refuse(name, f"holds over {MAX_MEMBERS} files", "Unpack it and give the folder")
    check_ratio(name, total, packed)


def check_ratio(name: str, total: int, packed: int) -> None:
    """Refuses what unpacks to very much, or to very many times its size. Both in bytes."""
    if total > MAX_UNPACKED:
        _refuse(name, f"unpacks to {total >> 30} GiB", "Unpack it and give the files")
    if total > RATIO_FROM and total > MAX_RATIO * packed:
        times = total // max(1, packed)
        _refuse(
            name,
            f"unpacks to {times} times its size, like a zip bomb",
            "If that is right, unpack it and give the files",
        )


def _check(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuses what is dangerous or cannot be read."""
    check_sizes(str(path), infos, path.stat().st_size)
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        _refuse(f"{path}/{twice}", "is in the archive twice", "Unpack it and give the files")
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
            _refuse(f"{path}/{info.filename}", "leads out of the archive", "Do not trust this file")
        if info.flag_bits & 0x1:
            _refuse(f"{path}/{info.filename}", "is encrypted", "Unpack it with its password")


def _refuse(what: str, reason: str, fix: str) -> None:
    raise UserError("input", what, reason, fix)
