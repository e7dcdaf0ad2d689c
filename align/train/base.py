"""AlignTrainer: transformers' Trainer over GroupBatches, normalised by the step's global count.

A method is a subclass with an `objective` (sum of losses and figures of one micro-batch) and
`items` (what the sum is divided by). The division is by the number of items in the whole
optimiser step, over micro-batches and ranks, so the gradient does not depend on how the step was
cut up. Only public methods of the Trainer are overridden.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from align.checkpoint_files import COMPLETE, newest
from align.config_parallel import data_place
from align.distributed import (
    barrier,
    check_launch,
    full_tensor,
    max_over_ranks,
    sum_over_ranks,
)
from align.groups import GroupBatch, TokenGroup
from align.layouts import check_reference
from align.train import batches as cut
from align.train.batches import FILLER, GroupDataset, StepBatches
from align.train.guard import Guard, GuardCallback
from align.train.halt import Halt, measured_or_halted, next_batches
from align.train.meter import Meter, Objective
from align.train.resume import restore, write_state
from align.train.schedule import Scheduled
from align.train.suite_evaluation import Measures

if TYPE_CHECKING:
    from align.config import Config
    from align.policy import Policy


class AlignTrainer(Scheduled):
    """Shared by all methods; see the module's text.

    train, held_out: groups. watches_loss: whether a jump of the loss means trouble (not in PPO).
    """

    watches_loss = True

    def __init__(
        self,
        policy: Policy,
        config: Config,
        args: TrainingArguments,
        train: Sequence[TokenGroup],
        held_out: Sequence[Any] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.policy, self.settings = policy, config
        # Processes that share a layer's halves share their examples.
        self.place, self.places = data_place(config, args.process_index, args.world_size)
        self.train_groups, self.held_out = train, held_out
        self.measures = Measures.of(config, args.device)
        if not len(held_out) and self.measures.suite is None:
            args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
        self.meter, self._reference_checked = Meter(), False
        spike = config.train.loss_spike
        factor = spike.factor if self.watches_loss else math.inf
        self.guard = Guard(spike.action == "continue", factor)
        self._step_loss, self.finite = torch.zeros(()), True
        self.halted: Halt | None = None
        self.step_counts: dict[str, float] = {}
        self._clock, self._clock_tokens = 0.0, -1  # started by the first step
        super().__init__(
            model=policy.module,
            args=args,
            # The Trainer only looks whether there are any: loaders and evaluation are ours.
            train_dataset=train if len(train) else None,  # type: ignore[arg-type]
            eval_dataset=held_out if len(held_out) else self.measures.suite,  # type: ignore[arg-type]
            processing_class=None,
            callbacks=[*callbacks, GuardCallback(self)],
        )
        check_launch(self.accelerator)
        self.guard.can_skip = not self.is_deepspeed_enabled  # it steps inside its backward pass

    # What a method defines

    def objective(self, model: Any, batch: GroupBatch) -> Objective:
        """Sum of the losses of one micro-batch. model: the wrapped module."""
        raise NotImplementedError

    def items(self, groups: Sequence[TokenGroup]) -> float:
        """What the losses of these groups are averaged over; here the weight of their pairs."""
        return sum(pair.weight for g in groups for pair in g.pairs)

    # Data

    @property
    def in_step(self) -> bool:
        """Whether every rank must make equally many passes, which gather or reduce something."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @property
    def token_budget(self) -> int | None:
        """Tokens that are computed at once, see `align.train.batches.token_budget`."""
        return cut.token_budget(self.settings, self.args.device, in_step=self.in_step)

    def collate(self, groups: Sequence[TokenGroup]) -> dict[str, Any]:
        """One micro-batch as the Trainer hands it on: the groups, and their batches."""
        packed = self.settings.packs
        parts = cut.pieces(groups, self.token_budget, self.policy.layout)
        tokens = sum(len(g.prompt_ids) + sum(map(len, g.completions)) for g in groups)
        return {
            "batches": [self.policy.collate(part, packed=packed) for part in parts],
            "counts": {"items": self.items(groups), "tokens": float(tokens)},
        }

    def get_train_dataloader(self) -> Any:
        """Micro-batches of this rank, see `align.train.batches`."""
        args = self.args
        sampler = StepBatches(
            len(self.train_groups),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            rank=self.place,
            world=self.places,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=self.settings.data.shuffle,
        )
        return cut.train_loader(self.train_groups, sampler, self.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """Micro-batches of the next optimiser step, and their number of items over all ranks.

        step_counts: all counts of the step, over all ranks. None for a run that is over, which is
        resumed to write its results again: the Trainer would take one more step. None either where
        a rollout failed or a signal came during it, see `align.train.halt`.
        """
        batches = next_batches(self, epoch_iterator, num_batches)
        if batches is None:
            return [], torch.ones((), dtype=torch.float64)
        names = sorted(batches[0]["counts"]) if batches else []
        here = [sum(b["counts"][name] for b in batches) for name in names]
        summed = sum_over_ranks(torch.tensor(here, dtype=torch.float64))
        summed = (summed * self.places / self.args.world_size).tolist()
        self.step_counts = dict(zip(names, summed, strict=True))
        if self._clock_tokens < 0:
            self._clock, self._clock_tokens = time.monotonic(), self.state.num_input_tokens_seen
        self.state.num_input_tokens_seen += int(self.step_counts.get("tokens", 0))
        self._step_loss = torch.zeros((), device=self.args.device)
        return batches, torch.tensor(self.step_counts.get("items") or 1.0, dtype=torch.float64)

    # A step

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-batch, piece by piece; return its share of the loss."""
        model.train()
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "train") and callable(optimizer.train):
            optimizer.train()
        total = torch.zeros((), device=self.args.device)
        batches = self._evened(inputs["batches"])
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            alone = last or self.is_deepspeed_enabled
            with nullcontext() if alone else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        model, {"batch": batch}, num_items_in_batch=num_items_in_batch
                    )
                total = total + loss.detach()
                if last and self.accelerator.sync_gradients:
                    self._look(total + self._step_loss)
                self._backward(loss, last)
        self._step_loss += total
        # The Trainer's running sum would stay NaN for good.
        return total if torch.isfinite(total) else torch.zeros_like(total)

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Backward of one piece of a micro-batch; last: whether no other follows."""
        if not self.is_deepspeed_enabled:
            self.accelerator.backward(loss)
            return
        # DeepSpeed's takes the optimiser step as well, and that only once a step. It would also
        # divide by the accumulation steps: the loss has its divisor.
        engine: Any = self.accelerator.deepspeed_engine_wrapped
        engine.backward(
            loss, sync_gradients=last and self.accelerator.sync_gradients, scale_wrt_gas=False
        )

    def _evened(self, batches: list[GroupBatch]) -> list[GroupBatch]:
        """Where ranks go in step the shorter list of passes gets fillers."""
        if not self.in_step or self.settings.train.max_tokens_per_batch is None:
            return batches
        most = int(max_over_ranks(len(batches)))
        return batches + [self.policy.collate([self.filler()])] * (most - len(batches))

    def filler(self) -> TokenGroup:
        """A group without loss that looks like the others."""
        return GroupDataset(self.train_groups)[FILLER]

    def _look(self, loss: Tensor) -> None:
        """Give the guard this step's loss, the mean over ranks (each holds world · its share)."""
        mean = float(sum_over_ranks(loss) / self.args.world_size)
        self.finite &= math.isfinite(mean)
        self.guard.loss(mean, self.state.global_step + 1, newest(str(self.args.output_dir)))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's part of the step's mean loss, times the number of data-parallel ranks.

        DDP and DeepSpeed average gradients over ranks; the factor makes that a sum.
        """
        objective = self.objective(model, inputs["batch"].to(self.args.device))
        self.meter.add(objective.stats)
        loss = objective.total * (self.places / float(num_items_in_batch))
        return (loss, {}) if return_outputs else loss

    def check_reference(self, logps: Tensor, ref_logps: Tensor) -> None:
        """Before the first step policy and reference are the same model: RuntimeError if not.

        logps, ref_logps: (N,), of the same tokens.
        """
        if self._reference_checked or self.state.global_step > 0:
            return
        self._reference_checked = True
        check_reference(self.policy, logps, ref_logps)

    # Evaluation, logs, files

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the held-out groups, log and return the figures."""
        start = time.monotonic()
        measured = measured_or_halted(self)
        if measured is None:
            return {}
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in measured.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - start, 3)
        self.log(metrics)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """The objective and its figures on the held-out groups, over all ranks."""
        model: Any = self.model_wrapped
        meter = Meter()
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for _, chosen, batch in self.each_once(self.held_out):
                result = self.objective(model, batch)
                meter.add({"loss": (result.total, self.items(chosen)), **result.stats})
        model.train(was_training)
        return meter.flush()

    def each_once(
        self, groups: Sequence[TokenGroup]
    ) -> Iterator[tuple[list[int], list[TokenGroup], GroupBatch]]:
        """Batches of an evaluation, each group on one rank: (indices, groups, batch on the device).

        All ranks get as many micro-batches: one without groups left gets fillers, and no indices.
        """
        args, dataset = self.args, GroupDataset(groups)
        budget = None if self.in_step else self.token_budget
        for part in cut.eval_parts(
            len(groups), args.per_device_eval_batch_size, rank=self.place, world=self.places
        ):
            whole = [dataset[i] for i in part]
            for piece in cut.piece_indices(whole, budget, self.policy.layout):
                chosen = [whole[i] for i in piece]
                batch = self.policy.collate(chosen).to(args.device)
                yield [part[i] for i in piece if part[i] != FILLER], chosen, batch

    def tokens_per_s(self) -> float:
        """Tokens a second since the last training log line."""
        seen = self.state.num_input_tokens_seen - self._clock_tokens
        return seen / (time.monotonic() - self._clock)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the meter's figures and the speed to a training log line."""
        if "loss" in logs:
            if not self.finite:  # of a step that was left out
                logs["loss"], self.finite = math.nan, True
            logs |= self.meter.flush()
            logs.setdefault("tokens_per_s", self.tokens_per_s())
            logs["tokens"] = self.state.num_input_tokens_seen
            self._clock, self._clock_tokens = time.monotonic(), logs["tokens"]
            if self.guard.skipped:
                logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; guard and early stopping go on as they were at the checkpoint."""
        if resume_from_checkpoint:
            restore(self, Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def trained_state(self) -> dict[str, Tensor]:
        """Whole trained weights by name, on the CPU of rank 0; every rank must call.

        Parts that ranks hold are gathered.
        """
        module = self.policy.module
        if self.in_step:
            whole: Any = self.accelerator.get_state_dict(self.model_wrapped)
        else:
            whole = {n: full_tensor(p) for n, p in module.named_parameters() if p.requires_grad}
        if not self.is_world_process_zero():
            return {}
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        return {
            name: whole[name].detach().cpu().contiguous() for name in sorted(trained & whole.keys())
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint's weights: what training changes, under the module's own names."""
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        if self.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COMPLETE).unlink(missing_ok=True)  # it is written again, when all is there
            write_state(self, folder)
        state = self.trained_state()
        if self.is_world_process_zero():
            temporary = folder / ".model.safetensors"
            save_file(state, temporary, metadata={"format": "pt"})
            temporary.replace(folder / "model.safetensors")
        barrier()
