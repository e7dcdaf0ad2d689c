"""What both sides have in common: the job they get, the clock around each step, the result file.

A job is a JSON file. The clock is a callback of transformers' Trainer, which every side's trainer
is made of, so both are timed by the same lines: from the end of one optimiser step to the end of
the next, data and logging included. The first step warms up and is not counted.
"""

from __future__ import annotations

import functools
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback


class Stopwatch(TrainerCallback):
    """Seconds and logged figures of every optimiser step.

    adapter: folder of the numbers that a peer's adapter starts from, the other side's own.
    """

    def __init__(self, adapter: str | None = None) -> None:
        self.adapter = adapter
        self.ends: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.adapter:
            same_start(kwargs["model"], self.adapter)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_device():
            import torch

            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.logs.append({k: float(v) for k, v in logs.items() if _is_number(v)})

    def _on_device(self) -> bool:
        import torch

        return torch.accelerator.is_available()


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def watch(adapter: str | None = None) -> Stopwatch:
    """A stopwatch that every Trainer made from now on carries."""
    stopwatch = Stopwatch(adapter)
    original = transformers.Trainer.__init__

    @functools.wraps(original)  # some look at its signature
    def init(self: Any, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
        original(self, *args, callbacks=[*(callbacks or []), stopwatch], **kwargs)

    transformers.Trainer.__init__ = init  # type: ignore[method-assign]
    return stopwatch


def job() -> dict[str, Any]:
    """What to do, from the file named on the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def adapter_of(job: dict[str, Any]) -> str | None:
    """Folder of the adapter that both sides start from."""
    return f"{job['model']}/adapter" if job["lora"] else None


def lora_of(job: dict[str, Any]) -> dict[str, Any]:
    """That adapter's rank, scale and dropout, by the names that most peers give them."""
    config = json.loads(Path(f"{adapter_of(job)}/adapter_config.json").read_text(encoding="utf-8"))
    names = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    return {name: config[theirs] for name, theirs in names.items()}


def rows_of(job: dict[str, Any]) -> list[dict[str, str]]:
    """The rows to train on; a line ends at a line feed only, not at what else Unicode breaks at."""
    with Path(job["data"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def memory_of_process() -> float:
    """Peak memory in MiB: of the GPU where there is one, else resident memory of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def report(out: str, stopwatch: Stopwatch, *, steps_a_unit: int = 1, **more: Any) -> None:
    """Write the side's result; `more` is added: a text as a version, else as a figure.

    steps_a_unit: steps that are timed together (a PPO update's).
    """
    import torch

    ends = stopwatch.ends[steps_a_unit - 1 :: steps_a_unit]
    result = {
        "seconds": [b - a for a, b in itertools.pairwise(ends)],
        "logs": stopwatch.logs,
        "peak_mib": memory_of_process(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **{name: value for name, value in more.items() if isinstance(value, str)},
        },
        **{name: value for name, value in more.items() if not isinstance(value, str)},
    }
    Path(out).write_text(json.dumps(result), encoding="utf-8")


def same_start(model: Any, adapter: str) -> None:
    """Give the adapter of a peer's PeftModel the numbers that the other side starts from."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(f"{adapter}/adapter_model.safetensors")
    state = {name: tensor for name, tensor in saved.items() if "lora_" in name}
    model = getattr(model, "module", model)
    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters()}
    missed = [name for name in state if name not in parameters]
    if missed:
        raise SystemExit(f"the adapter does not fit the peer's model: {missed[:3]}")
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
