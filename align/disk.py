"""Folders that cannot be written and disks that are full: said before a run, or why it ended."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from pathlib import Path

from align.checkpoint_files import newest
from align.config_errors import UserError
from align.files import sync

_WHY = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the system allows no file of this size",
    errno.ENOTDIR: "part of the path is a file",
}
# What libraries that write without Python's files make of the same; torch.save says no reason.
_SAID = {
    "No space left on device|os error 28": errno.ENOSPC,
    "Disk quota exceeded|os error 122": errno.EDQUOT,
    "File too large|os error 27": errno.EFBIG,
    "Read-only file system|os error 30": errno.EROFS,
    r"PytorchStreamWriter|unexpected pos \d+ vs|iostream error": 0,
}
# Not permissions: those of a file that is read would look the same.
_FULL = (0, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PROBE = bytes(4096)


def check_writable(folder: Path) -> None:
    """Raise UserError unless a small file can be written where the run directory is or will be."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    probe = place / f".align-probe.{os.getpid()}"
    try:
        try:
            probe.write_bytes(_PROBE)
            sync(probe)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        fix = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Give another folder"
        reason = f"cannot be written to: {why} ({place})"
        raise UserError(
            "train.output_dir", str(folder), reason, f"{fix}, then start again"
        ) from None


def say_space(folder: Path, needed: float) -> None:
    """Say aloud if the disk has less room than a checkpoint and the finished model need (bytes)."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        print(
            f"[align] warning: {folder} has {size(free)} free, and a checkpoint with the finished "
            f"model needs about {size(needed)}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def disk_trouble(error: BaseException, folder: Path) -> str | None:
    """What to tell the user where an error came from a disk that takes no more; None for others."""
    seen: BaseException | None = error
    met: list[BaseException] = []  # an error that was raised again may be among its own causes
    while seen is not None:
        if seen in met:
            return None
        met.append(seen)
        number = seen.errno if isinstance(seen, OSError) else _said(str(seen))
        if number in _FULL:
            break
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    file = seen.filename if isinstance(seen, OSError) and seen.filename else folder
    why = _WHY.get(number or 0, "a file could not be written to its end")
    kept = newest(folder)
    then = f"goes on from {kept}" if kept else "starts anew: there is no complete checkpoint"
    return (
        f"{file} could not be written: {why}; {shutil.disk_usage(folder).free:,} bytes are free. "
        f"Make room, and the same command {then}."
    )


def _said(text: str) -> int | None:
    return next((n for pattern, n in _SAID.items() if re.search(pattern, text)), None)


def size(number: float) -> str:
    """Bytes as people read them: 1536 is 1.5 KiB."""
    power = 0
    while number >= 1024 and power < 4:
        number, power = number / 1024, power + 1
    return f"{number:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
