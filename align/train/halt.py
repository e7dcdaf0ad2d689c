"""Ending a run between two steps with its state saved: told to by a signal, or after an error.

An error of one rank must not leave the others waiting in a collective, so the ranks agree on it.
The rollout that was being made is given up: nothing of it is in the checkpoint, and the resumed
run makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from align.checkpoint_files import COMPLETE
from align.config_errors import Failed, StopRequested, UserError
from align.distributed import any_rank, from_rank_zero, gather_objects
from align.rollout import Interrupted
from align.train import watch
from align.train.callbacks import StopOnSignal
from align.train.resume import is_over
from align.train.suite_evaluation import suite_figures

if TYPE_CHECKING:
    from align.train.base import AlignTrainer

T = TypeVar("T")


class Halt(Exception):
    """Raised on every rank where the run must end. cause: None after a signal, else an error."""

    def __init__(self, cause: Exception | None) -> None:
        super().__init__(str(cause))
        self.cause = cause


def told_to_stop(trainer: AlignTrainer) -> bool:
    """Whether a signal came, to this rank or as far as it knows to another."""
    callbacks = trainer.callback_handler.callbacks
    heard = any(c.received is not None for c in callbacks if isinstance(c, StopOnSignal))
    return heard or watch.asked_to_stop()


def agreed(action: Callable[[], T], told: Callable[[], bool] = lambda: False) -> T:
    """What the action returns; Halt on every rank if it failed on one, or one was told to stop."""
    error: Exception | None = None
    result: Any = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    interrupted = isinstance(error, Interrupted)
    failed = error is not None and not interrupted
    if any_rank(failed):
        said = gather_objects(f"{type(error).__name__}: {error}" if failed else None)
        first = next(i for i, text in enumerate(said) if text is not None)
        raise Halt(error if failed else Failed(f"rank {first}: {said[first]}")) from error
    if any_rank(interrupted or told()):
        raise Halt(None)
    return result


def next_batches(trainer: AlignTrainer, source: Iterator[Any], number: int) -> list[Any] | None:
    """Micro-batches of the next optimiser step; None where the run ends before it."""
    if trainer.halted is not None or is_over(trainer):
        trainer.control.should_training_stop = True
        return None
    try:
        return [batch for _, batch in zip(range(number), source, strict=False)]
    except Halt as halt:
        stop_here(trainer, halt)
        return None


def measured_or_halted(trainer: AlignTrainer) -> dict[str, float] | None:
    """Figures of the held-out groups; None where measuring them ends the run."""
    try:
        measured = trainer.measure() if len(trainer.held_out) else {}
        return measured | suite_figures(trainer)
    except Halt as halt:
        # After training there is nothing to save; the best model needs a figure to be compared by.
        if not trainer.is_in_train or trainer.args.metric_for_best_model is not None:
            raise (halt.cause or halt) from halt
        stop_here(trainer, halt)
        return None


def stop_here(trainer: AlignTrainer, halt: Halt) -> None:
    """Let the Trainer end: save the last finished step, where that has not been done."""
    trainer.halted = halt
    step, control = trainer.state.global_step, trainer.control
    marker = Path(str(trainer.args.output_dir)) / f"checkpoint-{step}" / COMPLETE
    control.should_log = control.should_training_stop = True
    control.should_save = step > 0 and not from_rank_zero(marker.exists)


def raise_cause(trainer: AlignTrainer) -> None:
    """After training: raise what it was halted or stopped by, saying what was saved."""
    callbacks = trainer.callback_handler.callbacks
    stop = next(c for c in callbacks if isinstance(c, StopOnSignal))
    if trainer.halted is None and not stop.stopped:
        return
    train, step = trainer.settings.train, trainer.state.global_step
    saved = f"saved {train.output_dir}/checkpoint-{step}" if step else "no step was finished yet"
    cause = trainer.halted.cause if trainer.halted else None
    if cause is None:
        raise StopRequested(f"{stop.received or 'another rank was signalled'}; {saved}")
    if isinstance(cause, UserError):
        raise cause
    command = "the same command" if train.resume == "auto" else "--train.resume auto"
    on = f"goes on at step {step + 1}" if step else "starts anew"
    if step:
        on += f" (after a change of a reward's file: --train.resume {saved.removeprefix('saved ')})"
    text = f"{cause}. {saved[0].upper()}{saved[1:]}: {command} {on}."
    raise Failed(text, everywhere=True) from cause
