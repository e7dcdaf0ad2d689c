"""How long texts are: CJK characters and words, code points, and tokens of a tokenizer.

    length = evaluate.load("align/evaluation/metrics/length")
    length.compute(predictions=[…], tokenizer="folder")

length_units, length_chars, and length_tokens where a tokenizer (a folder or the object) is given.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from align.evaluation import metrics


class Length(evaluate.Metric):
    """Mean lengths."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )  # fmt: skip

    def _compute(self, predictions: Any, tokenizer: Any = None) -> dict[str, Any]:
        count = len(predictions)
        found = {
            "length_units": sum(len(metrics.units(t)) for t in predictions) / count,
            "length_chars": sum(map(len, predictions)) / count,
        }
        if tokenizer is not None:
            if isinstance(tokenizer, str):
                from align.checkpoints import read_tokenizer

                tokenizer = read_tokenizer(tokenizer, "tokenizer")
            ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in predictions]
            found["length_tokens"] = sum(map(len, ids)) / count
        return found
