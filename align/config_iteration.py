# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and a range
"""The section `iterate` of the configuration; the others are in config_schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.config_key import key


@dataclass
class IterateStop:
    """When rounds end before their number is reached."""

    patience: int = key(2, "rounds without a better judge one behind the other", ge=1)
    min_delta: float = key(0.0, "what the judge must rise by to count as better", ge=0)


@dataclass
class Iterate:
    """Rounds of sampling, choosing and training (recipes/iterate.py)."""

    method: Literal["dpo", "orpo", "sft"] = key("dpo", "what a round trains")
    rounds: int = key(3, "rounds at most", ge=1)
    n: int = key(8, "answers sampled a prompt", ge=2)
    prompts_per_round: int | None = key(None, "prompts of a round; null: all", ge=1)
    pairs: Literal["best_worst", "all"] = key("best_worst", "which answers are compared")
    min_margin: float = key(0.0, "least difference of two rewards that makes a pair", ge=0)
    min_score: float | None = key(None, "sft: least reward of an answer to imitate")
    unfinished: Literal["lose", "keep"] = key("lose", "whether a cut-off answer may be the better")
    judge: str | None = key(None, "gold judge, not trained on; null: eval.judge")
    reference: Literal["first", "previous"] = key(
        "previous",
        "dpo: the round before, or the first policy, trained anew on all pairs so far",
    )
    stop: IterateStop = key(factory=IterateStop)
