"""Reward model: Bradley–Terry on the pairs of each group, K candidates read in one pass.

    L = Σ_pairs w · [−t·log σ(r_a − r_b − m) − (1−t)·log σ(r_b − r_a − m) + c·(r_a + r_b)²] / Σ w

t: share of votes for a; m: margin; c: reward.center_coef. A group's weights add up to 1, so one
prompt counts once however many candidates it has (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import losses
from align.distributed import barrier, gather_objects, rank
from align.files import fingerprint
from align.groups import GroupBatch, TokenGroup
from align.policy import Policy
from align.train import examples
from align.train.base import AlignTrainer, Objective
from align.train.runner import (
    callbacks,
    final_evaluation,
    run_training,
    training_arguments,
    write_counts,
)
from reward_models.contract import make_contract, write_contract

if TYPE_CHECKING:
    from align.config import Config

_REFERENCE_SAMPLES = 2000  # candidates whose scores give the contract's mean and deviation


class RewardTrainer(AlignTrainer):
    """Bradley–Terry with soft targets, margins, weights and centring."""

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Weighted sum over pairs, mean over heads."""
        scores = model(batch, want=("scores",))["scores"]  # (C, heads)
        a, b = scores[batch.pair_a], scores[batch.pair_b]  # (P, heads)
        target, weight = batch.pair_target, batch.pair_weight
        margin = batch.pair_margin[:, None] if self.settings.reward.margin else None
        each = losses.bradley_terry(a, b, target=target[:, None].expand_as(a), margin=margin)
        coef = self.settings.reward.center_coef
        if coef:
            each = each + coef * losses.center(a + b)
        # scores.sum() * 0: a batch without pairs still touches every parameter.
        total = (weight * each.mean(-1)).sum() + scores.sum() * 0
        return Objective(total, self._figures(scores, a, b, batch))

    def _figures(self, scores: Tensor, a: Tensor, b: Tensor, batch: GroupBatch) -> dict[str, Any]:
        """Accuracy of decided pairs (equal scores count half), reward margin, scores."""
        gap = (a - b).mean(-1).detach()
        decided = (batch.pair_target != 0.5).float() * batch.pair_weight
        sign = torch.where(batch.pair_target > 0.5, 1.0, -1.0)
        right = ((sign * gap).sign() + 1) / 2
        rows = scores.mean(-1).detach()
        real = batch.pair_weight.numel() > 0
        return {
            "accuracy": ((decided * right).sum(), decided.sum()),
            "rewards/margins": ((decided * sign * gap).sum(), decided.sum()),
            "score/mean": (rows.sum() if real else 0.0, rows.numel() if real else 0),
        }


def train(config: Config) -> dict[str, float]:
    """Train on data.preferences and return the last figures."""
    args = training_arguments(config)
    policy = Policy.load(config, role="reward")
    train_groups, held_out, counts = examples.preference_groups(
        config, policy.tokenizer, keep_end_token=True
    )
    write_counts(config, counts)
    trainer = RewardTrainer(policy, config, args, train_groups, held_out, callbacks(config))

    def save(final: Path) -> None:
        scores = reference_scores(trainer, held_out or train_groups)
        state = trainer.trained_state()
        accuracy = final_evaluation(trainer).get("eval_accuracy")
        if rank() == 0:
            policy.save(final, state)
            write_contract(
                final,
                make_contract(
                    policy.tokenizer,
                    max_length=config.data.max_length,
                    max_prompt_length=config.data.max_prompt_length,
                    truncation=config.data.truncation,
                    heads=config.reward.heads,
                    scores=scores,
                    data_fingerprint=fingerprint(str(config.data.preferences)),
                    held_out_accuracy=accuracy,
                    base_fingerprint=policy.fingerprint,
                ),
            )
        barrier()

    return run_training(trainer, config, save=save)


def reference_scores(trainer: RewardTrainer, groups: Sequence[TokenGroup]) -> list[float]:
    """Scores of some candidates by the finished model, from all ranks."""
    chosen, candidates = [], 0
    for group in groups:
        if candidates >= _REFERENCE_SAMPLES:
            break
        chosen.append(group)
        candidates += len(group.completions)
    model: Any = trainer.model_wrapped
    model.eval()
    mine: list[float] = []
    with torch.no_grad():
        for part, _, batch in trainer.each_once(chosen):
            scores = model(batch, want=("scores",))["scores"].mean(-1)
            mine += scores.tolist() if part else []
    return [score for part in gather_objects(mine) for score in part]
