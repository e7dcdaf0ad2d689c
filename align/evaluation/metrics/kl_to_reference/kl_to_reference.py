"""KL of a policy to a reference, estimated on the policy's own samples.

    kl_to_reference = evaluate.load("align/evaluation/metrics/kl_to_reference")
    kl.compute(predictions=[[-0.1, -2.0]], references=[[-0.2, -1.5]])

predictions, references: log-probabilities of each completion's tokens under policy and reference.
Or completions and prompts as texts, with model and reference (folders, or (model, tokenizer)).
Figures: kl, Σ log π − log π_ref a completion, averaged; kl_per_token; k3_per_token, the mean of
exp(−d) − 1 + d for the log-ratio d, which is never negative (Schulman 2020).
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate

from align.evaluation.perplexity import logps_of


class KlToReference(evaluate.Metric):
    """Mean log-ratio of completions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="log-probabilities under both; or completions and prompts.",
            features=[
                datasets.Features(
                    {
                        "predictions": datasets.Sequence(datasets.Value("float64")),
                        "references": datasets.Sequence(datasets.Value("float64")),
                    }
                ),
                datasets.Features(
                    {
                        "predictions": datasets.Value("string"),
                        "references": datasets.Value("string"),
                    }
                ),
            ],
        )  # fmt: skip

    def _compute(
        self, predictions: Any, references: Any, model: Any = None, reference: Any = None
    ) -> dict[str, Any]:
        if model is not None:
            predictions, references = logps_of(predictions, references, model, reference)
        pairs = list(zip(predictions, references, strict=True))
        ratios = [[a - b for a, b in zip(p, r, strict=True)] for p, r in pairs]
        tokens = [d for row in ratios for d in row]
        total = math.fsum(tokens)
        return {
            "kl": total / len(ratios), "kl_per_token": total / len(tokens),
            "k3_per_token": math.fsum(math.expm1(-d) + d for d in tokens) / len(tokens),
        }  # fmt: skip
