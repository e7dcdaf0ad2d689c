"""Prompts, answers and votes for the arena's tests."""

from __future__ import annotations

import json
from pathlib import Path

from align.feedback.queue import build_items
from align.records import Message, Prompt

MODELS = ("alpha", "beta", "gamma")
QUESTIONS = ("写一条评论", "How was breakfast?", "房间怎么样？", "Is it far?", "早餐", "Rate it")


def prompts(n: int) -> list[Prompt]:
    return [Prompt((Message("user", f"{QUESTIONS[i % len(QUESTIONS)]} {i}"),)) for i in range(n)]


def answers(asked: list[Prompt], models=MODELS) -> dict[tuple[str, str], str | None]:
    return {
        (p.prompt_id, m): f"{m} 的回答 to {p.messages[0].content}" for p in asked for m in models
    }


def items(n: int, models=MODELS, **options):
    asked = prompts(n)
    return build_items(asked, answers(asked, models), models, **options)[0]


def sample_rows(n: int = 6, models=("dpo", "ppo")) -> list[dict]:
    """What compare_runs writes to samples.jsonl."""
    return [
        {
            "prompt_id": p.prompt_id, "prompt": [m.to_json() for m in p.messages], "seed": 0,
            "run": m, "completion": f"{m}: 好 <b>{p.messages[0].content}</b>", "score": 0.0,
        }
        for p in prompts(n)
        for m in models
    ]  # fmt: skip


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def vote(left="A", right="B", *, by="ann", said="left", prompt="问", consent=True, **more):
    """A line of a votes log."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completions": [{"model": "x", "text": left}, {"model": "y", "text": right}],
        "vote": said, "consent": consent, "source": "arena", "annotator": by, "session": None,
        "item": f"{prompt}:{sorted((left, right))}", "position": "ab", "latency_s": None,
        "seconds": 4.5, "tokens": None, "time": "2026-05-01T08:00:00.000+00:00",
        "id": f"{by}-{prompt}-{left}-{said}", **more,
    }  # fmt: skip


def thumb(text="A", *, by="ann", said="up", prompt="问", consent=True, model="x", **more):
    """A line of a chat's or a server's log."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completions": [{"model": model, "text": text}], "vote": said, "consent": consent,
        "source": "chat", "annotator": by, "session": "s1", "item": None, "position": None,
        "latency_s": 0.5, "seconds": None, "tokens": 3, "id": f"{by}-{prompt}-{text}",
        "time": "2026-05-01T08:00:00.000+00:00", **more,
    }  # fmt: skip
