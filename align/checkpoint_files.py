"""The files of a checkpoint: what was written, whether it is still there, which ones stay.

`complete.json` is written last. It lists every file with its size and SHA-256, so that a file that
was cut short or has changed is found before a run goes on from it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.files import read_object, sha256_of, sync, write_atomic

# No torch here: a run looks for its checkpoint before anything is loaded.
COMPLETE = "complete.json"  # written last: what lacks it was being written when the run died
DAMAGED = "damaged-"  # before the name of a checkpoint that is not used


def step_of(folder: Path) -> int:
    """N of checkpoint-N; -1 for another name."""
    tail = folder.name.rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else -1


def complete(run_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, the newest first."""
    found = [p.parent for p in Path(run_dir).glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=step_of, reverse=True)


def unfinished(run_dir: str | Path) -> list[Path]:
    """Checkpoints that were being written when the run died."""
    found = [p for p in Path(run_dir).glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0]
    return [p for p in found if not (p / COMPLETE).exists()]


def newest(run_dir: str | Path) -> str | None:
    """The newest complete checkpoint."""
    return next(map(str, complete(run_dir)), None)


def rotate(run_dir: str | Path, keep: int | None, best: str | None) -> None:
    """Remove all but the newest `keep` complete checkpoints, and never the best one.

    The Trainer's own rotation comes before a checkpoint is complete: with a limit of 1 a kill in
    between would leave none.
    """
    found = complete(run_dir)
    protected = {p.resolve() for p in (found[0], Path(best) if best else found[0])} if found else ()
    left = len(found)
    for folder in reversed(found):
        if not keep or left <= max(keep, len(protected)):
            return
        if folder.resolve() not in protected:
            (folder / COMPLETE).unlink()  # first: half a checkpoint must not look like a whole one
            shutil.rmtree(folder)
            left -= 1


def seal(folder: Path, marker: dict[str, Any]) -> None:
    """Write the marker with the list of all files, which are on disk by then; every rank calls."""
    from align.distributed import rank

    hashes = _hashes(folder, durable=True)
    if rank() == 0 and folder.is_dir():
        files = {n: {"bytes": size, "sha256": sha} for n, (size, sha) in sorted(hashes.items())}
        text = json.dumps(marker | {"files": files}, ensure_ascii=False, default=str)
        write_atomic(folder / COMPLETE, text + "\n")


def marker_of(folder: Path) -> dict[str, Any] | None:
    """What complete.json says; None where it cannot be read."""
    found = read_object(folder / COMPLETE)
    return found if "settings" in found else None


def size_damage(folder: Path) -> str | None:
    """What is wrong with a complete checkpoint by its list of files and sizes; None: nothing.

    A checkpoint of a version that wrote no list is taken as it is.
    """
    marker = marker_of(folder)
    if marker is None:
        return f"{COMPLETE} cannot be read"
    for name, entry in marker.get("files", {}).items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != entry["bytes"]:
            return f"{name} has {size} bytes, {entry['bytes']} expected"
    return None


def content_damage(folder: Path) -> str | None:
    """The same by the hashes of all files; every rank calls, and hashes its share."""
    found = _hashes(folder)
    for name, entry in (marker_of(folder) or {}).get("files", {}).items():
        if found.get(name, (0, ""))[1] != entry["sha256"]:
            return f"{name} has other contents than were written"
    return None


def move_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one; nothing is deleted."""
    place, number = folder.with_name(DAMAGED + folder.name), 1
    while place.exists():
        number += 1
        place = folder.with_name(f"{DAMAGED}{folder.name}.{number}")
    os.replace(folder, place)
    return place


def _hashes(folder: Path, durable: bool = False) -> dict[str, tuple[int, str]]:
    """{name: (bytes, SHA-256)} of all files, each hashed by one rank.

    durable: ask the system to put them on disk first. A file that its rank does not see (a folder
    that machines do not share) is hashed by rank 0.
    """
    from align.distributed import from_rank_zero, gather_objects, rank, world_size

    names: list[str] = from_rank_zero(lambda: _names(folder))
    parts = gather_objects(_hashed(folder, names[rank() :: world_size()], durable))
    found = {name: entry for part in parts for name, entry in part.items()}
    rest = [name for name in names if name not in found]
    return found | from_rank_zero(lambda: _hashed(folder, rest, durable))


def _hashed(folder: Path, names: Sequence[str], durable: bool) -> dict[str, tuple[int, str]]:
    found = {}
    for name in names:
        file = folder / name
        if file.is_file():
            if durable:
                sync(file)
            found[name] = (file.stat().st_size, sha256_of(file))
    return found


def _names(folder: Path) -> list[str]:
    """Files by size, so that every rank gets large and small ones."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE]
    files = [p for p in files if not p.name.startswith(".")]
    files.sort(key=lambda p: (-p.stat().st_size, p.as_posix()))
    return [p.relative_to(folder).as_posix() for p in files]
