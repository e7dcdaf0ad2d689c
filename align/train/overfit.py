"""Over-fitting: the held-out loss rises while the training loss falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

WORSE_THAN_BEST = 2
"""Evaluations in a row above the best one before a word is said; one may be noise."""


def overfitting(rows: Sequence[dict[str, Any]]) -> str | None:
    """What the log lines of a run say about it, or None.

    Compared are the best held-out loss and the newest, and the means of the training losses that
    were logged in the intervals before those evaluations.
    """
    evaluations: list[tuple[int, float, float]] = []  # step, held out, training
    losses: list[float] = []
    for row in rows:
        if "eval_loss" in row:
            if losses:
                mean = sum(losses) / len(losses)
                evaluations.append((int(row["step"]), float(row["eval_loss"]), mean))
            losses = []
        elif "loss" in row:
            losses.append(float(row["loss"]))
    if not evaluations:
        return None
    best = min(range(len(evaluations)), key=lambda i: evaluations[i][1])
    now = len(evaluations) - 1
    if now - best < WORSE_THAN_BEST or evaluations[now][2] >= evaluations[best][2]:
        return None
    (at, low, then), (_, high, trained) = evaluations[best], evaluations[now]
    return (
        f"over-fitting: the held-out loss rose from {low:.4g} at step {at} to {high:.4g} while the "
        f"training loss fell from {then:.4g} to {trained:.4g}. More text, fewer steps, "
        "pretrain.dropout, a larger train.weight_decay or a smaller model help; "
        "train.early_stopping_patience stops here and keeps the best checkpoint"
    )


class OverfitWatch(TrainerCallback):
    """Says so once for each best evaluation that was left behind. Stopping is early stopping's."""

    def __init__(self) -> None:
        self._said: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the run so far."""
        found = overfitting(state.log_history)
        best = found.split(" while ")[0].split(" to ")[0] if found else None
        if found and best != self._said and state.is_world_process_zero:
            print(f"[align] {found}", flush=True)
        self._said = best or self._said
