"""A reward-model checkpoint as a reward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.records import Message, RecordError
from align.rewards.base import RewardError


class ModelReward:
    """Scores with a trained reward model, which reads texts with its own tokenizer and template.

    path: the checkpoint's folder. calibrated: scores in standard deviations from the mean of the
    reference samples in the checkpoint's contract; unlike running statistics these never move, so a
    score means the same in every run and at every step. Whether the policy ended a completion
    itself is not visible to the model (it reads every text as a complete turn); the missing-EOS
    rule of `align.rewards.shaping` is what treats unfinished completions. in_parts: its weights are
    read as ZeRO-3 shards them. policy: an adapter of its base is put on it and not loaded apart.
    Both have to be run by the policy's engine (`join`), which in_parts says.
    Raises UserError, naming field, where the folder holds no usable reward model.
    """

    def __init__(
        self,
        path: str | Path,
        device: Any = None,
        batch_size: int = 16,
        *,
        calibrated: bool = False,
        field: str = "rewards.path",
        in_parts: bool = False,
        policy: Any = None,
    ) -> None:
        from align.checkpoints import is_adapter
        from align.distributed import without_zero3
        from align.rewards.shared_base import judge_on
        from reward_models.model import read_judge
        from reward_models.scorer import Scorer

        folder = Path(path)
        # Stages keep their model in …/<stage>/final: "reward" says more than "final".
        named = folder.resolve()
        if (named.parent.name, named.name) == ("final", "adapter"):
            named = named.parent
        self.name = named.parent.name if named.name == "final" else named.name
        self.calibrated = calibrated
        # What is read in parts has to be run by an engine (`join`); an adapter is merged first.
        judge = judge_on(policy, folder)
        self.in_parts = judge is not None or (in_parts and not is_adapter(folder))
        device = None if self.in_parts else device
        try:
            loaded = judge and (judge, *read_judge(folder, judge.head.out_features))
            with nullcontext() if self.in_parts else without_zero3():
                self.scorer = Scorer(path, device=device, batch_size=batch_size, loaded=loaded)
        except UserError as error:
            where = "" if error.field == "path" else f"{error.field} "
            raise UserError(field, str(path), f"{where}{error.reason}", error.fix) from error

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the model's scores. Raises RewardError where its template refuses a prompt."""
        try:
            return self.scorer.score(prompts, completions, calibrated=self.calibrated)
        except RecordError as error:
            if self.in_parts:
                self.scorer.score_ids([])  # other ranks have texts, and wait for this one
            raise RewardError(f"reward {self.name!r} cannot read {error}") from error

    def join(self, judges: Any, run: Callable[..., Any]) -> None:
        """Let an engine that shards weights hold this model's too.

        judges: nn.ModuleList of what the engine wraps. run: (place in the list, ids, mask, last) →
        the engine's scores.
        """
        from align.distributed import max_over_ranks

        place = len(judges)
        judges.append(self.scorer.module.eval().requires_grad_(False))
        self.scorer.run_by(
            lambda *rows: run(place, *rows), lambda batches: int(max_over_ranks(batches))
        )
