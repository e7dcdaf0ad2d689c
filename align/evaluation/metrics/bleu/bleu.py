"""Corpus BLEU, 0 to 100; the arithmetic is sacrebleu's.

    bleu = evaluate.load("align/evaluation/metrics/bleu")
    bleu.compute(predictions=[…], references=[[…], …])

tokenize: a tokenizer of sacrebleu; auto: zh where the references are Chinese, else 13a.
"""

from __future__ import annotations

from typing import Any

import evaluate

from align.evaluation import metrics
from align.evaluation.metrics.features import WITH_REFERENCES


class Bleu(evaluate.Metric):
    """Corpus BLEU with its signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Papineni et al. 2002; Post 2018",
            inputs_description="predictions: texts. references: a text or texts for each.",
            features=list(WITH_REFERENCES),
        )  # fmt: skip

    def _compute(self, predictions: Any, references: Any, tokenize: str = "auto") -> dict[str, Any]:
        return metrics.bleu(predictions, references, tokenize=tokenize)
