"""A reward model as a judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.evaluation.logistic import sigmoid
from align.records import Message


class RewardJudge:
    """A reward model as a judge: `score` are its rewards, `prefer` is σ(r_a − r_b)."""

    def __init__(
        self, path: str | Path, *, device: Any = None, batch_size: int = 16, name: str | None = None
    ) -> None:
        """Load the reward model; path: a reward checkpoint folder."""
        from reward_models.scorer import Scorer

        self.name = name or _folder_name(path)
        self._scorer = Scorer(str(path), device=device, batch_size=batch_size)

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
    ) -> list[float]:
        """Reward of each completion."""
        return self._scorer.score([list(p) for p in prompts], list(completions))

    def prefer(
        self, prompts: Sequence[Sequence[Message]], a: Sequence[str], b: Sequence[str]
    ) -> list[float]:
        """Bradley–Terry probability that a beats b."""
        pairs = zip(self.score(prompts, a), self.score(prompts, b), strict=True)
        return [sigmoid(x - y) for x, y in pairs]


def _folder_name(path: str | Path) -> str:
    parts: Iterable[str] = Path(path).parts
    kept = [p for p in parts if p not in ("final", "/", ".")]
    return kept[-1] if kept else str(path)
