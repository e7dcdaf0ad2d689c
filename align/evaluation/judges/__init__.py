"""Judges: who says how good a completion is, or which of two is better. No torch on import.

Definitions, files and figures: docs/judges.md.
"""

from __future__ import annotations

from align.evaluation.judges.base import Judge, PairwiseJudge, report_of
from align.evaluation.judges.llm import LLMGrader, LLMJudge
from align.evaluation.judges.load import JudgeSpec, check_judge, load_judge
from align.evaluation.judges.naive_bayes import (
    NaiveBayesJudge,
    expected_calibration_error,
    platt,
    text_ngrams,
)
from align.evaluation.judges.reward import RewardJudge
from align.evaluation.judges.swapped import SwappedJudge
from align.evaluation.judges.votes import Comparison, VotesJudge

__all__ = [
    "Comparison", "Judge", "JudgeSpec", "LLMGrader", "LLMJudge", "NaiveBayesJudge",
    "PairwiseJudge", "RewardJudge", "SwappedJudge", "VotesJudge", "check_judge",
    "expected_calibration_error", "load_judge", "platt", "report_of", "text_ngrams",
]  # fmt: skip
