"""Model FLOPs utilisation: the operations that a model needs, as a share of the device's peak."""

from __future__ import annotations

import time
from typing import Any

import torch

from align import cost
from align.model_shape import shape_of

# Dense bfloat16 operations a second (float16 where a device has no bfloat16), from the makers' data
# sheets. The longest name that is found in the device's own counts.
PEAKS = {
    "B200": 2250e12, "B100": 1750e12, "H200": 989e12, "H100": 989e12, "H100 PCIe": 756e12,
    "H100 NVL": 835e12, "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12,
    "A40": 150e12, "A30": 165e12, "A10": 125e12, "A10G": 70e12, "L40S": 362e12, "L40": 181e12,
    "L4": 121e12, "V100": 125e12, "T4": 65e12, "RTX 3090": 71e12, "RTX 4090": 165e12,
    "RTX 5090": 210e12, "RTX A6000": 155e12, "RTX 6000 Ada": 364e12, "MI300X": 1307e12,
    "MI250X": 383e12, "MI210": 181e12,
}  # fmt: skip
# Small enough for some products to meet nothing else that the machine does.
_SIZE, _SECONDS = 512, 0.2


def peak_of(name: str) -> float | None:
    """Peak of an accelerator by its name, operations a second; None for one that is not known."""
    words = f" {name.replace('-', ' ')} "
    found = [known for known in PEAKS if f" {known} " in words]
    return PEAKS[max(found, key=len)] if found else None


def measured_peak(seconds: float = _SECONDS) -> float:
    """What float32 matrix products of 512³ reach on this CPU's threads, operations a second."""
    a, b = torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
    out = a @ b  # threads and memory are there from now on
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * _SIZE**3 / (time.perf_counter() - start))
    return best


def device_peak(device: torch.device) -> float | None:
    """Peak of a process' device; a CPU's is measured."""
    if device.type == "cpu":
        return measured_peak()
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def token_operations(
    model: Any, row: int, seen: float | None = None, predicted: float | None = None
) -> float:
    """Operations of a training step a token, in rows of `row` tokens.

    seen: mean tokens of a text, where a token sees its own alone. predicted: share of tokens that a
    masked LM predicts, each token seeing all of the row; None: all, each seeing those before it.
    Nothing that is computed twice (gradient checkpointing) counts twice.
    """
    length = row if seen is None else min(float(row), max(seen, 1.0))
    pairs = row * (length + 1) / 2 if predicted is None else row * length
    work = cost.Work(row, pairs, row * (1.0 if predicted is None else predicted))
    return cost.step(shape_of(model), work) / row
