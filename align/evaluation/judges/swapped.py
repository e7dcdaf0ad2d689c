"""Pairs asked in both orders, so that a judge's taste for a place becomes a tie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from align.records import Message

# A prompt and two answers in the order in which they are shown.
Shown = tuple[Sequence[Message], str, str]
WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5}


class SwappedJudge:
    """A pairwise judge asked twice, with the positions swapped.

    verdict(prompt, first, second) returns "first", "second" or "tie", anything else counts as a
    failure to parse. A preference that does not survive the swap is a position effect and becomes a
    tie; so does a pair with a failed answer. Equal texts are a tie, and not asked about.

    counts: agreed, flipped, failed, equal say how often. places: what the single answers were,
    first, second or tie in the order shown.
    """

    def __init__(self, verdict: Callable[[Sequence[Message], str, str], str], name: str) -> None:
        """Wrap a function that sees two answers in an order."""
        self._verdicts: Callable[[list[Shown]], Sequence[str | None]]
        self._verdicts = lambda shown: [verdict(*one) for one in shown]
        self.name = name
        self.counts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    @classmethod
    def over(
        cls, verdicts: Callable[[list[Shown]], Sequence[str | None]], name: str
    ) -> SwappedJudge:
        """Wrap a function that answers many questions at once: both orders come in one call."""
        judge = cls(lambda prompt, first, second: "", name)
        judge._verdicts = verdicts
        return judge

    def prefer(
        self, prompts: Sequence[Sequence[Message]], a: Sequence[str], b: Sequence[str]
    ) -> list[float]:
        """1 where a wins in both orders or in one with a tie in the other, 0 where b does."""
        pairs = list(zip(prompts, a, b, strict=True))
        asked = [i for i, (_, x, y) in enumerate(pairs) if x != y]
        straight = [pairs[i] for i in asked]
        said = list(self._verdicts([*straight, *[(p, y, x) for p, x, y in straight]]))
        if len(asked) < len(pairs):
            self.counts["equal"] += len(pairs) - len(asked)
        self.places.update(word for word in said if word in WORTH)
        out = [0.5] * len(pairs)
        for k, i in enumerate(asked):
            out[i] = self._joined(said[k], said[len(asked) + k])
        return out

    def _joined(self, straight: str | None, swapped: str | None) -> float:
        """One outcome from the answers in both orders."""
        if straight not in WORTH or swapped not in WORTH:
            self.counts["failed"] += 1
            return 0.5
        own, other = WORTH[straight], 1 - WORTH[swapped]
        if {own, other} == {0.0, 1.0}:
            self.counts["flipped"] += 1
            return 0.5
        self.counts["agreed"] += 1
        mean = (own + other) / 2
        return 0.5 if mean == 0.5 else float(mean > 0.5)

    def report(self) -> dict[str, Any]:
        """Counts and two rates, None without answers.

        flip_rate: flipped / (agreed + flipped). first_rate: how often the first place won among
        single answers that were no tie; 0.5 is a judge without a taste for a place.
        """
        both = self.counts["agreed"] + self.counts["flipped"]
        clear = self.places["first"] + self.places["second"]
        return {
            "pairs": both + self.counts["failed"] + self.counts["equal"],
            **{k: self.counts[k] for k in ("agreed", "flipped", "failed", "equal")},
            "flip_rate": self.counts["flipped"] / both if both else None,
            "first_rate": self.places["first"] / clear if clear else None,
        }
