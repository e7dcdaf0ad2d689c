"""DPO and its relatives, and ORPO: pairs of completions, sequence log-probs, one pass a group.

Every pair of a group is a term; a candidate's log-probs are computed once however many pairs it is
in. Losses are averaged by the pairs' weights, which add up to 1 a group
(one a group and annotator under reward.aggregate: per_annotator).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import losses, losses_dpo
from align.config_errors import UserError
from align.groups import GroupBatch, TokenGroup
from align.policy import Policy
from align.train import examples
from align.train.base import AlignTrainer
from align.train.meter import Objective
from align.train.reference_cache import cache_reference
from align.train.runner import callbacks, run_training, training_arguments, write_counts

if TYPE_CHECKING:
    from align.config import Config


class _ImplicitRewardTrainer(AlignTrainer):
    """What both methods share: rewards of the winner and the loser."""

    def _rewards(
        self, batch: GroupBatch, a: Tensor, b: Tensor, logp_a: Tensor, logp_b: Tensor
    ) -> dict[str, Any]:
        """Figures of implicit rewards a, b and log-probs (P,), the preferred side as chosen."""
        weight, total = batch.pair_weight, batch.pair_weight.sum()
        decided = weight * (batch.pair_target != 0.5)
        swapped = batch.pair_target < 0.5
        a, b, logp_a, logp_b = (x.detach() for x in (a, b, logp_a, logp_b))
        chosen, rejected = torch.where(swapped, b, a), torch.where(swapped, a, b)
        logp_c, logp_r = torch.where(swapped, logp_b, logp_a), torch.where(swapped, logp_a, logp_b)
        right = ((chosen - rejected).sign() + 1) / 2
        return {
            "rewards/chosen": ((weight * chosen).sum(), total),
            "rewards/rejected": ((weight * rejected).sum(), total),
            "rewards/margins": ((weight * (chosen - rejected)).sum(), total),
            "rewards/accuracies": ((decided * right).sum(), decided.sum()),
            "accuracy": ((decided * right).sum(), decided.sum()),
            "logps/chosen": ((weight * logp_c).sum(), total),
            "logps/rejected": ((weight * logp_r).sum(), total),
        }


class DpoTrainer(_ImplicitRewardTrainer):
    """The DPO family; see docs/dpo.md and `align.losses_dpo`."""

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Σ weight · loss over pairs."""
        dpo = self.settings.dpo
        wants_reference = self.policy.reference in ("frozen", "adapter_off")
        out = model(batch, want=("logps", "ref_logps") if wants_reference else ("logps",))
        logps = batch.candidate_sums(out["logps"])  # (C,)
        ref: Tensor | None = None
        if wants_reference:
            self.check_reference(out["logps"], out["ref_logps"])
            ref = batch.candidate_sums(out["ref_logps"])
        elif self.policy.reference == "cached":
            ref = batch.extras["ref_logps"]
            self.check_reference(logps, ref)
        a, b = batch.pair_a, batch.pair_b
        lengths = batch.candidate_lengths()
        each = losses.dpo(
            logps[a],
            logps[b],
            ref[a] if ref is not None else None,
            ref[b] if ref is not None else None,
            beta=dpo.beta,
            loss_type=dpo.loss_type,
            label_smoothing=dpo.label_smoothing,
            target=batch.pair_target,
            lengths_chosen=lengths[a],
            lengths_rejected=lengths[b],
        )
        total = (batch.pair_weight * each).sum() + logps.sum() * 0
        rewards = dpo.beta * (logps - (0 if ref is None else ref))
        return Objective(total, self._rewards(batch, rewards[a], rewards[b], logps[a], logps[b]))


class OrpoTrainer(_ImplicitRewardTrainer):
    """ORPO: NLL of the preferred response (per token) + beta · odds-ratio term."""

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Σ weight · (nll + beta · odds) over pairs, a soft target mixing both directions."""
        logps = model(batch, want=("logps",))["logps"]
        sums = batch.candidate_sums(logps)
        means = sums / batch.candidate_lengths().clamp(min=1)
        a, b, t = means[batch.pair_a], means[batch.pair_b], batch.pair_target
        forward, log_odds = losses.orpo_odds(a, b)
        backward, _ = losses.orpo_odds(b, a)
        odds = t * forward + (1 - t) * backward
        nll = -(t * a + (1 - t) * b)
        weight, beta = batch.pair_weight, self.settings.orpo.beta
        total = (weight * (nll + beta * odds)).sum() + sums.sum() * 0
        pairs = (batch.pair_a, batch.pair_b)
        stats = self._rewards(batch, beta * a, beta * b, sums[pairs[0]], sums[pairs[1]])
        count = weight.sum()
        sign = torch.where(t < 0.5, -1.0, 1.0)
        stats |= {
            "loss/sft": ((weight * nll).sum(), count),
            "loss/odds": ((weight * odds).sum(), count),
            "log_odds": ((weight * sign * log_odds).sum(), count),
        }
        return Objective(total, stats)


def train(config: Config) -> dict[str, float]:
    """Train on data.preferences with config.method (dpo or orpo); return the last figures."""
    args = training_arguments(config)
    policy = Policy.load(config)
    train_groups, held_out, counts = examples.preference_groups(config, policy.tokenizer)
    write_counts(config, counts)
    check_targets(config, train_groups)
    kind = DpoTrainer if config.method == "dpo" else OrpoTrainer
    trainer = kind(policy, config, args, train_groups, held_out, callbacks(config))
    if policy.reference == "cached":
        cache_reference(trainer, [train_groups, held_out])
    return run_training(trainer, config)


def check_targets(config: Config, groups: Sequence[TokenGroup]) -> None:
    """Refuse soft targets where the loss sorts a whole batch and knows no single pair."""
    if config.method != "dpo" or config.dpo.loss_type not in losses_dpo.BATCH_COUPLED:
        return
    if any(pair.target not in (0.0, 1.0) for g in groups for pair in g.pairs):
        raise UserError(
            "dpo.loss_type", config.dpo.loss_type, "cannot take soft targets (split votes)",
            "Use reward.aggregate: majority, or another loss",
        )  # fmt: skip
