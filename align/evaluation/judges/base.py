"""The two protocols: a judge scores single texts, or says which of two is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from align.records import Message


@runtime_checkable
class Judge(Protocol):
    """Scores single completions; a higher score is better."""

    name: str

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
    ) -> list[float]:
        """One float for each (prompt, completion); NaN where the judge gave none."""
        ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """Compares two completions for a prompt."""

    name: str

    def prefer(
        self, prompts: Sequence[Sequence[Message]], a: Sequence[str], b: Sequence[str]
    ) -> list[float]:
        """P(a is better than b) for each row, in [0, 1]; 0.5 is a tie."""
        ...


def report_of(judge: Any) -> dict[str, Any]:
    """What a judge says about its own work (counts, flips, cost); {} where it says nothing."""
    return judge.report() if hasattr(judge, "report") else {}
