"""Distinct n-grams divided by all n-grams of a set of texts.

    distinct_n = evaluate.load("align/evaluation/metrics/distinct_n")
    distinct_n.compute(predictions=[…], n=[1, 2])

distinct_1, distinct_2, …: it falls as the number of texts grows.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from align.evaluation import metrics


class DistinctN(evaluate.Metric):
    """One figure for each n."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Li et al. 2016",
            inputs_description="predictions: texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )  # fmt: skip

    def _compute(self, predictions: Any, n: Any = (1, 2)) -> dict[str, Any]:
        orders = [n] if isinstance(n, int) else n
        return {f"distinct_{k}": metrics.distinct_n(predictions, k) for k in orders}
