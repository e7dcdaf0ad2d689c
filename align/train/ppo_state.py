"""Where PPO stands between two steps, and the moving average of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


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

    def end_pass(self, target_kl: float | None, reduce: Callable[[Tensor], Tensor]) -> None:
        """Go on to the next pass, or to the next update when the policy moved too far."""
        total, tokens = reduce(self.approx_kl).tolist()
        far = target_kl is not None and tokens > 0 and total / tokens > target_kl
        self.epoch, self.minibatch = self.epoch + 1, 0
        if far or self.epoch == self.epochs:
            self.update, self.epoch = self.update + 1, 0
        self.approx_kl = torch.zeros(2, dtype=torch.float64)

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
