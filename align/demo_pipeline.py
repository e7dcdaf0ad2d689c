"""`recipes/demo.py`: every stage in order, each by its own recipe, then the comparison.

A stage whose settings and inputs have not changed since it finished is reused and said so.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.child import run_child
from align.config import Config, load_config, parse_argv
from align.config_errors import UserError
from align.files import fingerprint
from align.prerequisites import build, demo_data, is_ready, uses_demo_data
from align.run import guarded_once
from align.run_manifest import read_manifest, write_manifest
from align.tools import to_words, tool_options

STAGES = ("tokenizer", "pretrain", "sft", "reward", "ppo", "dpo", "orpo")
# The figure that stands for a stage in the closing table: the first that the run reports.
HEADLINES = {
    "tokenizer": ("chars_per_token",),
    "pretrain": ("eval_loss", "train_loss"),
    "sft": ("eval_loss", "train_loss"),
    "reward": ("eval_accuracy", "eval_loss", "train_loss"),
    "ppo": ("eval_score/mean", "score/mean"),
    "dpo": ("eval_accuracy", "eval_loss", "train_loss"),
    "orpo": ("eval_accuracy", "eval_loss", "train_loss"),
}
USAGE = """usage: recipes/demo.py [--config FILE] [--section.key VALUE …]
                       [--print_config] [--dry_run]

Run tokenizer, pretrain, sft, reward, ppo, dpo, orpo and the comparison in demo.root (default:
runs/demo). Finished stages are reused. Overrides go to every stage; per_method.ppo.train.seed=2
reaches one."""


def run_demo(argv: Sequence[str] | None = None) -> int:
    """Run the whole pipeline; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded_once(lambda: _run(words))


def _run(words: list[str]) -> int:
    arguments = parse_argv(words)
    if arguments.help:
        print(USAGE)
        return 0
    config = load_config("demo", words)
    for name, value in arguments.overrides:
        if name == "train.output_dir":
            reason = "would put all stages into one folder"
            raise UserError(f"--{name}", value, reason, "Use --demo.root")
    words = [w for w in words if w not in ("--print_config", "--dry_run")]
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    for stage in STAGES:  # a wrong key of a late stage is said now, not after ten minutes
        load_config(stage, words)
    if arguments.dry_run:
        for stage in STAGES:
            state = "finished, would be reused" if is_ready(stage, words) else "would be run"
            print(f"{stage:<10} {Path(config.demo.root) / stage}  {state}")
        return 0
    if uses_demo_data(load_config("sft", words)):
        demo_data(config)
    rows: list[tuple[str, str, str]] = []
    for i, stage in enumerate(STAGES, 1):
        rows.append(_stage(stage, f"{i}/{len(STAGES) + 1}", words, config))
    rows.append(_compare(config, f"{len(STAGES) + 1}/{len(STAGES) + 1}"))
    print("\n" + table(rows))
    report = write_report_link(config)
    print(f"\nReport: {report}", flush=True)
    return 0


def _stage(stage: str, place: str, words: list[str], config: Config) -> tuple[str, str, str]:
    run_dir = Path(config.demo.root) / stage
    start = time.monotonic()
    if is_ready(stage, words):
        print(f"[demo {place}] {stage}: reusing {run_dir}, nothing has changed", flush=True)
        spent = "reused"
    else:
        print(f"[demo {place}] {stage}: running", flush=True)
        argv = list(words)
        found = read_manifest(run_dir)
        if found.get("finished"):
            print(f"[demo {place}] {stage}: settings or inputs have changed", flush=True)
            argv += ["--train.resume", "never"]
        build(stage, argv)
        spent = clock(time.monotonic() - start)
    return stage, spent, headline(stage, read_manifest(run_dir).get("metrics", {}))


def headline(stage: str, metrics: dict[str, Any]) -> str:
    """Return the figure that stands for a stage."""
    for name in HEADLINES[stage]:
        if isinstance(metrics.get(name), (int, float)):
            return f"{name} {metrics[name]:.3f}"
    return "–"


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def table(rows: list[tuple[str, str, str]]) -> str:
    """Return the closing table."""
    rows = [("stage", "time", "headline"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}".rstrip() for a, b, c in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _compare(config: Config, place: str) -> tuple[str, str, str]:
    """Train the second judge where the data has one, then compare; reused like a stage."""
    root = Path(config.demo.root)
    options = compare_options(config)
    if (root / "data" / "judge.jsonl").exists() and options.get("judge"):
        _judge(root / "data" / "judge.jsonl", Path(options["judge"]))
    output = Path(options["output"])
    inputs = {
        str(path): fingerprint(path)
        for path in (*(f"{run}/final" for run in options["runs"]), *_files(options))
    }
    wanted = {"options": options, "inputs": inputs}
    start, found = time.monotonic(), read_manifest(output)
    if found.get("finished") and found.get("compared") == wanted:
        print(f"[demo {place}] compare: reusing {output}, nothing has changed", flush=True)
        spent = "reused"
    else:
        print(f"[demo {place}] compare: running", flush=True)
        if run_child("align.evaluation.compare", to_words(options)) != 0:
            raise RuntimeError("the comparison failed; see the message above")
        duration = time.monotonic() - start
        manifest = {"method": "compare", "finished": True, "compared": wanted}
        write_manifest(output, manifest | {"duration_s": round(duration, 1)})
        spent = clock(duration)
    return "compare", spent, _compare_headline(output)


def _compare_headline(output: Path) -> str:
    try:
        runs = json.loads((output / "summary.json").read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError):
        return "–"
    parts = []
    for run in runs:
        value = run.get("reward", run.get("reward/mean"))
        value = value.get("mean") if isinstance(value, dict) else value
        if isinstance(value, (int, float)):
            parts.append(f"{run.get('name', '?')} {value:.2f}")
    return "reward: " + ", ".join(parts) if parts else "–"


def compare_options(config: Config) -> dict[str, Any]:
    """Return the options of the comparison."""
    options = tool_options(config, "compare_runs")
    if not options.get("runs") or not options.get("output"):
        raise UserError("tools.compare_runs", options, "names no runs or no output")
    return options


def _files(options: dict[str, Any]) -> list[str]:
    return [
        options[name]
        for name in ("prompts", "reward", "judge")
        if isinstance(options.get(name), str) and Path(options[name]).exists()
    ]


def _judge(data: Path, path: Path) -> None:
    """Fit the naive Bayes judge on reviews that no other stage reads."""
    if path.exists() and path.stat().st_mtime >= data.stat().st_mtime:
        return
    from align.evaluation.judges import NaiveBayesJudge

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line]
    judge = NaiveBayesJudge.train(
        [row["text"] for row in rows if row["label"] == 1],
        [row["text"] for row in rows if row["label"] == 0],
    )
    judge.save(path)
    info = judge.info
    print(f"[demo] judge: accuracy {info['accuracy']:.3f} on reviews held out from it", flush=True)


def write_report_link(config: Config) -> Path:
    """Copy the comparison's page to demo.root/report.html and return that path."""
    source = Path(compare_options(config)["output"]) / "report.html"
    target = Path(config.demo.root) / "report.html"
    temporary = target.with_name(".report.html.tmp")
    temporary.write_bytes(source.read_bytes())
    os.replace(temporary, target)
    return target
