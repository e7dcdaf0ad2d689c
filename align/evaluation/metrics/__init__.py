"""What is computed from texts and scores: functions, and `evaluate` modules that call them.

The folders here are modules for `evaluate.load("align/evaluation/metrics/rouge")`. They are loaded
by path, never imported: some have the name of a function of this package.
"""

from align.evaluation.metrics.overlap import (
    ROUGE_TYPES,
    bleu,
    chrf,
    exact_match,
    f1,
    is_chinese,
    normalise,
    rouge,
)
from align.evaluation.metrics.probability import (
    brier,
    expected_calibration_error,
    pass_at_k,
    tries,
    worst_cases,
)
from align.evaluation.metrics.statistics import (
    Estimate,
    LengthControlled,
    WinRate,
    bootstrap,
    direction_agreement,
    length_controlled,
    outcomes_from_scores,
    share,
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
    "ROUGE_TYPES", "Estimate", "LengthControlled", "WinRate", "bleu", "bootstrap", "brier", "chrf",
    "direction_agreement", "distinct_n", "exact_match", "expected_calibration_error", "f1",
    "is_chinese", "length_controlled", "ngrams", "normalise", "outcomes_from_scores", "pass_at_k",
    "repetition", "rouge", "self_bleu", "share", "text_metrics", "tries", "units", "win_rate",
    "worst_cases",
]  # fmt: skip
