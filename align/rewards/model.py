"""A reward-model checkpoint as a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.records import Message


class ModelReward:
    """Scores with a trained reward model, which reads texts with its own tokenizer and template.

    path: the checkpoint's folder. Whether the policy ended a completion itself is not visible to
    the model (it reads every text as a complete turn); the missing-EOS rule of
    `align.rewards.shaping` is what treats unfinished completions.
    """

    def __init__(self, path: str | Path, device: Any = None, batch_size: int = 16) -> None:
        from reward_models.scorer import Scorer

        folder = Path(path)
        # Stages keep their model in …/<stage>/final: "reward" says more than "final".
        self.name = folder.parent.name if folder.name == "final" else folder.name
        self.scorer = Scorer(path, device=device, batch_size=batch_size)

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the model's scores; its contract says their unit."""
        return self.scorer.score(prompts, completions)
