"""Reward, KL and a held-out judge along a run: is what training gained a gain?

A policy that is trained on a reward for long enough finds what the reward overrates: the reward
goes on rising while a judge that was not trained on falls (Gao et al. 2023, arXiv:2210.10760). The
points come from the run's checkpoints, sampled as the comparison samples, or from the samples that
its evaluations have written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.checkpoint_files import COMPLETE, step_of
from align.checkpoints import run_dir_of
from align.config_errors import UserError
from align.evaluation import metrics
from align.evaluation.checkpoint_model import holds_policy, load_at
from align.evaluation.compare_measure import Measured, measure, scores_texts
from align.evaluation.history import config_value
from align.evaluation.sampling import Decoding
from align.records import Prompt, RecordError, parse_messages, prompt_key
from align.report.run import read_lines

MEASURED, RECORDED = "checkpoints", "recorded evaluations"
MAX_RECORDED = 40  # evaluations of a run that are judged


@dataclass
class Point:
    """A moment of a run. reward, kl, gold: {prompt: mean over its samples}, {} where unknown."""

    step: int
    reward: dict[str, float]
    kl: dict[str, float]
    gold: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Means with intervals over prompts."""
        found = {"reward": self.reward, "kl": self.kl, "gold": self.gold}
        means = {
            k: metrics.bootstrap(np.array([*v.values()])).to_json() if v else None
            for k, v in found.items()
        }
        return {"step": self.step, **means}


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Folders checkpoint-N that hold a model, by step; where some are complete, only those."""
    found = [
        p for p in run_dir.glob("checkpoint-*")
        if step_of(p) >= 0 and holds_policy(p)
    ]  # fmt: skip
    whole = [p for p in found if (p / COMPLETE).is_file()]
    return sorted(whole or found, key=step_of)


def measured_points(
    final: Measured, base: tuple, baseline: Measured, prompts: list[Prompt], seeds: Sequence[int],
    decoding: Decoding, reward: Any, gold: Any, device: Any, progress: Callable[[str], None],
) -> list[Point]:  # fmt: skip
    """Points of a run's checkpoints, from the baseline (step 0) to the model that was compared.

    [] where there is no checkpoint beside the final model.
    """
    run_dir = run_dir_of(final.path)
    folders = [p for p in checkpoints_of(run_dir) if p.resolve() != final.path.resolve()]
    if not folders:
        return []
    name, judges = (None, []) if gold is None else (gold.name, [gold])
    last = None if _keeps_best(run_dir) else _last_step(run_dir, step_of(folders[-1]))
    points = [_point(0, baseline, name)]
    for folder in folders:
        if step_of(folder) == last:
            continue  # it holds what the run ended with, and that has been measured
        progress(f"compare: {final.name}, {folder.name}")
        try:
            own = load_at(folder, final.path, device=device)
        except UserError as error:  # half a checkpoint is no reason to lose the comparison
            progress(f"compare: {folder} is left out: {error}")
            continue
        one = measure(final.name, folder, own, base, prompts, seeds, decoding, reward, judges)
        points.append(_point(step_of(folder), one, name))
        del own, one
    return points if last is None else [*points, _point(last, final, name)]


def _keeps_best(run_dir: Path) -> bool:
    """Whether final/ may be an earlier checkpoint: then it is no point of its own."""
    keys = ("train.load_best_model_at_end", "train.early_stopping_patience")
    return any(config_value(run_dir, key) for key in keys)


def _last_step(run_dir: Path, at_least: int) -> int:
    steps = [row["step"] for row in read_lines(run_dir / "metrics.jsonl")
             if isinstance(row.get("step"), int)]  # fmt: skip
    return max([at_least, *steps])


def _point(step: int, m: Measured, gold: str | None) -> Point:
    ids = [p.prompt_id for p in m.outputs.prompts]

    def by_prompt(values: np.ndarray | None) -> dict[str, float]:
        if values is None:
            return {}
        means = m.outputs.grid(values).mean(axis=1)
        return {p: float(v) for p, v in zip(ids, means, strict=True) if np.isfinite(v)}

    judged = m.judges.get(gold) if gold is not None else None
    return Point(step, by_prompt(m.outputs.scores), by_prompt(m.kl), by_prompt(judged))


def recorded_points(run_dir: Path, gold: Any) -> list[Point]:
    """Points of the evaluations in a run's samples.jsonl, judged now where gold scores texts.

    Reward and KL are what the run wrote: its own reward, its own held-out prompts. [] where there
    are not two evaluations with scores.
    """
    steps: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for row in read_lines(run_dir / "samples.jsonl"):
        if not isinstance(row.get("step"), int) or not isinstance(row.get("score"), (int, float)):
            continue
        try:
            key = prompt_key(parse_messages(row["prompt"]))
        except (RecordError, KeyError):
            continue
        steps.setdefault(row["step"], []).append((key, row))
    if len(steps) < 2:
        return []
    chosen = sorted(steps)
    every = -(-len(chosen) // MAX_RECORDED)
    chosen = sorted({*chosen[::every], chosen[-1]})
    return [_recorded(step, steps[step], gold) for step in chosen]


def _recorded(step: int, rows: list[tuple[str, dict[str, Any]]], gold: Any) -> Point:
    judged: list[Any] = [None] * len(rows)
    if gold is not None and scores_texts(gold):
        prompts = [list(parse_messages(row["prompt"])) for _, row in rows]
        judged = gold.score(prompts, [str(row.get("completion", "")) for _, row in rows])

    def by_prompt(values: Sequence[Any]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for (key, _), value in zip(rows, values, strict=True):
            if isinstance(value, (int, float)) and np.isfinite(value):
                found.setdefault(key, []).append(float(value))
        return {k: sum(v) / len(v) for k, v in found.items()}

    scores = by_prompt([row["score"] for _, row in rows])
    return Point(step, scores, by_prompt([row.get("kl") for _, row in rows]), by_prompt(judged))


def summarise_points(points: Sequence[Point], source: str | None) -> dict[str, Any]:
    """{"source", "points", "over_optimisation"}."""
    return {
        "source": source if points else None,
        "points": [p.to_json() for p in points],
        "over_optimisation": over_optimisation(points),
    }


def over_optimisation(points: Sequence[Point]) -> dict[str, Any] | None:
    """Where the gold judge was highest, and what it lost after that; None without two points.

    drop: gold at its peak minus gold at the end, over the prompts that all points have, with a
    bootstrap interval over prompts at level 1 − 0.05/(k − 1) for k points: the peak was picked
    among them, and the interval must pay for that. found: the whole drop is above 0 while the
    reward rose after the peak.
    """
    judged = [p for p in points if p.gold]
    if len(judged) < 2:
        return None
    shared = sorted(set.intersection(*(set(p.gold) for p in judged)))
    if len(shared) < 2:
        return None
    gold = np.array([[p.gold[k] for k in shared] for p in judged])
    peak, last = int(gold.mean(axis=1).argmax()), len(judged) - 1
    level = 1 - 0.05 / (len(judged) - 1)
    drop = metrics.bootstrap(gold[peak] - gold[last], level=level)
    rewards = [float(np.mean([*p.reward.values()])) if p.reward else np.nan for p in judged]
    rise = rewards[last] - rewards[peak]
    return {
        "peak_step": judged[peak].step,
        "last_step": judged[last].step,
        "gold_at_peak": float(gold[peak].mean()),
        "gold_at_end": float(gold[last].mean()),
        "drop": drop.to_json(),
        "level": level,
        "reward_rise_after_peak": rise if np.isfinite(rise) else None,
        "found": bool(peak < last and drop.low > 0 and rise > 0),
    }
