"""From prompts to a finished rollout: sample, measure, score, shape, and estimate advantages.

A `Rollout` is this rank's share of one PPO update. Once made nothing changes it, and it is plain
data: a checkpoint holds it whole, so that a run can stop between any two steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import advantages as adv
from align.distributed import in_parts, max_over_ranks, sum_over_ranks
from align.groups import TokenGroup
from align.records import Message
from align.rewards.shaping import ScoreShaper, extended_offsets
from align.rollout import Samples
from align.train.batches import piece_indices
from align.train.halt import agreed
from align.train.importance import correct
from align.train.meter import Stats
from align.train.prefetch import Draws
from align.train.rollout_parts import attach, chunks, in_order

if TYPE_CHECKING:
    from align.config import Config
    from align.train.ppo import PpoTrainer


@dataclass
class PromptItem:
    """A prompt as tokens, and as the messages that rewards read."""

    ids: list[int]
    messages: list[Message]


@dataclass
class Rollout:
    """One update's groups of this rank, each a prompt with its n completions.

    extras of a group: per token old_logps, advantages, old_values, returns, and importance where
    the sampler's weights were others; with score_at=after_eos also, per candidate, old_end_values
    and end_returns of the position after the last token.
    """

    update: int
    groups: list[TokenGroup] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        rows = [
            {"prompt": g.prompt_ids, "completions": g.completions, "extras": g.extras}
            for g in self.groups
        ]
        return {"update": self.update, "groups": rows}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Rollout:
        """Restore `state_dict()`."""
        groups = [
            TokenGroup(row["prompt"], row["completions"], extras=row["extras"])
            for row in state["groups"]
        ]
        return cls(state["update"], groups)


def sampled_logps(samples: Samples) -> Tensor:
    """The sampler's log-probs of all tokens, flat (N,)."""
    return torch.tensor([x for row in samples.logps or [] for x in row])


class Collector:
    """Makes rollouts with the current policy.

    trainer: gives the wrapped model and the meter. reward: text in, floats out.
    kl: the KL controller; shaper: running score statistics; both belong to the checkpoint.
    """

    def __init__(self, trainer: PpoTrainer, prompts: Sequence[PromptItem], reward: Any) -> None:
        self.trainer, self.prompts, self.reward = trainer, prompts, reward
        config: Config = trainer.settings
        self.ppo, self.rollout = config.ppo, config.rollout
        self.draws = Draws(trainer, prompts)
        self.shaper = ScoreShaper.from_config(self.ppo)
        self.tokens = 0.0  # of the last rollout's completions, all ranks
        self.kl: adv.FixedKL = adv.FixedKL(self.ppo.kl_coef)
        if self.ppo.kl_target is not None:
            self.kl = adv.AdaptiveKL(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)

    def collect(self, update: int) -> Rollout:
        """Sample and judge one update's prompts; logs its figures.

        Halt on every rank if that fails on one, or a signal comes.
        """
        draws, start = self.draws, time.monotonic()
        # Until a rollout's samples and scores are there on all ranks, and the next one's where they
        # are drawn here, nothing that a checkpoint holds has changed.
        drawn = draws.due(update)
        mine, sampled = draws.prompts_of(update), time.monotonic()
        scores = agreed(lambda: self.score(mine, drawn.samples, self.rollout.n), draws.told)
        scored = time.monotonic()
        draws.follow(update)
        followed = time.monotonic()
        groups = [
            TokenGroup(
                p.ids, drawn.samples.completions[i * self.rollout.n : (i + 1) * self.rollout.n]
            )
            for i, p in enumerate(mine)
        ]
        measured = self.measure(groups)
        self.trainer.check_reference(measured["logps"], measured["ref_logps"])
        self._finish(groups, drawn.samples, scores, measured, drawn.staleness)
        end = time.monotonic()
        sampling = sampled - start + followed - scored
        times = {"time/rollout": sampling, "time/score": end - start - sampling}
        self.trainer.meter.add({name: (value, 1.0) for name, value in times.items()})
        self.trainer.clock.rollout_made(self.tokens, end - start)
        return Rollout(update, groups)

    def score(self, prompts: Sequence[PromptItem], samples: Samples, n: int) -> Tensor:
        """Raw scores (C,), float32 on the CPU."""
        messages = [p.messages for p in prompts for _ in range(n)]
        total = self.reward(messages, samples.texts, samples.finished)
        return torch.tensor(total, dtype=torch.float32)

    def measure(self, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
        """Log-probs, reference, entropy and values of all tokens, flat (N,), on the CPU.

        The wrapped model reads them in batches of the size that training uses, without gradient,
        the longest first, so that little is padded.
        """
        trainer = self.trainer
        layout = trainer.policy.layout
        order = sorted(range(len(groups)), key=lambda i: -groups[i].row_tokens(layout))
        model: Any = trainer.model_wrapped
        want = ["logps", "ref_logps", "entropy", "values"]
        want += ["end_values"] if self.ppo.score_at == "after_eos" else []
        parts: list[dict[str, Tensor]] = []
        batches = self._batches([groups[i] for i in order])
        # Where weights are in parts ranks go in step: the surplus is thrown away.
        passes = int(max_over_ranks(len(batches))) if in_parts() else len(batches)
        was_training = model.training
        model.eval()
        with torch.no_grad(), trainer.compute_loss_context_manager():
            for i in range(passes):
                chunk = batches[min(i, len(batches) - 1)]
                batch = trainer.policy.collate(chunk).to(trainer.args.device)
                out = model(batch, want=want, temperature=self.rollout.temperature)
                parts.append({name: x.float().cpu() for name, x in out.items()})
        model.train(was_training)
        kept = parts[: len(batches)]
        flat = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        return {name: in_order(x, groups, order, name == "end_values") for name, x in flat.items()}

    def _batches(self, groups: Sequence[TokenGroup]) -> list[list[TokenGroup]]:
        """Groups in their order, at most a micro-batch of completions and its tokens at a time."""
        trainer = self.trainer
        budget = None if in_parts() else trainer.token_budget
        return [
            [part[i] for i in piece]
            for part in chunks(groups, trainer.args.per_device_train_batch_size)
            for piece in piece_indices(part, budget, trainer.policy.layout, ordered=True)
        ]

    def _finish(
        self,
        groups: list[TokenGroup],
        samples: Samples,
        scores: Tensor,
        measured: dict[str, Tensor],
        staleness: int = 0,
    ) -> None:
        """Shape the rewards, estimate advantages, put everything into the groups' extras."""
        ppo, reduce = self.ppo, sum_over_ranks
        lengths = torch.tensor([len(c) for c in samples.completions])
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        logps, ref, values = measured["logps"], measured["ref_logps"], measured["values"]
        shaped = self.shaper(scores, samples.finished, lengths, reduce=reduce)
        kl = adv.KL_ESTIMATORS[ppo.kl_estimator](logps, ref)
        rewards = adv.token_rewards(
            kl, shaped, offsets, kl_coef=self.kl.value, score_at=ppo.score_at
        )
        figures = self._figures(samples, scores, measured, offsets, rewards)
        if ppo.whiten_rewards:
            rewards = adv.whiten(rewards, shift_mean=False, reduce=reduce)
        if ppo.score_at == "after_eos":
            # The position after the last token has a value of its own, as in the N+ code.
            offsets_long = extended_offsets(offsets)
            ends = offsets_long[1:] - 1
            is_token = torch.ones(int(offsets_long[-1]), dtype=torch.bool)
            is_token[ends] = False
            long_values = torch.empty(len(is_token))
            long_values[is_token], long_values[ends] = values, measured["end_values"]
            advantage, returns = adv.gae(rewards, long_values, offsets_long, ppo.gamma, ppo.lam)
            figures["explained_variance"] = (returns, long_values)
            extras_c = {"old_end_values": measured["end_values"], "end_returns": returns[ends]}
            advantage, returns = advantage[is_token], returns[is_token]
        else:
            advantage, returns = adv.gae(rewards, values, offsets, ppo.gamma, ppo.lam)
            figures["explained_variance"] = (returns, values)
            extras_c = {}
        explained = adv.explained_variance(*figures.pop("explained_variance"), reduce=reduce)
        advantage = adv.whiten(advantage, reduce=reduce)
        flat = {"advantages": advantage, "old_values": values, "returns": returns}
        more, noted = self._denominator(samples, logps, staleness)
        attach(groups, flat | more, extras_c, offsets)
        self._log(figures | noted, explained)

    def _denominator(
        self, samples: Samples, logps: Tensor, staleness: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What ratios start from, and the tokens' weights where there are; the figures of both."""
        found = correct(
            self.rollout,
            logps,
            sampled_logps(samples),
            staleness=staleness,
            elsewhere=self.draws.elsewhere,
            reduce=sum_over_ranks,
        )
        if found.weights is None:
            return {"old_logps": found.old_logps}, found.figures
        self.trainer.meter.largest("importance/max", found.largest)
        return {"old_logps": found.old_logps, "importance": found.weights}, found.figures

    def _figures(
        self,
        samples: Samples,
        scores: Tensor,
        measured: dict[str, Tensor],
        offsets: Tensor,
        rewards: Tensor,
    ) -> dict[str, Any]:
        """(sum, count) of this rank by name."""
        logps, tokens, count = measured["logps"], float(offsets[-1]), float(len(samples))
        k1 = (logps - measured["ref_logps"]).sum()
        sampled = sampled_logps(samples)
        return {
            "score/mean": (scores.double().sum(), count),  # a variance is taken from it
            "score/square": (scores.double().square().sum(), count),
            "reward/shaped": (rewards.sum(), count),
            "kl/sum": (k1, count),
            "kl/token": (k1, tokens),
            "entropy": (measured["entropy"].sum(), tokens),
            "length/mean": (tokens, count),
            "eos_rate": (float(sum(samples.finished)), count),
            "sampler_gap": ((sampled - logps).abs().sum(), tokens),
        }

    def _log(self, figures: Stats, explained: float) -> None:
        """Reduce over ranks once, move the KL controller, hand the rest to the meter."""
        names = list(figures)
        pairs = torch.tensor([[float(x) for x in figures[n]] for n in names], dtype=torch.float64)
        means = {
            n: float(total / count)
            for n, (total, count) in zip(names, sum_over_ranks(pairs), strict=True)
        }
        square = means.pop("score/square")
        means["score/std"] = max(square - means["score/mean"] ** 2, 0.0) ** 0.5
        means["explained_variance"], means["kl_coef"] = explained, self.kl.value
        samples = self.rollout.prompts_per_update * self.rollout.n
        self.tokens = means["length/mean"] * samples
        self.kl.update(means["kl/sum"], samples)
        self.trainer.meter.add({name: (value, 1.0) for name, value in means.items()})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"kl": self.kl.state_dict(), "shaper": self.shaper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.kl.load_state_dict(state["kl"])
        self.shaper.load_state_dict(state["shaper"])
