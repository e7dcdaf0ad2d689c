"""Learning-rate schedules that depend on the number of steps, which only the trainer knows."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

DECAY_SHARE = 0.2
"""Share of a warmup–stable–decay schedule that decays (Hu et al. 2024, arXiv:2404.06395)."""


class Scheduled(Trainer):
    """The Trainer, whose warmup–stable–decay schedule knows how long it decays."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's; where lr_scheduler_kwargs do not say it, the last 20 % decay."""
        args: Any = self.args
        if args.lr_scheduler_type == "warmup_stable_decay":
            given = dict(args.lr_scheduler_kwargs or {})
            given.setdefault("num_decay_steps", max(1, round(num_training_steps * DECAY_SHARE)))
            args.lr_scheduler_kwargs = given
        return super().create_scheduler(num_training_steps, optimizer)
