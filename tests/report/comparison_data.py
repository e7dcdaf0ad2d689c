"""A comparison made of written texts and numbers: no model, no sampling."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from align.evaluation.compare import sample_rows
from align.evaluation.compare_figures import summarise
from align.evaluation.compare_frontier import Point, summarise_points
from align.evaluation.compare_measure import Measured
from align.evaluation.compare_pairs import all_pairs, summarise_pairs
from align.evaluation.sampling import Decoding, Outputs
from align.records import Message, Prompt

EVIL = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
CATEGORIES = ("酒店", "food", "写作")
ZH = (
    "房间很干净。",
    "服务很热情，",
    "早餐一般，",
    "离地铁站很近，",
    "隔音不好。",
    "下次还会再来。",
)
EN = (
    "the room was clean. ",
    "staff were friendly, ",
    "breakfast was plain, ",
    "close to a station, ",
)


class Gold:
    """A judge that scores; its scores are given to the runs beforehand."""

    name = "gold"

    def score(self, prompts, completions):
        raise NotImplementedError


def outputs(prompts: list[Prompt], seeds: list[int], shift: float, seed: int) -> Outputs:
    rng = np.random.default_rng(seed)
    n = len(prompts) * len(seeds)
    parts = [ZH if i // len(seeds) % 2 == 0 else EN for i in range(n)]
    texts = [
        "".join(rng.choice(pool, 2 + int(shift > 0))) + f"#{i}" for i, pool in enumerate(parts)
    ]  # fmt: skip
    completions = [list(range(len(t) // 2)) for t in texts]
    out = Outputs(prompts, seeds, [[1]] * n, completions, texts, [i % 7 != 3 for i in range(n)])
    out.scores = np.random.default_rng(0).normal(0, 1, n) + shift + rng.normal(0, 0.5, n)
    return out


def run(name: str, prompts: list[Prompt], seeds: list[int], shift: float, seed: int) -> Measured:
    out = outputs(prompts, seeds, shift, seed)
    n = len(out.texts)
    kl = np.full(n, 5 * abs(shift)) + np.random.default_rng(seed).normal(0, 0.1, n) * (shift != 0)
    gold = 1 / (1 + np.exp(-out.scores / 2))
    return Measured(name, Path("runs") / name / "final", out, kl, np.full(n, 30.0),
                    out.lengths, {"gold": gold})  # fmt: skip


def points(over_optimised: bool) -> list[Point]:
    """Eleven moments of a run: reward rises; gold rises to step 50, then falls or stays."""
    made = []
    rng = np.random.default_rng(1)
    base = rng.normal(0, 0.3, 40)
    for step in range(0, 101, 10):
        u = step / 100
        gold = 0.5 + (2 * u - 2 * u * u if over_optimised else 0.4 * min(u, 0.5))
        noise = rng.normal(0, 0.05, (2, 40))
        names = [f"p{i}" for i in range(40)]
        made.append(Point(
            step,
            {k: float(v) for k, v in zip(names, base + 2 * u + noise[0], strict=True)},
            dict.fromkeys(names, 8 * u),
            {k: float(v) for k, v in zip(names, gold + 0.1 * base + noise[1], strict=True)},
        ))  # fmt: skip
    return made


def comparison(n: int = 24, seeds: tuple[int, ...] = (0, 1)) -> tuple[dict[str, Any], list[dict]]:
    """A summary and its sample rows: sft, dpo a little better, ppo over-optimised."""
    return deepcopy(_comparison(n, seeds))


@cache
def _comparison(n: int, seeds: tuple[int, ...]) -> tuple[dict[str, Any], list[dict]]:
    prompts = [
        Prompt((Message("user", f"写第{i}条评论" if i % 2 == 0 else f"Write review {i}"),),
               meta={"category": CATEGORIES[i % 3]})
        for i in range(n)
    ]  # fmt: skip
    shifts = (("sft", 0.0, 1), ("dpo", 0.4, 2), ("ppo", 1.2, 3))
    runs = [run(name, prompts, list(seeds), shift, seed) for name, shift, seed in shifts]
    runs[2].outputs.texts[1] = EVIL
    judges = [Gold()]
    pairs = all_pairs(runs, judges)
    frontiers = {"ppo": summarise_points(points(True), "checkpoints")}
    summary = {
        "baseline": "sft", "num_prompts": n, "seeds": list(seeds),
        "decoding": Decoding().to_json(), "reward": "reward", "judge": "gold", "judges": ["gold"],
        "runs": [
            {**summarise(m, runs[0], pairs), "frontier": frontiers.get(m.name), "time_s": 60.0}
            for m in runs
        ],
        "pairwise": summarise_pairs(pairs, [m.name for m in runs], judges), "notes": [],
    }  # fmt: skip
    return summary, [row for m in runs for row in sample_rows(m)]
