"""What is computed from texts and scores: functions, and `evaluate` modules that call them.

The folders here are modules for `evaluate.load("align/evaluation/metrics/rouge")`. They are loaded
by path, never imported: some have the name of a function of this package.
"""

from align.evaluation.metrics.statistics import (
    Estimate,
    LengthControlled,
    WinRate,
    bootstrap,
    direction_agreement,
    length_controlled,
    outcomes_from_scores,
    win_rate,
)
from align.evaluation.metrics.text import (
    distinct_n,
    ngrams,
    repetition,
    self_bleu,
    text_metrics,
    units,
)

__all__ = [
    "Estimate", "LengthControlled", "WinRate", "bootstrap", "direction_agreement", "distinct_n",
    "length_controlled", "ngrams", "outcomes_from_scores", "repetition", "self_bleu",
    "text_metrics", "units", "win_rate",
]  # fmt: skip
