"""How far probabilities are from what happened: expected calibration error and Brier score.

    calibration = evaluate.load("align/evaluation/metrics/calibration")
    calibration.compute(predictions=[0.9, 0.2], references=[1, 0], bins=10)

ece: over equal-width bins. brier: mean squared distance.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from align.evaluation import metrics


class Calibration(evaluate.Metric):
    """Both figures, in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Guo et al. 2017; Brier 1950",
            inputs_description="predictions: probabilities. references: 0 or 1.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )  # fmt: skip

    def _compute(self, predictions: Any, references: Any, bins: int = 10) -> dict[str, Any]:
        return {
            "ece": metrics.expected_calibration_error(predictions, references, bins),
            "brier": metrics.brier(predictions, references),
        }
