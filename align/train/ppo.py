"""PPO: the collector turns prompts into rollouts, the Trainer takes optimiser steps over them.

One step of the Trainer is one minibatch. An update is ppo_epochs passes of num_minibatches steps
over one rollout. The loss of a step, Σ over its completion tokens divided by their global number:

    max(−A·r, −A·clip(r, 1−lo, 1+hi)) + vf_coef · value loss − entropy_coef · entropy (+ ptx)

Each detail of shared PPO practice that this follows is a named test in tests/train/test_ppo_*.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align import losses
from align.config_errors import UserError
from align.distributed import in_parts, rank, sum_over_ranks, total_norm
from align.groups import GroupBatch, TokenGroup
from align.policy import Policy
from align.rewards import make_reward
from align.train import examples
from align.train.base import AlignTrainer
from align.train.batches import FILLER, GroupDataset, pieces
from align.train.meter import Objective
from align.train.ppo_checkpoint import read_state, write_state
from align.train.ppo_evaluation import evaluate_prompts
from align.train.ppo_prompts import load_prompt_items
from align.train.ppo_state import Clock, Ema, Position, StepEnd, dropout_off
from align.train.rollout_parts import as_batch_counts, chunks, minibatch
from align.train.rollouts import Collector, PromptItem, Rollout
from align.train.runner import callbacks, run_training, training_arguments, write_counts

if TYPE_CHECKING:
    from align.config import Config


class PpoTrainer(AlignTrainer):
    """Policy and critic on rollouts; see the module's text.

    prompts: to sample from. eval_prompts: held out. ptx: SFT groups whose loss is mixed in.
    """

    watches_loss = False  # the loss of PPO has no level to jump from

    def __init__(
        self,
        policy: Policy,
        config: Config,
        args: Any,
        prompts: Sequence[PromptItem],
        eval_prompts: Sequence[PromptItem],
        reward: Any,
        ptx: Sequence[TokenGroup] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.eval_prompts, self.ptx = list(eval_prompts), ptx
        dropout_off(policy.module)
        for term in getattr(reward, "rewards", ()):
            if getattr(term, "in_parts", False):
                term.join(policy.module.judges, self.judge)
        callbacks = [*callbacks, StepEnd(self)]
        super().__init__(policy, config, args, (), self.eval_prompts, callbacks)
        self.guard.go_on = True  # a step that is not finite is left out and counted
        self.clock = Clock()
        self.collector = Collector(self, prompts, reward)
        self.position = Position(config.ppo.ppo_epochs, config.ppo.num_minibatches)
        self.rollout: Rollout | None = None
        self.ema = Ema(config.ppo.ema_decay, policy.module) if config.ppo.ema_decay else None

    # Data: rollouts on demand

    def get_train_dataloader(self) -> Any:
        """Micro-batches of the rollouts, sampled when they are asked for."""
        return _Micros(self)

    def micro_batches(self) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches from the current position on, without end."""
        ppo, args = self.settings.ppo, self.args
        while True:
            place = self.position
            if self.rollout is None or self.rollout.update != place.update:
                self.rollout = self.collector.collect(place.update)
            seed = self.collector.draws.seed + 1_000_003 * place.update + 101 * place.epoch
            # The same order of groups on every rank: one data seed for all.
            taken = minibatch(self.rollout, place.minibatch, ppo.num_minibatches, seed)
            micros = list(chunks(taken, args.per_device_train_batch_size))
            for i, groups in enumerate(micros):
                if i == len(micros) - 1:
                    # Handed out means done: a checkpoint is only written after the step.
                    place.advance()
                yield self.collate_micro(groups, i)

    def collate_micro(self, groups: Sequence[TokenGroup], number: int) -> dict[str, Any]:
        """One micro-batch, with its share of the pre-training mix."""
        config = self.settings
        cut = pieces(groups, self.token_budget, self.policy.layout)
        made: dict[str, Any] = {
            "batches": [self.policy.collate(part) for part in cut],
            "counts": as_batch_counts(groups),
        }
        if config.ppo.ptx_coef > 0:
            size = self.args.per_device_train_batch_size
            step = self.state.global_step * self.args.gradient_accumulation_steps + number
            first = (step * self.args.world_size + self.args.process_index) * size
            mixed = [self.ptx[(first + i) % len(self.ptx)] for i in range(size)]
            also = made["batches"][0].also = self.policy.collate(mixed)
            made["counts"]["ptx"] = float(also.num_tokens)
        return made

    def step_ended(self) -> None:
        """After the optimiser's step: on to the next minibatch, pass or update."""
        place = self.position
        if place.pass_ended() and place.end_pass(self.settings.ppo.target_kl, sum_over_ranks):
            self.clock.update_ended(self.meter)
        # After a resume the Trainer counts from 0: nothing of the data had to be skipped.
        self.state.epoch = self.state.global_step / self.args.max_steps

    def judge(self, number: int, *rows: Tensor) -> Tensor:
        """Scores of a reward model whose weights are sharded with the policy's."""
        wrapped: Any = self.model_wrapped
        return wrapped(rows, judge=number)["scores"]

    # A step

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Σ over completion tokens of policy, value and entropy terms."""
        ppo, extras = self.settings.ppo, batch.extras
        want = ["logps", "values"]
        after = "old_end_values" in extras
        want += ["end_values"] if after else []
        want += ["entropy"] if ppo.entropy_coef else []
        out = model(batch, want=want, temperature=self.settings.rollout.temperature)
        policy_loss, stats = losses.ppo_policy(
            out["logps"],
            extras["old_logps"],
            extras["advantages"],
            clip_range=ppo.clip_range,
            clip_range_high=ppo.clip_range_high,
            dual_clip=ppo.dual_clip,
            importance=extras.get("importance"),
        )
        value_loss, value_stats = losses.ppo_value(
            out["values"], extras["old_values"], extras["returns"], clip=ppo.value_clip_range
        )
        value_sum, count = value_loss.sum(), float(batch.num_tokens)
        if after:
            end_loss, _ = losses.ppo_value(
                out["end_values"],
                extras["old_end_values"],
                extras["end_returns"],
                clip=ppo.value_clip_range,
            )
            # A filler's candidate has no token, and so no end either.
            value_sum = value_sum + end_loss[batch.candidate_lengths() > 0].sum()
        policy_sum = policy_loss.sum()
        if ppo.entropy_coef:
            policy_sum = policy_sum - ppo.entropy_coef * out["entropy"].sum()
        self.position.approx_kl += torch.stack(
            [stats["approx_kl"].sum(), stats["approx_kl"].new_tensor(count)]
        ).cpu().double()  # fmt: skip
        ratio = stats.pop("ratio")
        self.meter.largest("ratio/max", float(ratio.max()) if ratio.numel() else 0.0)
        figures: dict[str, Any] = {n: (x.sum(), count) for n, x in (stats | value_stats).items()}
        figures |= {
            "policy_loss": (policy_loss.detach().sum(), count),
            "value_loss": (value_sum.detach(), count),
        }
        if batch.also is not None:
            scale = self.step_counts["items"] / self.step_counts["ptx"]
            nll = losses.sft(out["also_logps"]).sum()
            policy_sum = policy_sum + ppo.ptx_coef * scale * nll
            figures["loss/ptx"] = (nll.detach(), float(batch.also.num_tokens))
        # Warm-up: the critic learns alone; times zero, so that every parameter is in the graph.
        warm = self.position.update_of_step < ppo.critic_warmup_updates
        total = policy_sum * (0.0 if warm else 1.0) + ppo.vf_coef * value_sum
        return Objective(total, figures)

    def filler(self) -> TokenGroup:
        """A group without loss that looks like those of the rollout."""
        assert self.rollout is not None
        return GroupDataset(self.rollout.groups)[FILLER]

    def items(self, groups: Sequence[TokenGroup]) -> float:
        """Completion tokens."""
        return as_batch_counts(groups)["items"]

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """As the base; then note the critic's share of the gradient."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            grads = [p.grad for p in self.policy.module.critic_parameters() if p.grad is not None]
            if grads:
                self.meter.add({"grad_norm_critic": (total_norm(grads), 1.0)})
        return loss

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's optimizer, the critic's parameters in groups of their own rate."""
        optimizer: Any = super().create_optimizer(model)
        rate = self.settings.ppo.critic_learning_rate
        if rate is None:
            return optimizer
        critic = {id(p) for p in self.policy.module.critic_parameters()}
        for group in list(optimizer.param_groups):
            theirs = [p for p in group["params"] if id(p) in critic]
            if theirs:
                group["params"] = [p for p in group["params"] if id(p) not in critic]
                rest = {k: v for k, v in group.items() if k != "params"}
                optimizer.add_param_group({**rest, "params": theirs, "lr": rate})
        return optimizer

    # Evaluation, logs, checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base; the speed is that of whole updates, rollouts included."""
        if "loss" in logs:
            logs["tokens_per_s"] = self.clock.speed
        super().log(logs, start_time)

    def measure(self) -> dict[str, float]:
        """Reward, KL, length and EOS rate on held-out prompts; samples go to samples.jsonl."""
        return evaluate_prompts(self)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; a checkpoint's rollout, KL controller and statistics come back first."""
        if resume_from_checkpoint:
            self.args.eval_on_start = False
            self.load_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, and this rank's state of PPO."""
        super().save_model(output_dir, _internal_call)
        write_state(self, Path(output_dir or str(self.args.output_dir)))

    def load_state(self, folder: Path) -> None:
        """Restore what `save_model` wrote; UserError if another number of ranks wrote it."""
        read_state(self, folder)


class _Micros:
    """What the Trainer iterates as a data loader; its length is the whole run."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        args = self.trainer.args
        return args.max_steps * args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.trainer.micro_batches()


def train(config: Config) -> dict[str, float]:
    """Run PPO from config.policy on the configured prompts and rewards; return last figures."""
    overrides = batch_arguments(config)
    args = training_arguments(config, **overrides)
    check(config)
    policy = Policy.load(config, critic=True)
    reward = make_reward(config.rewards, device=args.device, in_parts=in_parts(), policy=policy)
    prompts, held_out, counts = load_prompt_items(config, policy.tokenizer)
    ptx: Sequence[TokenGroup] = []
    if config.ppo.ptx_coef > 0:
        ptx, _, more = examples.sft_groups(config, policy.tokenizer)
        counts += more
    write_counts(config, counts)
    if args.max_steps <= 0:
        updates = math.ceil(
            args.num_train_epochs * len(prompts) / config.rollout.prompts_per_update
        )
        args.max_steps = updates * config.ppo.ppo_epochs * config.ppo.num_minibatches
    trainer = PpoTrainer(
        policy, config, args, prompts, held_out, reward, ptx, callbacks(config)
    )  # fmt: skip
    if trainer.ema:
        trainer.add_callback(trainer.ema)

    def save(final: Path) -> None:
        state = trainer.trained_state()
        if rank() == 0:
            policy.save(final, state)
            if trainer.ema:
                policy.save(final.with_name("final-ema"), state | trainer.ema.shadow)

    try:
        return run_training(trainer, config, save=save)
    finally:
        trainer.collector.draws.close()


def batch_arguments(config: Config) -> dict[str, Any]:
    """TrainingArguments that follow from the rollout's size.

    per_device_train_batch_size completions are in memory at once; a minibatch is as many
    micro-batches as it takes, so gradient_accumulation_steps is not the user's to choose.
    """
    from align.launch_env import asked_world

    samples = config.rollout.prompts_per_update * config.rollout.n
    per_step = samples // config.ppo.num_minibatches
    world = asked_world()
    given = config.train.args
    micro = min(given.get("per_device_train_batch_size", 8), per_step // world)
    evaluates = given.get("eval_strategy", "no") != "no"
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": math.ceil(per_step / world / micro),
        "ignore_data_skip": True,
        "eval_on_start": given.get("eval_on_start", evaluates),
        # What shared practice has (N+ code, trl), where the file says nothing.
        "learning_rate": given.get("learning_rate", 3e-6),
        "adam_epsilon": given.get("adam_epsilon", 1e-5),
    }


def check(config: Config) -> None:
    """Refuse what only training finds out (UserError); other rules are in align.config_checks."""
    if config.ppo.ema_decay and in_parts():
        reason = "needs whole weights, and ZeRO-3 and FSDP shard them"
        raise UserError("ppo.ema_decay", config.ppo.ema_decay, reason, "Use null, or ZeRO-2")
