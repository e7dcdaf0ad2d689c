"""NVIDIA's garak against the same server, from an environment of its own.

garak pins transformers and datasets to versions older than ours, so it is not imported here: its
configuration is written, it is started as a process, and the figures are read from its report.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from align.config_errors import NO_VALUE, Failed, UserError
from align.files import write_atomic
from align.jsonl import RecordError, read_jsonl

OLDEST = (0, 17)
"""The first version whose configuration and report are read here (`--spec`, entry_type eval)."""
INSTALL = "python -m venv garak-env && garak-env/bin/pip install garak, then --garak_python " \
    "garak-env/bin/python"  # fmt: skip
# garak's stop strings ("#" and ";") would cut answers off; an empty list, and penalties of 0, are
# refused by some servers.
_NOT_SENT = ("stop", "n", "frequency_penalty", "presence_penalty")
_VERSION = "import importlib.metadata as m; print(m.version('garak'))"
_PROBE = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?")


def add_options(p: argparse.ArgumentParser) -> None:
    """Add the options that are garak's."""
    p.add_argument("--garak", help="also run these probes of garak, e.g. encoding.InjectROT13,dan; "
                                   "needs --url")  # fmt: skip
    p.add_argument("--garak_python", default=sys.executable, help="Python that has garak")
    p.add_argument("--garak_prompts", type=int, default=64, help="prompts of each garak probe")
    p.add_argument("--garak_generations", type=int, default=1, help="answers to each prompt")


def check(args: argparse.Namespace) -> None:
    """Raise UserError where garak is asked for and cannot be run."""
    if not args.garak:
        return
    if not args.url:
        raise UserError("--garak", args.garak, "needs a server", "Give --url and serve the model")
    for name in args.garak.split(","):
        if not _PROBE.fullmatch(name.strip()):
            raise UserError("--garak", name, "is no garak probe", "Write module or module.Class")
    for option in ("garak_prompts", "garak_generations"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option}", getattr(args, option), "is below 1", "Use 1 or more")
    found = version(args.garak_python)
    if found is None:
        reason = f"is needed by --garak, and {args.garak_python} has none"
        raise UserError("garak", NO_VALUE, reason, f"Install it: {INSTALL}")
    if _numbers(found) < OLDEST:
        raise UserError("garak", found, "is too old", f"Install 0.17 or newer: {INSTALL}")


def version(python: str) -> str | None:
    """Version of garak in a Python's environment; None where it, or the Python, is not there."""
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def configuration(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What garak is told: an OpenAI-compatible target, and where its report goes."""
    url = args.url.rstrip("/").removesuffix("/chat/completions")
    target = {
        "uri": f"{url}/", "max_tokens": args.max_new_tokens, "temperature": args.temperature,
        "top_p": args.top_p, "suppressed_params": list(_NOT_SENT),
    }  # fmt: skip
    return {
        "run": {
            "generations": args.garak_generations, "seed": args.seeds[0],
            "soft_probe_prompt_cap": args.garak_prompts,
        },
        "plugins": {
            "target_type": "openai.OpenAICompatible", "target_name": args.model,
            "generators": {"openai": {"OpenAICompatible": target}},
        },
        "reporting": {"report_dir": str(folder.resolve()), "report_prefix": "garak"},
    }  # fmt: skip


def command(args: argparse.Namespace, config: Path) -> list[str]:
    """The command line of garak."""
    spec = ",".join(f"probes.{name.strip()}" for name in args.garak.split(","))
    return [args.garak_python, "-m", "garak", "--config", str(config), "--spec", spec]


def run(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Run garak; its rates by probe and detector. Its own files stay in `output`/garak.

    Raises Failed where it ends with an error or leaves no figures.
    """
    folder = output / "garak"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    write_atomic(config, json.dumps(configuration(args, folder), indent=1) + "\n")
    report = folder / "garak.report.jsonl"
    report.unlink(missing_ok=True)  # of an earlier run
    key = os.environ.get(args.api_key_env) or "none"  # garak refuses to start without one
    state = {f"XDG_{name}_HOME": str(folder / "state") for name in ("DATA", "CACHE", "CONFIG")}
    environment = {**os.environ, **state, "OPENAICOMPATIBLE_API_KEY": key}
    environment.pop("PYTHONPATH", None)  # its packages are not ours
    words = command(args, config)
    with (folder / "output.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(words, stdout=log, stderr=log, env=environment, check=False)
    rows = read_report(report)
    where = f"what it said is in {folder / 'output.txt'} and in {folder / 'state'}"
    if done.returncode or not rows:
        raise Failed(f"garak ended with {done.returncode} and {len(rows)} figures; {where}")
    if not any(row["n"] for row in rows):
        raise Failed(f"garak got no answer from {args.url}; {where}")
    return {"version": version(args.garak_python), "command": words[1:], "evaluations": rows,
            "report": str(folder / "garak.report.html")}  # fmt: skip


def read_report(path: Path) -> list[dict[str, Any]]:
    """The evaluations of a report.jsonl: probe, detector, answers, hits and their share."""
    if not path.is_file():
        return []
    rows = []
    try:
        for _, row in read_jsonl(path):
            if not isinstance(row, dict) or row.get("entry_type") != "eval":
                continue
            total, fails = int(row["total_evaluated"]), int(row["fails"])
            rows.append({
                "probe": row["probe"], "detector": row["detector"], "n": total, "hits": fails,
                "none": int(row.get("nones", 0)), "rate": fails / total if total else None,
            })  # fmt: skip
    except (RecordError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"{path} is not a report that can be read: {error}") from error
    return rows
