"""What surrounds every stage: arguments, callbacks, resume, the last evaluation, `final/`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from align.config_errors import UserError
from align.config_parallel import sizes_of
from align.disk import say_space
from align.distributed import barrier, rank
from align.evaluation.suite_config import best_direction
from align.files import write_atomic
from align.jsonl import Counts
from align.launch_env import check_world, under_deepspeed
from align.train import watch
from align.train.base import AlignTrainer
from align.train.callbacks import CheckpointMarker, MetricsWriter, Progress, StopOnSignal
from align.train.halt import raise_cause
from align.train.resume import drop_incomplete, made_with, verified_checkpoint

if TYPE_CHECKING:
    from align.config import Config


GROUP_TIMEOUT_S = 600
"""Of a collective, to which comes what a reward may take; the library's default is 1800."""


def training_arguments(config: Config, **overrides: Any) -> TrainingArguments:
    """TrainingArguments of the train section, and the process group that they start.

    overrides: what a method decides itself. Build them before loading a model: ZeRO-3 shards
    weights as they are read. Raises RuntimeError if ranks are missing.
    """
    given = dict(config.train.args)
    given.pop("save_total_limit", None)  # CheckpointMarker's
    given.update(
        output_dir=config.train.output_dir,
        remove_unused_columns=False,  # batches are GroupBatches
        logging_nan_inf_filter=False,  # the guard wants to see them
        ddp_find_unused_parameters=False,
        disable_tqdm=True,  # our own progress
        include_num_input_tokens_seen="no",  # counted in get_batch_samples
    )
    if (more := best_direction(config)) is not None:
        given.setdefault("greater_is_better", more)
    if config.train.early_stopping_patience is not None:
        best = "eval_score/mean" if config.method == "ppo" else "eval_loss"
        given.setdefault("metric_for_best_model", best)
        given.setdefault("greater_is_better", config.method == "ppo")
        given.setdefault("load_best_model_at_end", True)
    if given.get("load_best_model_at_end"):
        for name in ("strategy", "steps"):  # a best model must have been saved
            if given.get(f"eval_{name}") is not None:
                given[f"save_{name}"] = given[f"eval_{name}"]
    if given.get("report_to") == "none":
        given["report_to"] = []
    given.update(overrides)
    if sizes := sizes_of(config):
        from accelerate.parallelism_config import ParallelismConfig

        split: Any = sizes
        given["parallelism_config"] = ParallelismConfig(**split)
    quiet()
    deepspeed = under_deepspeed() or given.get("deepspeed")
    if deepspeed and config.train.loss_spike.action == "continue":
        raise UserError(
            "train.loss_spike.action", "continue", "cannot be used with DeepSpeed, which takes the "
            "step inside its backward pass", "Use stop",
        )  # fmt: skip
    # Longer than any step; what hangs for good should not hold the machines for half an hour.
    rewards = [r.timeout_s for r in config.rewards] if config.method == "ppo" else []
    given.setdefault("ddp_timeout", int(GROUP_TIMEOUT_S + max(rewards, default=0)))
    args = TrainingArguments(**given)
    check_world(args.world_size)
    watch.start(config.train.rank_timeout_s)
    set_seed(args.seed)
    return args


def quiet() -> None:
    """Keep the libraries' bars and notices for files off the screen; warnings of ours stay."""
    from transformers.utils import logging

    # DeepSpeed 0.19 calls collectives by the names that torch 2.13 deprecates, thousands of times.
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def callbacks(config: Config) -> list[Any]:
    """Callbacks that every method has."""
    run_dir = Path(config.train.output_dir)
    found: list[Any] = [
        MetricsWriter(run_dir),
        Progress(config.method),
        StopOnSignal(),
        CheckpointMarker(made_with(config), config.train.args.get("save_total_limit")),
    ]
    if config.train.early_stopping_patience is not None:
        found.append(EarlyStoppingCallback(config.train.early_stopping_patience))
    return found


def write_counts(config: Config, counts: Iterable[Counts]) -> None:
    """Write data_counts.json and say what was dropped or cut."""
    if rank() != 0:
        return
    kept = list(counts)
    rows = json.dumps([c.to_json() for c in kept], ensure_ascii=False, indent=1)
    write_atomic(Path(config.train.output_dir) / "data_counts.json", rows + "\n")
    for c in kept:
        reasons = ", ".join(f"{name} {n}" for name, n in c.dropped.most_common())
        kinds = ", ".join(f"{name} {n}" for name, n in c.truncated.most_common())
        cut = f", cut to length: {kinds}" if kinds else ""
        dropped = f", dropped: {reasons}" if reasons else ""
        print(f"[align] {c.file}: {c.used} used{dropped}{cut}", flush=True)


def run_training(
    trainer: AlignTrainer,
    config: Config,
    save: Callable[[Path], None] | None = None,
) -> dict[str, float]:
    """Train (from a checkpoint where there is one), evaluate, write `final/`.

    save: writes the finished model, called on every rank; by default `policy.save`. Returns
    the last figures. Raises StopRequested after a signal, Failed after an error that was foreseen,
    both with a checkpoint saved.
    """
    for known in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(known)
    drop_incomplete(config)
    if rank() == 0:
        say_space(Path(config.train.output_dir), checkpoint_bytes(trainer))
    trainer.train(resume_from_checkpoint=verified_checkpoint(config))
    raise_cause(trainer)
    metrics = last_figures(trainer)
    if len(trainer.held_out) or trainer.measures.suite:
        metrics |= final_evaluation(trainer) or trainer.evaluate()
    final = Path(config.train.output_dir) / "final"
    if save is not None:
        save(final)
    else:
        state = trainer.trained_state()
        if rank() == 0:
            trainer.policy.save(final, state)
    barrier()
    return metrics


def checkpoint_bytes(trainer: AlignTrainer) -> float:
    """Of a checkpoint (weights and Adam's two moments) and the finished model, about."""
    trained = whole = 0.0
    for parameter in trainer.policy.module.parameters():
        # ZeRO-3 has taken the parameter's storage, and keeps its size here.
        size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        whole += size
        trained += size if parameter.requires_grad else 0
    return 3 * trained + whole


def final_evaluation(trainer: AlignTrainer) -> dict[str, float]:
    """Figures of the evaluation that the weights of `final/` had; {} where there was none.

    They are the last step's, or with load_best_model_at_end the best checkpoint's.
    """
    state, best = trainer.state, trainer.args.load_best_model_at_end
    step = state.best_global_step if best and state.best_model_checkpoint else state.global_step
    rows = [r for r in state.log_history if r.get("step") == step and "eval_runtime" in r]
    return {k: v for k, v in rows[-1].items() if k not in ("step", "epoch")} if rows else {}


def last_figures(trainer: AlignTrainer) -> dict[str, float]:
    """The newest value of every logged figure."""
    figures: dict[str, float] = {}
    for row in trainer.state.log_history:
        figures |= {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    return figures
