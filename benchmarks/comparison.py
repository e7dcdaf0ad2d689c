"""Running two sides in turn, A B A B, each in a process of its own, and the table of what came."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
# Of the two sides' figures: the loss, or where the losses differ by definition what both log.
# trl's ORPO averages the NLL over prompt and answer, align's over the answer.
COMPARED = {"orpo": ("log_odds", "log_odds_chosen")}
# What float32 sums in another order explain, after some steps of training.
TOLERANCE = 2e-3


@dataclass
class Side:
    """A name, the interpreter and script that run it, and what its runs gave."""

    name: str
    python: str
    script: str
    job: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [s for run in self.runs for s in run["seconds"]]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        return max(run["peak_mib"] for run in self.runs)

    @property
    def figures(self) -> list[dict[str, float]]:
        return [log for run in self.runs for log in run["logs"]]

    def figure(self, name: str) -> list[float]:
        """A logged figure of the first run, step by step."""
        return [log[name] for log in self.runs[0]["logs"] if name in log]

    def run(self, folder: Path, number: int | str, threads: int | None) -> dict[str, Any]:
        """Run once; returns the result and keeps it. Raises SystemExit with the log's end."""
        place = folder / f"{self.name}-{number}"
        place.mkdir(parents=True, exist_ok=True)
        job = {**self.job, "output": str(place / "run"), "out": str(place / "result.json")}
        file = place / "job.json"
        file.write_text(json.dumps(job, indent=1), encoding="utf-8")
        log = place / "log.txt"
        with log.open("w") as out:
            code = subprocess.run(
                [self.python, str(ROOT / "sides" / self.script), str(file)],
                stdout=out, stderr=subprocess.STDOUT, env=environment(threads), cwd=place,
            ).returncode  # fmt: skip
        result = Path(job["out"])
        if code != 0 or not result.is_file():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise SystemExit(f"{self.name} ended with {code}; the end of {log}:\n{tail}")
        return json.loads(result.read_text(encoding="utf-8"))


def environment(threads: int | None) -> dict[str, str]:
    """The sides' environment: offline, all cores unless `threads` says otherwise."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    if threads:
        kept["OMP_NUM_THREADS"] = str(threads)
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def alternate(sides: list[Side], folder: Path, repeats: int, threads: int | None) -> None:
    """A B A B …, printing a line for each run."""
    for number in range(repeats):
        for side in sides:
            result = side.run(folder, number, threads)
            side.runs.append(result)
            print(
                f"  {side.name:>12} run {number + 1}: {statistics.median(result['seconds']):.3f} "
                f"s/step over {len(result['seconds'])} steps, {result['peak_mib']:.0f} MiB",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def agreement(method: str, ours: Side, peer: Side) -> tuple[str, bool]:
    """(what the losses were, do they agree)."""
    mine, theirs = COMPARED.get(method, ("loss", "loss"))
    a, b = ours.figure(mine), peer.figure(theirs)
    if method in COMPARED:  # trained on another loss, they part after the first step
        a, b = a[:1], b[:1]
    if not a or not b:
        return "no loss was logged", False
    gaps = [abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b, strict=False)]
    worst = max(gaps)
    text = f"{mine} {a[-1]:.5f} / {b[-1]:.5f}, largest gap {worst:.1e} over {len(gaps)} steps"
    return text, worst <= TOLERANCE


def row_of(
    label: str, method: str, ours: Side, peer: Side, useful_tokens: float, floor_s: float | None
) -> dict[str, Any]:
    """One row of the table. useful_tokens: a step; floor_s: seconds the machine needs at least."""
    text, agrees = agreement(method, ours, peer)
    return {
        "label": label,
        "method": method,
        "peer": peer.name,
        "ours_s": ours.median,
        "peer_s": peer.median,
        "ratio": peer.median / ours.median,
        "ours_tokens_per_s": useful_tokens / ours.median,
        "peer_tokens_per_s": useful_tokens / peer.median,
        "ours_mib": ours.peak,
        "peer_mib": peer.peak,
        "memory_ratio": ours.peak / peer.peak,
        "floor_share": floor_s / ours.median if floor_s else None,
        "losses": text,
        "valid": agrees,
        "steps": len(ours.seconds),
        "versions": {ours.name: ours.runs[0]["versions"], peer.name: peer.runs[0]["versions"]},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table; a row whose losses differ says so instead of a ratio."""
    head = (
        "| setting | s/step ours | peer | ratio | useful tokens/s ours | peer | peak MiB ours "
        "| peer | ours ÷ peer | share of floor | losses ours / peer |\n" + "|---" * 11 + "|"
    )
    lines = [head]
    for r in rows:
        share = f"{100 * r['floor_share']:.0f} %" if r["floor_share"] else "–"
        ratio = f"**{r['ratio']:.2f}×**" if r["valid"] else "void"
        lines.append(
            f"| {r['label']} vs {r['peer']} | {r['ours_s']:.2f} | {r['peer_s']:.2f} | {ratio} "
            f"| {r['ours_tokens_per_s']:.0f} | {r['peer_tokens_per_s']:.0f} | {r['ours_mib']:.0f} "
            f"| {r['peer_mib']:.0f} | {r['memory_ratio']:.2f} | {share} | {r['losses']} |"
        )
    return "\n".join(lines)


def add_common(made: argparse.ArgumentParser) -> None:
    """Options that every comparison has."""
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--repeats", type=int, default=2, help="runs of each side, in turn")
    made.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the sides; default: all")
    made.add_argument("--work", help="folder for models, logs, results; else a temporary one")
    made.add_argument("--json", help="append the row to this file")
    made.add_argument("--label", help="name of the row")


def report_row(
    compare: Callable[[argparse.Namespace, Path], dict[str, Any]], options: argparse.Namespace
) -> int:
    """Compare, print the row and keep it; 0 if it stands."""
    with tempfile.TemporaryDirectory() as temporary:
        row = compare(options, Path(options.work or temporary).resolve())
    print(table([row]))
    if options.json:
        with Path(options.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0 if row["valid"] else 1
