"""SQuAD's F1 over words, of Chinese over characters, in [0, 1]; the best reference counts.

    f1 = evaluate.load("align/evaluation/metrics/f1")
    f1.compute(predictions=[…], references=[[…], …])

f1: the mean; exact_match: share equal after the same normalisation.
"""

from __future__ import annotations

import math
from typing import Any

import evaluate

from align.evaluation import metrics
from align.evaluation.metrics.features import WITH_REFERENCES


class F1(evaluate.Metric):
    """Mean F1 over texts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Rajpurkar et al. 2016",
            inputs_description="predictions: texts. references: a text or texts for each.",
            features=list(WITH_REFERENCES),
        )  # fmt: skip

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        pairs = list(zip(predictions, references, strict=True))
        values = [metrics.f1(p, r) for p, r in pairs]
        hits = [metrics.exact_match(p, r, articles=True) for p, r in pairs]
        return {
            "f1": math.fsum(values) / len(values), "exact_match": math.fsum(hits) / len(hits),
        }  # fmt: skip
