"""Reward model: a head that learns comparisons (or ratings), K candidates read in one pass.

    comparisons  L = Σ_pairs w · [−t·log σ(Δ − m) − (1−t)·log σ(−Δ − m) + c·(r_a + r_b)²] / Σ w
                 Δ = r_a − r_b + l·log₂(|a| / |b|)
    ratings      L = Σ (output_j − (y_j − mean_j) / std_j)² / number of ratings
    both         L = [Σ ratings' errors + p · Σ_pairs w · […]] / (number of ratings + p · Σ w)

t: share of votes for a; m: margin; c: reward.center_coef; l: reward.length_coef. A group's weights
add up to 1, so one prompt counts once however many candidates it has (Ouyang et al. 2022, section
3.5). Ratings, with reward.attributes: y_j is a candidate's rating of attribute j, and r is the
weighted sum of the attributes. p: reward.pair_coef; without it pairs only measure. Several heads
are averaged, each counting a prompt as often as its bootstrap drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import losses
from align.config_errors import UserError
from align.distributed import barrier, gather_objects, rank
from align.files import fingerprint
from align.groups import GroupBatch, TokenGroup
from align.heads import find_head, head_parts
from align.policy import Policy
from align.policy_module import base_model
from align.train import examples
from align.train.base import AlignTrainer
from align.train.meter import Objective
from align.train.reward_inputs import COUNTED, RATED, RATING, Scale, column, scale_of
from align.train.runner import (
    callbacks,
    final_evaluation,
    run_training,
    training_arguments,
    write_counts,
)
from reward_models.contract import Attribute, Contract, make_contract, read_contract, write_contract
from reward_models.model import complete_adapter

if TYPE_CHECKING:
    from align.config import Config
    from align.config_schema import RewardModel

_REFERENCE_SAMPLES = 2000  # candidates whose scores give the contract's mean and deviation


def comparisons(
    outputs: Tensor, batch: GroupBatch, reward: RewardModel, counted: Tensor | None = None
) -> Tensor:
    """Weighted sum over pairs of the mean over heads; outputs, counted: (C, heads), scores."""
    scores = outputs
    if reward.length_coef:
        bonus = losses.length_bonus(batch.candidate_lengths(), reward.length_coef)
        scores = outputs + bonus[:, None]
    a, b = batch.pair_a, batch.pair_b
    target = batch.pair_target[:, None].expand(-1, outputs.shape[1])
    margin = batch.pair_margin[:, None] if reward.margin else None
    each = losses.bradley_terry(scores[a], scores[b], target=target, margin=margin)  # (P, heads)
    if reward.center_coef:
        each = each + reward.center_coef * losses.center(outputs[a] + outputs[b])
    if counted is not None:
        each = each * counted[a]
    return (batch.pair_weight * each.mean(-1)).sum()


def ratings(
    outputs: Tensor, batch: GroupBatch, scale: Scale, counted: Tensor | None = None
) -> Tensor:
    """Sum over ratings of the mean over members; outputs (C, members·A), counted (C, members)."""
    n = len(scale.mean)
    mean, std = outputs.new_tensor(scale.mean), outputs.new_tensor(scale.std)
    wanted = (column(batch, RATING, n) - mean) / std
    predicted = outputs.unflatten(1, (-1, n))  # (C, members, A)
    rated = column(batch, RATED, n)[:, None].expand_as(predicted)
    each = losses.attribute_error(predicted, wanted[:, None].expand_as(predicted), rated)
    if counted is not None:
        each = each * counted[:, :, None]
    return each.mean(1).sum()


class RewardTrainer(AlignTrainer):
    """Comparisons with soft targets, margins, weights and centring; or ratings of attributes.

    scale: of the attributes' ratings; attribute_weights: of the attributes in the score.
    """

    def __init__(self, *args: Any, scale: Scale, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reward, n = self.settings.reward, len(scale.mean)
        self.scale = scale
        self.attribute_weights = reward.attribute_weights or ([1.0 / n] * n if n else [])
        self.pair_coef = reward.pair_coef if n else 1.0

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Sum over pairs or ratings, mean over heads."""
        outputs = model(batch, want=("scores",))["scores"]  # (C, heads)
        reward = self.settings.reward
        counted = None
        if self.policy.module.training and reward.bootstrap and reward.members > 1:
            counted = column(batch, COUNTED, reward.members)
        total = outputs.new_zeros(())
        if reward.attributes:
            total = ratings(outputs, batch, self.scale, counted)
        if self.pair_coef:
            scores = self.member_scores(outputs)
            total = total + self.pair_coef * comparisons(scores, batch, reward, counted)
        # outputs.sum() * 0: a batch without pairs still touches every parameter.
        return Objective(total + outputs.sum() * 0, self._figures(outputs.detach(), batch))

    def items(self, groups: Sequence[TokenGroup]) -> float:
        """The number of ratings plus the weight of the pairs times pair_coef."""
        n = len(self.scale.mean)
        rated = sum(sum(g.extras[f"{RATED}_{j}"]) for g in groups for j in range(n))
        return rated + self.pair_coef * super().items(groups)

    def member_scores(self, outputs: Tensor) -> Tensor:
        """(C, members) scores, as `reward_models.outputs` makes them when scoring."""
        if not self.scale.mean:
            return outputs
        values = self._values(outputs)
        return values @ outputs.new_tensor(self.attribute_weights)

    def _values(self, outputs: Tensor) -> Tensor:
        """(C, members, A) attributes in the unit of their ratings."""
        mean, std = outputs.new_tensor(self.scale.mean), outputs.new_tensor(self.scale.std)
        return outputs.unflatten(1, (-1, len(self.scale.mean))) * std + mean

    def _figures(self, outputs: Tensor, batch: GroupBatch) -> dict[str, Any]:
        """Accuracy of decided pairs (equal scores count half), reward margin, scores, length."""
        scores = self.member_scores(outputs)
        rows, gaps = scores.mean(-1), scores[batch.pair_a] - scores[batch.pair_b]
        gap, weight = gaps.mean(-1), batch.pair_weight
        decided = (batch.pair_target != 0.5).float() * weight
        sign = torch.where(batch.pair_target > 0.5, 1.0, -1.0)
        right = ((sign * gap).sign() + 1) / 2
        lengths = batch.candidate_lengths()
        real = (lengths > 0).to(rows.dtype)  # fillers have no token that counts
        doublings = losses.length_bonus(lengths, 1.0)
        longer = doublings[batch.pair_a] - doublings[batch.pair_b]
        found = {
            "accuracy": ((decided * right).sum(), decided.sum()),
            "rewards/margins": ((decided * sign * gap).sum(), decided.sum()),
            "score/mean": ((real * rows).sum(), real.sum()),
            "length/slope": ((weight * gap * longer).sum(), (weight * longer**2).sum()),
        }
        if (n := gaps.shape[1]) > 1:  # by hand: std() warns about a batch without pairs
            spread = ((gaps - gap[:, None]).square().sum(-1) / (n - 1)).sqrt()
            found["heads/spread"] = ((weight * spread).sum(), weight.sum())
        for j, name in enumerate(self.settings.reward.attributes):
            rated, rating = batch.extras[f"{RATED}_{j}"], batch.extras[f"{RATING}_{j}"]
            error = self._values(outputs)[:, :, j].mean(1) - rating
            found[f"mse/{name}"] = ((rated * error**2).sum(), rated.sum())
        return found


def train(config: Config) -> dict[str, float]:
    """Train on data.preferences and return the last figures."""
    args = training_arguments(config)
    earlier = earlier_contract(config)
    policy = Policy.load(config, role="reward")
    train_groups, held_out, counts = examples.preference_groups(
        config, policy.tokenizer, keep_end_token=True
    )
    write_counts(config, counts)
    scale = scale_of(train_groups, len(config.reward.attributes))
    if earlier is not None and earlier.attributes:  # what its outputs are in
        scale = Scale(list(earlier.attribute_mean), list(earlier.attribute_std))
    trainer = RewardTrainer(
        policy, config, args, train_groups, held_out, callbacks(config), scale=scale
    )

    def save(final: Path) -> None:
        outputs = reference_outputs(trainer, held_out or train_groups)
        state = trainer.trained_state()
        accuracy = final_evaluation(trainer).get("eval_accuracy")
        if rank() == 0:
            write_model(final, trainer, state, contract_of(trainer, outputs, accuracy))
        barrier()

    return run_training(trainer, config, save=save)


def earlier_contract(config: Config) -> Contract | None:
    """The contract of the reward model that training goes on from, or None.

    Raises UserError where its outputs are others than config.reward asks for.
    """
    lora, reward = config.policy.lora, config.reward
    for folder in (lora.path if lora is not None else None, config.policy.path):
        found = read_contract(folder) if folder is not None else None
        if found is None:
            continue
        theirs = list(found.attributes)
        if reward.attributes != theirs:
            reason = f"does not fit {folder}, a reward model of {theirs or 'comparisons'}"
            raise UserError("reward.attributes", reward.attributes, reason, f"Use {theirs}")
        if reward.heads != found.heads:
            reason = f"does not fit {folder}, a reward model with {found.heads}"
            raise UserError("reward.heads", reward.heads, reason, f"Use {found.heads}")
        return found
    return None


def reference_outputs(trainer: RewardTrainer, groups: Sequence[TokenGroup]) -> list[list[float]]:
    """Raw outputs of some candidates by the finished model, from all ranks."""
    chosen, candidates = [], 0
    for group in groups:
        if candidates >= _REFERENCE_SAMPLES:
            break
        chosen.append(group)
        candidates += len(group.completions)
    model: Any = trainer.model_wrapped
    model.eval()
    mine: list[list[float]] = []
    with torch.no_grad():
        for part, _, batch in trainer.each_once(chosen):
            outputs = model(batch, want=("scores",))["scores"]
            mine += outputs.tolist() if part else []
    return [row for part in gather_objects(mine) for row in part]


def contract_of(
    trainer: RewardTrainer, outputs: Sequence[Sequence[float]], accuracy: float | None
) -> Contract:
    """What the finished model was trained to read and what its outputs mean."""
    config, policy, scale = trainer.settings, trainer.policy, trainer.scale
    columns = (config.reward.attributes, trainer.attribute_weights, scale.mean, scale.std)
    return make_contract(
        policy.tokenizer,
        max_length=config.data.max_length,
        max_prompt_length=config.data.max_prompt_length,
        truncation=config.data.truncation,
        heads=config.reward.heads,
        attributes=[Attribute(*each) for each in zip(*columns, strict=True)],
        outputs=outputs,
        data_fingerprint=fingerprint(str(config.data.preferences)),
        held_out_accuracy=accuracy,
        base_fingerprint=policy.fingerprint,
    )


def write_model(
    final: Path, trainer: RewardTrainer, state: dict[str, Tensor], contract: Contract
) -> None:
    """Write the model, with LoRA its adapter with the head in it too, and the contract."""
    policy = trainer.policy
    name, _ = find_head(base_model(policy.module.lm))
    head = head_parts(state, name)
    for part, tensor in head.items():
        # An adapter that came with a head keeps the trained one inside peft's wrapper.
        if not any(key.endswith(f"{name}.{part}") for key in state):
            state[f"lm.{name}.{part}"] = tensor
    policy.save(final, state)
    if policy.config.policy.lora is not None:
        complete_adapter(final / "adapter", name, head, policy.tokenizer, contract)
    write_contract(final, contract)
