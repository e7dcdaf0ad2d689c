"""Files that appear whole or not at all, and fingerprints of what is on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MIB = 1 << 20


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing, also when the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half of it would fill a full disk
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Ask the system to put a file, or the names in a folder, on disk (where it can be opened)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # a file system without
            raise
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            sync(entry)
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fingerprint(path: str | Path) -> str | None:
    """Return a hash of a file or folder, or None for what is not on disk (a hub id).

    Of files above 64 MiB the size and the first, middle and last MiB are hashed.
    """
    root = Path(path)
    if not root.exists():
        return None
    digest = hashlib.sha256()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for file in files:
        name = "" if root.is_file() else file.relative_to(root).as_posix()
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= 64 * _MIB:
                while chunk := stream.read(_MIB):
                    digest.update(chunk)
            else:
                for start in (0, size // 2, size - _MIB):
                    stream.seek(start)
                    digest.update(stream.read(_MIB))
    return digest.hexdigest()[:16]


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file's JSON object; {} where there is none that can be read."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of all bytes of a file, read a piece at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(_MIB):
            digest.update(part)
    return digest.hexdigest()
