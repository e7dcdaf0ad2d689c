"""The loss-spike guard: stop before a bad step spoils the weights, or leave that step out."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

from align.distributed import any_rank

_WINDOW, _ENOUGH = 50, 10
# A loss near zero may double at every step: below this rise nothing is a spike. Nats.
_FLOOR = 1.0


class TrainingDiverged(RuntimeError):
    """The loss jumped or is not finite; the message says what to look at."""


class Guard:
    """Watches the loss of every optimiser step.

    go_on: leave out bad steps (skipped counts them) instead of stopping. factor: a loss above
    factor × the median of the last 50 steps, and more than 1 nat above it, is a spike.
    """

    def __init__(self, go_on: bool, factor: float) -> None:
        self.go_on, self.factor = go_on, factor
        self.recent: deque[float] = deque(maxlen=_WINDOW)
        self.skipped, self.skip_next = 0, False

    def loss(self, value: float, step: int, checkpoint: str | None) -> None:
        """Judge the loss of a step before its backward pass. Raises TrainingDiverged."""
        usual = median(self.recent) if len(self.recent) >= _ENOUGH else math.inf
        limit = max(self.factor * usual, usual + _FLOOR) if usual > 0 else math.inf
        if math.isfinite(value) and value <= limit:
            self.recent.append(value)
            return
        if math.isfinite(value):
            what = f"the loss jumped to {value:.4g}; the last steps' median is {usual:.4g}"
        else:
            what = f"the loss is {value}"
        self.bad(what, step, checkpoint)

    def bad(self, what: str, step: int, checkpoint: str | None) -> None:
        """Mark the step to be left out, or raise TrainingDiverged."""
        if self.go_on:
            self.skip_next = True
            return
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint yet"
        raise TrainingDiverged(
            f"step {step}: {what}. {kept}. Lower train.learning_rate, lengthen train.warmup_steps, "
            "look at the data of this step; or set train.loss_spike.action: continue to leave such "
            "steps out."
        )


class GuardCallback(TrainerCallback):
    """Drops the gradient of a step that the guard refused, or that is not finite."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradient between backward and step (DeepSpeed has stepped by then)."""
        trainer = self.trainer
        guard: Guard = trainer.guard
        if not trainer.is_deepspeed_enabled:
            parameters = [p for p in trainer.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            if any_rank(not bool(torch.isfinite(norm))):
                what = "the gradient is not finite"
                guard.bad(what, state.global_step + 1, trainer._last_checkpoint())
        if guard.skip_next:
            guard.skip_next = False
            guard.skipped += 1
            trainer.model.zero_grad(set_to_none=True)
