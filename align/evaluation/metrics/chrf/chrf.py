"""Corpus chrF, 0 to 100, in any script; the arithmetic is sacrebleu's.

    chrf = evaluate.load("align/evaluation/metrics/chrf")
    chrf.compute(predictions=[…], references=[[…], …])

word_order: 2 makes it chrF++.
"""

from __future__ import annotations

from typing import Any

import evaluate

from align.evaluation import metrics
from align.evaluation.metrics.features import WITH_REFERENCES


class Chrf(evaluate.Metric):
    """Corpus chrF with its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Popović 2015",
            inputs_description="predictions: texts. references: a text or texts for each.",
            features=list(WITH_REFERENCES),
        )  # fmt: skip

    def _compute(self, predictions: Any, references: Any, word_order: int = 0) -> dict[str, Any]:
        return metrics.chrf(predictions, references, word_order=word_order)
