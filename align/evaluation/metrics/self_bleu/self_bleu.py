"""Mean BLEU of each text against all others, in [0, 1]; high means alike.

    self_bleu = evaluate.load("align/evaluation/metrics/self_bleu")
    self_bleu.compute(predictions=[…])

max_n: the longest n-grams. limit: the first texts are used.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from align.evaluation import metrics


class SelfBleu(evaluate.Metric):
    """One figure of a set of texts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Zhu et al. 2018",
            inputs_description="predictions: texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )  # fmt: skip

    def _compute(self, predictions: Any, max_n: int = 4, limit: int = 200) -> dict[str, Any]:
        return {"self_bleu": metrics.self_bleu(predictions, max_n=max_n, limit=limit)}
