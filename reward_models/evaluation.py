"""How good a reward model is on held-out groups: accuracy, calibration, and length alone beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from align.records import PreferenceGroup
from reward_models.evaluation_best_of_n import best_of_n
from reward_models.evaluation_calibration import ece, fit_temperature, loss, reliability
from reward_models.evaluation_length import length_baseline, length_bias
from reward_models.evaluation_pairs import Pairs, bootstrap, collect, correct, mean, slices

__all__ = ["evaluate_groups", "evaluate_scores", "excerpt", "mistakes"]

MAX_MISTAKES = 20
EXCERPT = 300


def evaluate_groups(
    scorer: Any,
    groups: Sequence[PreferenceGroup],
    *,
    aggregate: str = "soft",
    ties: str = "half",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Scores every candidate and evaluates; see ``evaluate_scores``."""
    prompts = [g.prompt for g in groups for _ in g.candidates]
    flat = scorer.score(prompts, [c.content for g in groups for c in g.candidates])
    scores, start = [], 0
    for group in groups:
        scores.append(flat[start : start + len(group.candidates)])
        start += len(group.candidates)
    return evaluate_scores(
        groups, scores, aggregate=aggregate, ties=ties, seed=seed, resamples=resamples
    )


def evaluate_scores(
    groups: Sequence[PreferenceGroup],
    scores: Sequence[Sequence[float]],
    *,
    heads: Sequence[Sequence[Sequence[float]]] | None = None,
    aggregate: str = "soft",
    ties: str = "half",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Figures of given scores, (groups, candidates).

    heads: (groups, candidates, members), where an ensemble estimates the score.
    eval_accuracy: weighted share of decided pairs (target ≠ 0.5) whose order is right, equal scores
    count half; with a 95 % bootstrap interval over groups. eval_loss: soft Bradley–Terry, nats a
    pair. eval_ece: expected calibration error of σ(Δ), 10 bins. eval_temperature: T that minimises
    the loss of σ(Δ/T). eval_length_baseline: accuracy of "the longer answer is better".
    by: accuracy in parts (``evaluation_pairs.slices``). calibration: the bins of σ(Δ), "raw" and
    with the temperature. length_bias, best_of_n, mistakes: see the functions of these names.
    Raises ValueError for scores that are not finite.
    """
    if not all(math.isfinite(score) for row in scores for score in row):
        raise ValueError("the model gives scores that are not finite")
    pairs = collect(groups, scores, heads=heads, aggregate=aggregate, ties=ties)
    decided = pairs.decided
    result: dict[str, Any] = {
        "eval_groups": len(set(pairs.group.tolist())),
        "eval_pairs": int(decided.sum()),
        "eval_ties": int((~decided).sum()),
    }
    picked = {"best_of_n": best_of_n(groups, scores, seed, resamples)}
    if not decided.any():
        return {**result, "eval_accuracy": None, **picked}
    right, weight = correct(pairs.delta)[decided], pairs.weight[decided]
    low, high = bootstrap(right, weight, pairs.group[decided], seed, resamples)
    everything = (pairs.target, pairs.weight)
    temperature = fit_temperature(pairs.delta, *everything)
    cooled = pairs.delta / temperature
    return {
        **result,
        "eval_accuracy": mean(right, weight),
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_loss": loss(pairs.delta, *everything),
        "eval_margin": mean(pairs.delta[decided], weight),
        "eval_ece": ece(pairs.delta, *everything),
        "eval_temperature": temperature,
        "eval_ece_calibrated": ece(cooled, *everything),
        "eval_length_baseline": length_baseline(pairs),
        "by": slices(pairs, seed, resamples),
        "calibration": {
            "raw": reliability(pairs.delta, *everything),
            "with_temperature": reliability(cooled, *everything),
        },
        "length_bias": length_bias(pairs, seed, resamples),
        **picked,
        "mistakes": mistakes(groups, scores, pairs),
    }


def mistakes(
    groups: Sequence[PreferenceGroup], scores: Sequence[Sequence[float]], pairs: Pairs
) -> list[dict[str, Any]]:
    """The pairs that the model orders most surely against the votes, worst first, at most 20.

    Wrong labels are often among them. Each: "group_id", "prompt", "preferred" and "other" (texts,
    shortened), "target", "scores" of the two, "delta" < 0.
    """
    wrong = np.flatnonzero(pairs.decided & (pairs.delta < 0))
    worst = wrong[np.argsort(pairs.delta[wrong], kind="stable")][:MAX_MISTAKES]
    found = []
    for i in worst.tolist():
        g, a, b = (int(x[i]) for x in (pairs.group, pairs.a, pairs.b))
        found.append(
            {
                **excerpt(groups[g], a, b, ("preferred", "other")),
                "target": float(pairs.target[i]),
                "scores": [scores[g][a], scores[g][b]],
                "delta": float(pairs.delta[i]),
            }
        )
    return found


def excerpt(group: PreferenceGroup, a: int, b: int, names: tuple[str, str]) -> dict[str, Any]:
    """Group id, prompt and two answers of a group, shortened for a table."""
    texts = [group.prompt[-1].content, group.candidates[a].text, group.candidates[b].text]
    shown = [t if len(t) <= EXCERPT else t[: EXCERPT - 1] + "…" for t in texts]
    return {
        "group_id": group.group_id,
        "prompt": shown[0],
        names[0]: shown[1],
        names[1]: shown[2],
    }
