"""The run: units to workers, duplicates over all of them, output; it can be killed anywhere.

`<output>/.work` holds what is finished. A unit's result, and then each output file, appears under a
temporary name and is renamed; `index.json` comes last and is what says that a corpus is whole.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.cleaning.counting import Counting, megabytes, named
from align.cleaning.duplicates import find_duplicates
from align.cleaning.output import Output
from align.cleaning.settings import Settings, factors
from align.cleaning.sources import InputFile, Unit, find_files, units_of
from align.cleaning.store import Stored
from align.cleaning.unit import Tools, UnitRun
from align.config_errors import UserError
from align.data.corpus import INDEX_FORMAT, INDEX_NAME
from align.files import write_atomic

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What one run reads and where it writes. single: the name of the one file asked for, or ""."""

    inputs: list[str]
    output: Path
    settings: Settings
    workers: int = 1
    single: str = ""
    unit_bytes: int | None = None


@dataclass(frozen=True)
class Result:
    """The counts, the index, and what a report shows beside them."""

    counting: Counting
    index: dict[str, Any]
    samples: list[tuple[int, str, str]]
    seconds: float


def run(job: Job, say: Say = print) -> Result | None:
    """Clean; return the result, or None where the same run has finished before.

    Raises UserError for settings or inputs that cannot work, or when nothing stays.
    """
    started = time.monotonic()
    files, unknown = find_files(job.inputs)
    _check(job, files)
    _tools_of(job.settings).check()
    mark = _fingerprint(job, files)
    if read_index(job).get("fingerprint") == mark:
        return None
    work = job.output / ".work"
    if (work / "fingerprint").is_file() and (work / "fingerprint").read_text() != mark:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob(".unit-*"):
        shutil.rmtree(left, ignore_errors=True)
    write_atomic(work / "fingerprint", mark)
    units = units_of(files, job.unit_bytes) if job.unit_bytes else units_of(files)
    sources = [*dict.fromkeys(f.source for f in files)]
    stored = _units(job, files, sources, units, work, say)
    counting = Counting()
    for unit in stored:
        counting.merge(unit.counting())
    if unknown:
        counting.files["unknown_kind"] = unknown
    say(f"{counting.read.documents} documents read; looking for duplicates")
    verdicts = find_duplicates(stored, job.settings)
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if job.settings.keep_rejected:
        _rejected(stored, out)
    names = [f.name for f in files]
    output = Output(stored, verdicts, job.settings, sources, names, out, counting)
    splits = output.write(job.single)
    if not counting.kept.documents:
        lost = [f"{k} {t.documents}" for k, t in counting.dropped.items()]
        lost += [f"{k}: {n[0]}" for k, n in counting.files.items()]
        raise UserError("input", named(job.inputs), "leaves no text after cleaning: "
                        + (", ".join(lost) or "the files are empty"),
                        "Loosen the rules (--rules none) or give other files.")  # fmt: skip
    index = {
        "format": INDEX_FORMAT, "kind": "text", "text_field": "text", "splits": splits,
        "fingerprint": mark, "settings": asdict(job.settings), "inputs": job.inputs,
    }  # fmt: skip
    samples = sorted(output.samples)[:30]
    return Result(counting, index, samples, time.monotonic() - started)


def publish(job: Job, result: Result, pages: Callable[[Path], None]) -> None:
    """Put the corpus in place of an older one; `pages` writes the reports into a folder."""
    work, target = job.output / ".work", job.output
    pages(work / "out")
    index = target / (f"{job.single}.index.json" if job.single else INDEX_NAME)
    for file in _files_of(read_index(job)):
        (target / file).unlink(missing_ok=True)
    index.unlink(missing_ok=True)
    for file in sorted((work / "out").iterdir()):
        file.replace(target / file.name)
    write_atomic(index, json.dumps(result.index, ensure_ascii=False, indent=1) + "\n")
    shutil.rmtree(work)


def read_index(job: Job) -> dict[str, Any]:
    """The index of what the output holds; {} where there is none, or files of it are missing."""
    path = job.output / (f"{job.single}.index.json" if job.single else INDEX_NAME)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(index, dict) or index.get("format") != INDEX_FORMAT:
        return {}
    whole = all((job.output / name).is_file() for name in _files_of(index))
    return index if whole else {**index, "fingerprint": None}


def _files_of(index: dict[str, Any]) -> list[str]:
    return [s["file"] for split in index.get("splits", {}).values() for s in split["shards"]]


def _check(job: Job, files: list[InputFile]) -> None:
    if job.output.is_file():
        raise UserError("output", job.output, "is a file",
                        "Give a folder, or a name that ends in .txt or .jsonl.")  # fmt: skip
    inside = job.output.resolve()
    for file in files:
        path = Path(file.path).resolve()
        if inside in path.parents and not job.single:
            raise UserError("output", job.output, f"holds the input {file.path}",
                            "Write to another folder.")  # fmt: skip
        if job.single and path == inside / job.single:
            raise UserError("output", path, "is also an input", "Write to another file.")
    for name in ("repeat", "share"):
        for source in factors(getattr(job.settings, name), name):
            if source not in job.inputs:
                raise UserError(name, source, "is none of the inputs",
                                f"Write one of {named(job.inputs)}.")  # fmt: skip


def _fingerprint(job: Job, files: list[InputFile]) -> str:
    """Of everything that the output depends on; the workers' number is not of it."""
    from align import __version__

    found = []
    for file in files:
        try:
            found.append((file.path, file.size, os.stat(file.path).st_mtime_ns))
        except OSError:
            found.append((file.path, -1, 0))
    value = [__version__, asdict(job.settings), job.inputs, job.single, job.unit_bytes, found]
    for path in (*job.settings.decontaminate, *job.settings.word_lists, job.settings.quality,
                 job.settings.perplexity):  # fmt: skip
        value.append([path, os.stat(path).st_mtime_ns if path and os.path.exists(path) else 0])
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _units(
    job: Job, files: list[InputFile], sources: list[str], units: list[Unit], work: Path, say: Say
) -> list[Stored]:
    """Every unit's result; those of an earlier, interrupted run are used again."""
    folders = [work / f"unit-{i:05d}" for i in range(len(units))]
    todo = [i for i, folder in enumerate(folders) if not folder.is_dir()]
    if len(todo) < len(units):
        say(f"going on: {len(units) - len(todo)} of {len(units)} parts were finished before")
    numbers = {f.path: i for i, f in enumerate(files)}
    settings = job.settings
    tasks = [(settings, sources, {f.path: numbers[f.path] for f in units[i].files},
              str(folders[i]), units[i]) for i in todo]  # fmt: skip
    progress = _Progress(sum(_size(units[i]) for i in todo))
    for done in _each(tasks, min(job.workers, len(tasks))):
        progress.add(_size(units[todo[done]]))
    progress.close()
    return [Stored(folder) for folder in folders]


def _each(tasks: list[Any], workers: int) -> Iterator[int]:
    """Run the tasks and yield their numbers as they finish."""
    if workers <= 1:
        for i, task in enumerate(tasks):
            _work(*task)
            yield i
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _remember_parent, (os.getpid(),)) as pool:
        running = {pool.submit(_work, *task): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BrokenProcessPool:
            raise RuntimeError("a worker was killed, perhaps for memory; what is finished is kept: "
                               "start again, with fewer --workers") from None  # fmt: skip
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_tools: Tools | None = None
_parent: int | None = None


def _remember_parent(pid: int) -> None:
    global _parent
    _parent = pid


def _tools_of(settings: Settings) -> Tools:
    """The models and phrase sets of the settings, loaded once a process."""
    global _tools
    if _tools is None or _tools.settings != settings:
        _tools = Tools(settings)
    return _tools


def _work(
    settings: Settings, sources: list[str], files: dict[str, int], folder: str, unit: Unit
) -> None:
    if _parent is not None and os.getppid() != _parent:
        os._exit(1)  # the run was killed: nobody waits for this unit
    UnitRun(_tools_of(settings), sources, files, Path(folder)).run(unit)


def _size(unit: Unit) -> int:
    return sum(f.size for f in unit.files) if unit.end is None else unit.end - unit.start


def _rejected(stored: list[Stored], out: Path) -> None:
    with open(out / "rejected.jsonl", "wb") as target:
        for unit in stored:
            with open(unit.folder / "rejected", "rb") as source:
                shutil.copyfileobj(source, target)


class _Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.shown, self.bar = self.start, None
        if sys.stderr.isatty() and total:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, unit="B", unit_scale=True, desc="clean")

    def add(self, size: int) -> None:
        """Count bytes that are done."""
        self.done += size
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(size)
        elif now - self.shown > 10:
            self.shown = now
            speed = self.done / 1e6 / (now - self.start)
            print(f"clean {megabytes(self.done)} of {megabytes(self.total)}, {speed:.1f} MB/s",
                  flush=True)  # fmt: skip

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
