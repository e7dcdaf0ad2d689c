"""The loss-spike guard: stop before a bad step spoils the weights, or leave that step out."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from transformers import TrainerCallback

from align.checkpoint_files import newest
from align.distributed import any_rank, total_norm

_WINDOW, _ENOUGH = 50, 10
SCALER_STEPS = 20
"""Steps in a row that float16's loss scaler may leave out; each halves its scale."""
# A loss near zero may double at every step: below this rise nothing is a spike. Nats.
_FLOOR = 1.0


class TrainingDiverged(RuntimeError):
    """The loss jumped or is not finite; the message says what to look at."""


class Guard:
    """Watches the loss of every optimiser step.

    go_on: leave out bad steps (skipped counts them) instead of stopping; without can_skip, which
    DeepSpeed takes away, it stops all the same. factor: a loss above factor × the median of the
    last 50 steps, and more than 1 nat above it, is a spike.
    """

    def __init__(self, go_on: bool, factor: float) -> None:
        self.go_on, self.factor, self.can_skip = go_on, factor, True
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
        if self.go_on and self.can_skip:
            self.skip_next = True
            return
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint yet"
        more = "; or set train.loss_spike.action: continue to leave such steps out"
        raise TrainingDiverged(
            f"step {step}: {what}. {kept}. Lower train.learning_rate, lengthen train.warmup_steps, "
            "clip harder with train.max_grad_norm, "
            f"look at the data of this step{more if self.can_skip else ''}."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: a resumed run judges by the same losses."""
        return {"recent": list(self.recent), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.recent = deque(state["recent"], maxlen=_WINDOW)
        self.skipped = state["skipped"]


class GuardCallback(TrainerCallback):
    """Drops the gradient of a step that the guard refused, or that is not finite."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._scaled = 0  # steps in a row that the loss scaler left out

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradient before the step, or before a checkpoint where DeepSpeed stepped."""
        trainer = self.trainer
        guard: Guard = trainer.guard
        finite = not any_rank(not math.isfinite(self._norm()))
        self._scaled = 0 if finite else self._scaled + 1
        # A scale that is too large is how a float16 run begins: the scaler finds a smaller one.
        scales = trainer.accelerator.scaler is not None and self._scaled <= SCALER_STEPS
        if not finite and not scales:
            what = "the gradient is not finite"
            guard.bad(what, state.global_step + 1, newest(str(args.output_dir)))
        if guard.skip_next:
            guard.skip_next = False
            guard.skipped += 1
            trainer.model.zero_grad(set_to_none=True)

    def _norm(self) -> float:
        """Norm of the gradient of this step."""
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            norm = trainer.model_wrapped.get_global_grad_norm()
            return 0.0 if norm is None else float(norm)
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        return total_norm(gradients)
