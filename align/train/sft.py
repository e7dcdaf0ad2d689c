"""Supervised fine-tuning: −Σ log p over the learned tokens, divided by their global number.

trl's SFTTrainer is the oracle in tests/parity. It is not the parent: what the Trainer wraps here
is the module that every method shares, and one rule of normalisation holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align import losses
from align.groups import GroupBatch, TokenGroup
from align.policy import Policy
from align.train import examples
from align.train.base import AlignTrainer
from align.train.meter import Objective
from align.train.runner import callbacks, run_training, training_arguments, write_counts

if TYPE_CHECKING:
    from align.config import Config


class TokenTrainer(AlignTrainer):
    """Next-token loss; SFT and pre-training."""

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Σ −log p(token), nats."""
        logps = model(batch, want=("logps",))["logps"]
        return Objective(losses.sft(logps).sum(), {})

    def items(self, groups: Sequence[TokenGroup]) -> float:
        """Learned tokens."""
        return float(sum(sum(g.mask_of(k)) for g in groups for k in range(len(g.completions))))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the perplexity beside each loss per token."""
        import math

        for name in [n for n in logs if n in ("loss", "eval_loss")]:
            if self.nll(logs, name) < 50 and (self.finite or name == "eval_loss"):
                logs[name.replace("loss", "perplexity")] = math.exp(self.nll(logs, name))
        super().log(logs, start_time)

    def nll(self, logs: dict[str, float], name: str) -> float:
        """What the perplexity is exp of: the loss itself, where nothing is added to it."""
        return logs[name]


def train(config: Config) -> dict[str, float]:
    """Fine-tune on data.sft and return the last figures."""
    args = training_arguments(config)
    policy = Policy.load(config)
    train_groups, held_out, counts = examples.sft_groups(config, policy.tokenizer)
    write_counts(config, counts)
    trainer = TokenTrainer(policy, config, args, train_groups, held_out, callbacks(config))
    return run_training(trainer, config)
