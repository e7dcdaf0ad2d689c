"""exp of the mean negative log-likelihood of a token, over all texts together.

    perplexity = evaluate.load("align/evaluation/metrics/perplexity")
    perplexity.compute(predictions=[…], model="runs/sft")

model: a run directory, a model or adapter folder, or (model, tokenizer). window, stride, packed:
see `align.evaluation.perplexity`. Figures: perplexity, nll_per_token, nll_per_char, tokens, chars,
texts.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class Perplexity(evaluate.Metric):
    """Token-weighted perplexity."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            inputs_description="predictions: texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )  # fmt: skip

    def _compute(
        self,
        predictions: Any,
        model: Any = None,
        window: int | None = None,
        stride: int | None = None,
        packed: bool = False,
        max_tokens: int = 4096,
    ) -> dict[str, Any]:
        from align.checkpoints import load_causal_lm
        from align.evaluation.perplexity import perplexity

        given = isinstance(model, tuple)
        lm, tokenizer = model if given else load_causal_lm(model, need_template=False)
        found = perplexity(
            lm,
            tokenizer,
            predictions,
            window=window,
            stride=stride,
            packed=packed,
            max_tokens=max_tokens,
        )
        return found.to_json()
