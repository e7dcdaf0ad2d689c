"""Share of a text's n-grams that stood earlier in it, averaged over texts.

    repetition = evaluate.load("align/evaluation/metrics/repetition")
    repetition.compute(predictions=[…], n=4)

repetition_4: the mean over texts; the number is n.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate

from align.evaluation import metrics


class Repetition(evaluate.Metric):
    """Mean over texts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Welleck et al. 2020",
            inputs_description="predictions: texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )  # fmt: skip

    def _compute(self, predictions: Any, n: int = 4) -> dict[str, Any]:
        values = [metrics.repetition(text, n) for text in predictions]
        return {f"repetition_{n}": math.fsum(values) / len(values)}
