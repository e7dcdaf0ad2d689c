"""PPO for 500 updates in a process of its own: memory, files, threads and children stay.

Looked at from outside, through /proc.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

UPDATES, EACH = 500, 4  # optimiser steps an update: 2 passes × 2 minibatches
WARM = 100
SECONDS = float(os.environ.get("ALIGN_SOAK_SECONDS", "7200"))


def look(pid: int, temporary: Path) -> dict[str, float]:
    """What a process holds now. rss in MiB."""
    place = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (place / "status").read_text().splitlines() if ":" in line
    )
    children = (place / f"task/{pid}/children").read_text().split()
    return {
        "rss": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(list((place / "fd").iterdir())),
        "children": len(children),
        "temporary": sum(1 for path in temporary.rglob("*") if path.is_file()),
    }


def watch(process: subprocess.Popen, run_dir: Path, temporary: Path) -> list[tuple[int, dict]]:
    """(update, what was held) twice a second until the process ends."""
    seen, size, step, end = [], 0, 0, time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.5)
        file = run_dir / "metrics.jsonl"
        if file.is_file() and file.stat().st_size != size:
            size = file.stat().st_size
            step = max((row.get("step", 0) for row in runs.lines(run_dir)), default=0)
        try:
            seen.append((step // EACH, look(process.pid, temporary)))
        except (OSError, KeyError):  # it is ending
            continue
    return seen


@pytest.mark.nightly
@pytest.mark.timeout(7500)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_five_hundred_updates_leave_nothing_behind(tmp_path, fault):
    fault("a long run (500 updates of PPO)", "memory grows by less than 2 %; nothing is leaked")
    temporary, run_dir = tmp_path / "tmp", tmp_path / "run"
    temporary.mkdir()
    words = ("--train.max_steps", UPDATES * EACH, "--train.logging_steps", EACH,
             "--train.eval_steps", 100 * EACH, "--train.save_steps", 50 * EACH,
             *runs.CONSTANT)  # fmt: skip
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, str(runs.ROOT / "recipes/ppo.py"), *runs.arguments(run_dir, *words)],
            stdout=said, stderr=subprocess.STDOUT, cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(runs.ROOT)},
        )  # fmt: skip
        seen = watch(process, run_dir, temporary)
        process.kill()
    text = (tmp_path / "said.txt").read_text("utf-8")
    assert process.wait() == 0, text[-3000:]
    # Medians, because a checkpoint or an evaluation holds more for a moment.
    early = [held for update, held in seen if WARM <= update < WARM + 50]
    late = [held for update, held in seen if update >= UPDATES - 50]
    assert early
    assert late
    found = {
        name: tuple(statistics.median(held[name] for held in part) for part in (early, late))
        for name in early[0]
    }
    print({name: tuple(round(x, 2) for x in pair) for name, pair in found.items()})
    before, after = found["rss"]
    assert after < 1.02 * before, found
    for name in ("files", "children", "threads", "temporary"):
        assert found[name][1] <= found[name][0], found
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
