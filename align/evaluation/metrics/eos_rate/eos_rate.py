"""Share of completions that ended by themselves, in [0, 1].

    eos_rate = evaluate.load("align/evaluation/metrics/eos_rate")
    eos_rate.compute(predictions=[[5, 6, 0], [7, 8, 9]], eos_token_id=0)

predictions: ids of each completion with eos_token_id (one or several), or 1 and 0.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class EosRate(evaluate.Metric):
    """Mean of flags, or of whether the last id is an end."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: token ids of each completion, or flags.",
            features=[
                datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
                datasets.Features({"predictions": datasets.Value("int64")}),
            ],
        )  # fmt: skip

    def _compute(self, predictions: Any, eos_token_id: Any = None) -> dict[str, Any]:
        if eos_token_id is None:
            ended = [bool(flag) for flag in predictions]
        else:
            ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
            ended = [bool(ids) and ids[-1] in ends for ids in predictions]
        return {"eos_rate": sum(ended) / len(ended)}
