"""What a reward model or function gives for completions.

    reward = evaluate.load("align/evaluation/metrics/reward")
    reward.compute(predictions=[completions], references=[prompts], reward="runs/reward")

reward: a reward run or checkpoint, module:function, file.py:function, or a callable (prompts,
completions, finished) → floats. Figures: mean, std, p1, p5, p10, min, scores.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np

from align.evaluation import metrics


class Reward(evaluate.Metric):
    """Mean, spread, worst cases, and every score."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: completions. references: prompts.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )  # fmt: skip

    def _compute(self, predictions: Any, references: Any, reward: Any = None) -> dict[str, Any]:
        from align.evaluation.sampling import load_reward
        from align.records import parse_messages

        source = load_reward(reward) if isinstance(reward, str) else reward
        prompts = [list(parse_messages(text)) for text in references]
        scores = [float(x) for x in source(prompts, list(predictions), [True] * len(prompts))]
        return {
            "mean": math.fsum(scores) / len(scores), "std": float(np.std(scores)),
            **metrics.worst_cases(scores), "scores": scores,
        }  # fmt: skip
