"""What watches a run: metrics.jsonl, progress, signals, completed checkpoints."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from align.checkpoint_files import rotate, seal
from align.distributed import any_rank, barrier
from align.files import sync, write_atomic
from align.run_manifest import read_manifest
from align.train import watch

# What people watch, in this order; the rest is in metrics.jsonl.
_WATCHED = (
    "loss", "score/mean", "kl/sum", "rewards/accuracies", "rewards/margins", "accuracy",
    "grad_norm", "learning_rate", "tokens_per_s",
)  # fmt: skip


class MetricsWriter(TrainerCallback):
    """Appends every log line to metrics.jsonl; a resumed run first drops what it will repeat."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that training starts from."""
        if not state.is_world_process_zero or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # half written when the run was killed
            final = "train_runtime" in row
            if row.get("step", 0) <= state.global_step and state.global_step > 0 and not final:
                kept.append(line + "\n")
        write_atomic(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any
    ) -> None:
        """Write one line."""
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, **{k: plain(v) for k, v in (logs or {}).items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A JSON value: numbers as they are, what is not finite as null, the rest as text."""
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


class Progress(TrainerCallback):
    """A bar with live figures on a terminal, one line per log step elsewhere. Rank 0 only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None
        self.started, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.started, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero and sys.stderr.isatty():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any
    ) -> None:
        """Show the figures."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        evaluation = any(name.startswith("eval_") for name in logs)
        names = [n for n in logs if n.startswith("eval_")] if evaluation else _WATCHED
        shown = {n: _short(logs[n]) for n in names if isinstance(logs.get(n), (int, float))}
        if self.bar is not None:
            if evaluation:
                self.bar.write("  ".join(f"{k} {v}" for k, v in shown.items()))
            else:
                self.bar.set_postfix(shown, refresh=False)
            return
        done = state.global_step - self.first
        left = ""
        if done:
            seconds = (time.monotonic() - self.started) / done * (state.max_steps - self.first)
            remaining = seconds - (time.monotonic() - self.started)
            left = f"  ({max(remaining, 0):.0f} s left)"
        figures = "  ".join(f"{k} {v}" for k, v in shown.items())
        print(f"{self.name} {state.global_step}/{state.max_steps}  {figures}{left}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def _short(value: float) -> str:
    return f"{value:.4g}"


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGUSR1 end the run after the current step, with a checkpoint.

    A scheduler that takes the machine away sends one of them to every process, or to one: the ranks
    agree after each step. A rollout that is being made is given up (`align.train.halt`).
    stopped: whether that happened.
    """

    SIGNALS = (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))

    def __init__(self) -> None:
        self.received: str | None = None
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen from now on."""
        for number in set(self.SIGNALS):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: nobody sends signals here
                return

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name
        watch.ask_to_stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop if any rank was told to; the figures since the last log line are kept."""
        if any_rank(self.received is not None):
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class CheckpointMarker(TrainerCallback):
    """Marks a checkpoint as complete after everything in it is written.

    made: what decides the course of training (settings, batch: examples of a step, engine);
    `align.train.resume` compares it. keep: checkpoints that stay; None: all.
    """

    def __init__(self, made: Mapping[str, Any], keep: int | None = None) -> None:
        self.made, self.keep = made, keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the marker, last: after the files of all ranks; then remove older checkpoints."""
        barrier()
        marker = {
            "step": state.global_step,
            "world_size": args.world_size,
            **self.made,
            "inputs": read_manifest(Path(args.output_dir)).get("inputs", {}),
        }
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", marker)
        if state.is_world_process_zero:
            sync(Path(args.output_dir) / "metrics.jsonl")
            rotate(args.output_dir, self.keep, state.best_model_checkpoint)
