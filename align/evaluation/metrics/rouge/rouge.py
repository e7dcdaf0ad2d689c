"""ROUGE-1, -2, -L and -Lsum F-measures; the arithmetic is rouge-score's. Also for Chinese.

    rouge = evaluate.load("align/evaluation/metrics/rouge")
    rouge.compute(predictions=[…], references=[…], tokenizer="char")

tokenizer: default (rouge-score's: a-z and 0-9 only), char, jieba, or auto: char where the
references are Chinese. use_aggregator: False gives a list for each type, not its mean.
"""

from __future__ import annotations

import math
from typing import Any

import evaluate

from align.evaluation import metrics
from align.evaluation.metrics.features import WITH_REFERENCES


class Rouge(evaluate.Metric):
    """Mean F-measures over texts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Lin 2004",
            inputs_description="predictions: texts. references: a text or texts for each.",
            features=list(WITH_REFERENCES),
        )  # fmt: skip

    def _compute(
        self,
        predictions: Any,
        references: Any,
        tokenizer: Any = "default",
        use_stemmer: bool = False,
        rouge_types: Any = None,
        use_aggregator: bool = True,
    ) -> dict[str, Any]:
        found = metrics.rouge(
            predictions, references, tokenizer=tokenizer, stemmer=use_stemmer,
            types=rouge_types or metrics.ROUGE_TYPES,
        )  # fmt: skip
        if not use_aggregator:
            return dict(found)
        return {name: math.fsum(values) / len(values) for name, values in found.items()}
