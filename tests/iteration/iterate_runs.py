"""Whole runs of recipes/iterate.py on the smoke configuration, as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "recipes" / "configs" / "smoke.yaml")
QUESTIONS = ("写一条酒店评论", "Write a review", "怎样泡茶", "Name a fruit", "推荐一道菜", "房间",
             "Is it far?", "评价早餐")  # fmt: skip
FUNCTIONS = '''
import json, os, pathlib

def han(prompts, completions, finished=None, **kwargs):
    """Share of Chinese characters."""
    return [sum("\\u4e00" <= c <= "\\u9fff" for c in t) / max(1, len(t)) for t in completions]

def scripted(prompts, completions, finished=None, **kwargs):
    """The next value of script.json, which moves each prompt a little of its own."""
    file = pathlib.Path(__file__).with_name("script.json")
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values[1:]))
    return [values[0] + len(m[-1]["content"]) / 100 for m in prompts]
'''


def write_prompts(path: Path, n: int, mark: str = "") -> Path:
    rows = [{"prompt": f"{QUESTIONS[i % len(QUESTIONS)]} {mark}{i}"} for i in range(n)]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def prepare(folder: Path, prompts: int = 26, held_out: int = 8) -> Path:
    """Reward and judge functions, prompts, held-out prompts."""
    (folder / "functions.py").write_text(FUNCTIONS, "utf-8")
    write_prompts(folder / "prompts.jsonl", prompts)
    write_prompts(folder / "held.jsonl", held_out, "第")
    return folder


def words(folder: Path, model: str, output: Path, *extra: object, judge: str = "han") -> list[str]:
    return [
        "--config", SMOKE, "--policy.path", model, "--train.output_dir", str(output),
        "--data.prompts", str(folder / "prompts.jsonl"),
        "--eval.prompts", str(folder / "held.jsonl"),
        "--rewards.0.path", f"{folder / 'functions.py'}:han",
        "--iterate.judge", f"{folder / 'functions.py'}:{judge}",
        "--iterate.unfinished", "keep", "--iterate.n", "4", "--eval.num_samples", "32",
        "--eval.temperature", "1.0", *map(str, extra),
    ]  # fmt: skip


def command(argv: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "recipes" / "iterate.py"), *argv]


def run(argv: list[str], code: int = 0) -> str:
    done = subprocess.run(command(argv), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def rounds(output: Path) -> list[dict]:
    text = (output / "rounds.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def figures(output: Path) -> list[dict]:
    """The rounds without the paths of their policies."""
    return [{k: v for k, v in row.items() if k != "policy"} for row in rounds(output)]
