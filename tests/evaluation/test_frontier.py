"""Over-optimisation along a run: found where it was put in, and not where it was not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import eval_models as tiny

from align.evaluation import compare as cmp
from align.evaluation.compare_frontier import (
    Point,
    checkpoints_of,
    over_optimisation,
    recorded_points,
    summarise_points,
)
from align.evaluation.judges import NaiveBayesJudge
from align.records import Message, Prompt


def points(gold: list[float], noise: float, prompts: int = 40, seed: int = 0) -> list[Point]:
    """Reward rises by 1 a step; gold has these means, and noise of its own on every prompt."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 1, prompts)  # hard and easy prompts: shared by all steps
    return [
        Point(
            10 * i,
            {f"p{k}": float(i + own[k]) for k in range(prompts)},
            {},
            {f"p{k}": float(g + own[k] + rng.normal(0, noise)) for k in range(prompts)},
        )
        for i, g in enumerate(gold)
    ]


def test_a_peak_and_the_loss_after_it_are_found():
    found = over_optimisation(points([0.0, 0.5, 1.0, 0.6, 0.3], noise=0.3))
    assert found["found"]
    assert (found["peak_step"], found["last_step"]) == (20, 40)
    assert found["drop"]["value"] == pytest.approx(0.7, abs=0.15)
    assert found["drop"]["low"] < 0.7 < found["drop"]["high"]
    assert found["reward_rise_after_peak"] == pytest.approx(2.0)
    assert found["level"] == pytest.approx(1 - 0.05 / 4)


def test_by_hand_without_noise():
    flat = [Point(s, {"a": r, "b": r + 1}, {}, {"a": g, "b": g}) for s, r, g in
            [(1, 0.0, 3.0), (2, 5.0, 1.0)]]  # fmt: skip
    found = over_optimisation(flat)
    assert found["drop"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert (found["gold_at_peak"], found["gold_at_end"]) == (3.0, 1.0)


def test_a_rising_judge_and_a_falling_reward_are_no_over_optimisation():
    assert not over_optimisation(points([0.0, 0.5, 1.0], 0.1))["found"]
    fallen = points([1.0, 0.5, 0.0], 0.1)
    for i, point in enumerate(fallen):
        point.reward = {k: -float(i) for k in point.reward}
    assert not over_optimisation(fallen)["found"]  # both fell: that is another illness


def test_chance_is_rarely_taken_for_a_peak():
    """A flat judge over 8 points always has a peak; the interval must pay for having picked it."""
    wrong = sum(
        over_optimisation(points([0.5] * 8, noise=0.5, seed=seed))["found"] for seed in range(60)
    )
    assert wrong <= 4  # 5 % would be 3


def test_too_little_is_none():
    assert over_optimisation([]) is None
    assert over_optimisation(points([1.0], 0.1)) is None
    a, b = points([1.0, 2.0], 0.1)
    b.gold = {"other": 1.0, "prompts": 2.0}
    assert over_optimisation([a, b]) is None
    assert summarise_points([], None) == {"source": None, "points": [], "over_optimisation": None}


def test_points_of_recorded_evaluations_are_judged_now(tmp_path):
    rows = [
        {"step": s, "prompt": [{"role": "user", "content": p}], "completion": c, "score": s / 10,
         "kl": s / 100}
        for s, c in ((0, "不好说"), (10, "好好好"), (20, "差差差"))
        for p in ("早餐", "breakfast")
    ]  # fmt: skip
    rows += [{"step": 30, "prompt": "x", "completion": "no score"}, {"note": "no step"}]
    lines = [json.dumps(r, ensure_ascii=False) for r in rows] + ['{"step": 40, "half']
    (tmp_path / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judge = NaiveBayesJudge({"好": 2.0, "差": -2.0}, prior=0.0)
    found = summarise_points(recorded_points(tmp_path, judge), "recorded evaluations")
    assert [p["step"] for p in found["points"]] == [0, 10, 20]
    assert found["points"][1]["reward"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["points"][2]["kl"]["value"] == pytest.approx(0.2)
    gold = [p["gold"]["value"] for p in found["points"]]
    assert gold[1] > gold[0] > 0.5 > gold[2]
    assert found["over_optimisation"]["peak_step"] == 10
    assert found["over_optimisation"]["found"]
    assert recorded_points(tmp_path / "none", judge) == []


def test_checkpoints_are_sampled_as_the_comparison_samples(tmp_path):
    sft, ppo = tiny.save(tmp_path / "sft", 0), tiny.save(tmp_path / "ppo", 1)
    for step, seed in ((20, 2), (100, 1)):
        made = tiny.save(tmp_path / f"made{step}", seed)
        shutil.copytree(made / "final", ppo / f"checkpoint-{step}")
    (ppo / "checkpoint-30").mkdir()
    (ppo / "checkpoint-40").mkdir()
    (ppo / "checkpoint-40" / "config.json").write_text("{}")  # half a checkpoint
    (ppo / "metrics.jsonl").write_text('{"step": 120}\n')
    assert [p.name for p in checkpoints_of(ppo)] == [
        "checkpoint-20", "checkpoint-40", "checkpoint-100",
    ]  # fmt: skip
    prompts = [Prompt((Message("user", p),)) for p in ("写一条好评", "Rate the food", "早餐")]
    said: list[str] = []
    summary = cmp.compare([ppo], sft, prompts, _Length(), NaiveBayesJudge({"好": 1.0}, 0.0), [0, 1],
                          cmp.Decoding(max_new_tokens=6), tmp_path / "o", checkpoints=True,
                          progress=said.append)  # fmt: skip
    found = summary["runs"][1]["frontier"]
    assert found["source"] == "checkpoints"
    assert [p["step"] for p in found["points"]] == [0, 20, 100, 120]
    start, _, same, end = found["points"]
    assert start["kl"]["value"] == 0
    assert start["reward"]["value"] == pytest.approx(summary["runs"][0]["reward"]["mean"])
    # checkpoint-100 holds the final weights: the same samples, the same figures.
    assert {**same, "step": 120} == end
    assert end["reward"]["value"] == pytest.approx(summary["runs"][1]["reward"]["mean"])
    assert end["kl"]["value"] == pytest.approx(summary["runs"][1]["kl"]["value"])
    assert any("checkpoint-40 is left out" in line for line in said)


class _Length:
    name = "length"

    def __call__(self, prompts, completions, finished):
        return [float(len(c)) for c in completions]
