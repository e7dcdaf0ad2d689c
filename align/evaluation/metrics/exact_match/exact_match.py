"""Share of texts that equal one of their references after normalisation.

    exact_match = evaluate.load("align/evaluation/metrics/exact_match")
    exact_match.compute(predictions=[…], references=[…], ignore_case=True)

ignore_case, ignore_punctuation, ignore_space, ignore_numbers, ignore_articles: what does not
matter. Full-width forms always count as their narrow ones.
"""

from __future__ import annotations

import math
from typing import Any

import evaluate

from align.evaluation import metrics
from align.evaluation.metrics.features import WITH_REFERENCES


class ExactMatch(evaluate.Metric):
    """Mean of 0 and 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: texts. references: a text or texts for each.",
            features=list(WITH_REFERENCES),
        )  # fmt: skip

    def _compute(
        self,
        predictions: Any,
        references: Any,
        ignore_case: bool = False,
        ignore_punctuation: bool = False,
        ignore_space: bool = False,
        ignore_numbers: bool = False,
        ignore_articles: bool = False,
    ) -> dict[str, Any]:
        options = {
            "case": ignore_case, "punctuation": ignore_punctuation, "space": ignore_space,
            "numbers": ignore_numbers, "articles": ignore_articles,
        }  # fmt: skip
        pairs = zip(predictions, references, strict=True)
        hits = [metrics.exact_match(p, r, **options) for p, r in pairs]
        return {"exact_match": math.fsum(hits) / len(hits)}
