"""From prompts to a finished rollout: sample, measure, score, shape, and estimate advantages.

A `Rollout` is this rank's share of one PPO update. Once made nothing changes it, and it is plain
data: a checkpoint holds it whole, so that a run can stop between any two steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import advantages as adv
from align.distributed import in_parts, max_over_ranks, sum_over_ranks
from align.groups import TokenGroup
from align.records import Message
from align.rewards.shaping import ScoreShaper, extended_offsets
from align.rollout import Samples, rank_seed
from align.train.batches import piece_indices
from align.train.halt import agreed, told_to_stop
from align.train.meter import Stats
from align.train.rollout_engines import RolloutEngine, make_engine
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

    extras of a group: per token old_logps, advantages, old_values, returns; with score_at=after_eos
    also, per candidate, old_end_values and end_returns of the position after the last token.
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


def prompt_indices(
    update: int, prompts: int, per_update: int, seed: int, shuffle: bool = True
) -> list[int]:
    """Which prompts an update samples, all ranks together: passes over all, each shuffled anew."""
    wanted = range(update * per_update, (update + 1) * per_update)
    order: dict[int, list[int]] = {}
    chosen = []
    for i in wanted:
        epoch, place = divmod(i, prompts)
        if epoch not in order:
            drawn = torch.Generator().manual_seed(seed + epoch)
            shuffled = torch.randperm(prompts, generator=drawn).tolist()
            order[epoch] = shuffled if shuffle else list(range(prompts))
        chosen.append(order[epoch][place])
    return chosen


class Collector:
    """Makes rollouts with the current policy.

    trainer: gives the wrapped model and the meter. reward: text in, floats out.
    kl: the KL controller; shaper: running score statistics; both belong to the checkpoint.
    """

    def __init__(self, trainer: PpoTrainer, prompts: Sequence[PromptItem], reward: Any) -> None:
        self.trainer, self.prompts, self.reward = trainer, prompts, reward
        config: Config = trainer.settings
        self.ppo, self.rollout = config.ppo, config.rollout
        self.seed = config.train.args.get("seed", 42)
        self.shaper = ScoreShaper.from_config(self.ppo)
        self.tokens = 0.0  # of the last rollout's completions, all ranks
        self._engine: RolloutEngine | None = None
        self.kl: adv.FixedKL = adv.FixedKL(self.ppo.kl_coef)
        if self.ppo.kl_target is not None:
            self.kl = adv.AdaptiveKL(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)

    def collect(self, update: int) -> Rollout:
        """Sample and judge one update's prompts; logs its figures.

        Halt on every rank if that fails on one, or a signal comes.
        """
        args, per_update = self.trainer.args, self.rollout.prompts_per_update
        shuffle = self.trainer.settings.data.shuffle
        chosen = prompt_indices(update, len(self.prompts), per_update, self.seed, shuffle)
        mine = [self.prompts[i] for i in chosen[args.process_index :: args.world_size]]
        start = time.monotonic()
        told = partial(told_to_stop, self.trainer)
        seed = rank_seed(self.seed + update, args.process_index)
        self.sync(update)
        # Until both are there on all ranks nothing that a checkpoint holds has changed.
        samples = agreed(lambda: self.sample(mine, seed, interrupted=told), told)
        sampled = time.monotonic()
        scores = agreed(lambda: self.score(mine, samples, self.rollout.n), told)
        groups = [
            TokenGroup(p.ids, samples.completions[i * self.rollout.n : (i + 1) * self.rollout.n])
            for i, p in enumerate(mine)
        ]
        measured = self.measure(groups)
        self.trainer.check_reference(measured["logps"], measured["ref_logps"])
        self._finish(groups, samples, scores, measured)
        end = time.monotonic()
        times = {"time/rollout": sampled - start, "time/score": end - sampled}
        self.trainer.meter.add({name: (value, 1.0) for name, value in times.items()})
        self.trainer.clock.rollout_made(self.tokens, end - start)
        return Rollout(update, groups)

    @property
    def engine(self) -> RolloutEngine:
        """What samples, made when it is first asked for; every rank must ask."""
        if self._engine is None:
            self._engine = agreed(partial(make_engine, self.trainer))
        return self._engine

    def sync(self, update: int) -> None:
        """Let the engine sample from the current weights, which are those of `update`."""
        engine = self.engine
        agreed(partial(engine.sync, update))

    def close(self) -> None:
        """Stop the engine, where one was made."""
        if self._engine is not None:
            self._engine.close()

    def sample(
        self, prompts: Sequence[PromptItem], seed: int | Sequence[int], **overrides: Any
    ) -> Samples:
        """N completions of each prompt from the engine."""
        with self.engine.sampling(**overrides) as sampler:
            return sampler.sample([p.ids for p in prompts], self.rollout.n, seed)

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
        flat = {"old_logps": logps, "advantages": advantage, "old_values": values}
        attach(groups, flat | {"returns": returns}, extras_c, offsets)
        self._log(figures, explained)

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
        sampled = torch.tensor([x for row in samples.logps or [] for x in row])
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
