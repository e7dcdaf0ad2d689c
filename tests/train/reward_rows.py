"""Preference groups with a planted quality, for whole runs of the reward model."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = ("写一条评论", "Write a review", "评价早餐", "Say something about the room")
FILLERS = ("房间", "早餐", "位置", "the room", "breakfast", "and", "，", "很", "was")
GOOD, BAD = "好", "差"


def answer(chooser: random.Random, good: int, length: int) -> str:
    """An answer of `length` words of which `good` are the good one."""
    words = [GOOD] * good + chooser.choices(FILLERS, k=length - good)
    chooser.shuffle(words)
    return " ".join(words)


def groups(
    n: int, seed: int, *, candidates: int = 3, missing: float = 0.0, length: int = 6
) -> list[dict[str, Any]]:
    """Canonical groups: more good words are better, and are the rating `quality`.

    `words`, the second rating, is the answer's length. missing: the share of ratings left out.
    """
    chooser = random.Random(seed)
    made = []
    for i in range(n):
        counts = chooser.sample(range(length - 1), candidates)
        sizes = [chooser.randint(max(2, c), length + 3) for c in counts]
        texts = [answer(chooser, c, k) for c, k in zip(counts, sizes, strict=True)]
        ids = [f"c{k}" for k in range(candidates)]
        ratings = [{"quality": c, "words": k} for c, k in zip(counts, sizes, strict=True)]
        for rating in ratings:
            for name in list(rating):
                if chooser.random() < missing:
                    rating[name] = None
        made.append(
            {
                "group_id": f"g{seed}-{i}",
                "prompt": [{"role": "user", "content": chooser.choice(PROMPTS)}],
                "candidates": [{"id": k, "content": t} for k, t in zip(ids, texts, strict=True)],
                "judgements": [
                    {"kind": "score", "value": dict(zip(ids, map(float, counts), strict=True))}
                ],
                "meta": {"attributes": dict(zip(ids, ratings, strict=True))},
            }
        )
    return made


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def options(data: Path, held_out: Path | None = None, **reward: Any) -> tuple[object, ...]:
    """Command-line words: the data, and the reward section."""
    words: list[object] = ["--data.preferences", data, "--data.validation_fraction", 0]
    words += [] if held_out is None else ["--data.validation", held_out]
    for name, value in reward.items():
        words += [f"--reward.{name}", json.dumps(value)]
    return tuple(words)
