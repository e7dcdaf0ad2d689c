"""Where PPO stands between two steps, its clock, and the moving average of the policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

if TYPE_CHECKING:
    from align.train.meter import Meter
    from align.train.ppo import PpoTrainer


class Position:
    """The next step to run: update, pass (epoch) and minibatch.

    approx_kl: [sum, tokens] over the pass so far, this rank's. update_of_step: the update that the
    step which is running now belongs to (`update` may already name the next one).
    """

    def __init__(self, epochs: int, minibatches: int) -> None:
        self.epochs, self.minibatches = epochs, minibatches
        self.update = self.epoch = self.minibatch = self.update_of_step = 0
        self.approx_kl = torch.zeros(2, dtype=torch.float64)

    def pass_ended(self) -> bool:
        """Whether the last step was the last of its pass."""
        return self.minibatch == self.minibatches

    def end_pass(self, target_kl: float | None, reduce: Callable[[Tensor], Tensor]) -> bool:
        """Go on to the next pass, or to the next update when the policy moved too far.

        Returns whether the update ended.
        """
        total, tokens = reduce(self.approx_kl).tolist()
        far = target_kl is not None and tokens > 0 and total / tokens > target_kl
        self.epoch, self.minibatch = self.epoch + 1, 0
        ended = far or self.epoch == self.epochs
        if ended:
            self.update, self.epoch = self.update + 1, 0
        self.approx_kl = torch.zeros(2, dtype=torch.float64)
        return ended

    def advance(self) -> None:
        """Count the step that was just handed out."""
        self.update_of_step = self.update
        self.minibatch += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        names = ("update", "epoch", "minibatch", "update_of_step")
        return {n: getattr(self, n) for n in names} | {"approx_kl": self.approx_kl.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        for name in ("update", "epoch", "minibatch", "update_of_step"):
            setattr(self, name, state[name])
        self.approx_kl = torch.tensor(state["approx_kl"], dtype=torch.float64)


class Clock:
    """Seconds of the current update, and the speed of the last whole one.

    speed: completion tokens of all ranks per second of the update, rollout and scoring included;
    before the first update ended, so far.
    """

    def __init__(self) -> None:
        self.tokens = self.seconds = self.optimising = 0.0
        self._whole: float | None = None
        self._since = time.monotonic()

    def rollout_made(self, tokens: float, seconds: float) -> None:
        """Begin an update. tokens: completion tokens of all ranks; seconds: sampling and scores."""
        self.tokens, self.seconds, self.optimising = tokens, seconds, 0.0

    def step_begins(self) -> None:
        """Start timing a step."""
        self._since = time.monotonic()

    def step_ended(self) -> None:
        """Add the step to its update."""
        self.optimising += time.monotonic() - self._since

    def update_ended(self, meter: Meter) -> None:
        """Log the update's steps."""
        meter.add({"time/optimise": (self.optimising, 1.0)})
        self._whole = self._rate()

    @property
    def speed(self) -> float:
        """Tokens per second, see the class."""
        return self._rate() if self._whole is None else self._whole

    def _rate(self) -> float:
        passed = self.seconds + self.optimising
        return self.tokens / passed if passed else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: an update may span two processes."""
        names = ("tokens", "seconds", "optimising", "_whole")
        return {n: getattr(self, n) for n in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        for name, value in state.items():
            setattr(self, name, value)


class StepEnd(TrainerCallback):
    """Tells the trainer and its clock when an optimiser step begins and ends."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step's micro-batches are there; a rollout, where one was due, is made."""
        self.trainer.clock.step_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the step is logged, saved and evaluated."""
        self.trainer.clock.step_ended()
        self.trainer.step_ended()


def dropout_off(module: nn.Module) -> None:
    """Set every dropout layer to 0, those of adapters too.

    With dropout the ratio of the first minibatch is not 1: the rollout was measured without.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0


class Ema(TrainerCallback):
    """Exponential moving average of the policy's trained weights, shadow ← d·shadow + (1−d)·w."""

    def __init__(self, decay: float, module: nn.Module) -> None:
        self.decay, self.module = decay, module
        self.shadow = {n: p.detach().cpu().clone() for n, p in self._trained()}

    def _trained(self) -> list[tuple[str, Tensor]]:
        named = self.module.named_parameters()
        return [(n, p) for n, p in named if p.requires_grad and n.startswith("lm.")]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in the weights after a step."""
        for name, parameter in self._trained():
            self.shadow[name].lerp_(parameter.detach().cpu(), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict()`."""
        self.shadow = {name: tensor.clone() for name, tensor in state.items()}
