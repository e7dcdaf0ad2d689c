"""Figures between two log lines: sums and counts on the device, means over all ranks at a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from align.distributed import gather_objects, sum_over_ranks

Stats = Mapping[str, tuple[Tensor | float, Tensor | float]]
"""name -> (sum, count); the logged figure is Σ sums / Σ counts over micro-batches and ranks."""


class Objective(NamedTuple):
    """total: sum of the losses, a scalar on the graph. stats: figures to log."""

    total: Tensor
    stats: Stats


class Meter:
    """Collects `Stats`; `flush` returns their means over everything and all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}

    def add(self, stats: Stats) -> None:
        """Add one micro-batch's sums and counts."""
        for name, (total, count) in stats.items():
            first = _wide(total)
            pair = torch.stack([first, _wide(count).to(first.device)])
            held = self._sums.get(name)
            self._sums[name] = pair if held is None else held.to(pair.device) + pair

    def largest(self, name: str, value: float) -> None:
        """Keep the largest of the values under `name`."""
        self._largest[name] = max(value, self._largest.get(name, float("-inf")))

    def flush(self) -> dict[str, float]:
        """Means since the last call. Every rank must call, with the same names."""
        names = sorted(self._sums)
        out: dict[str, float] = {}
        if names:
            stacked = sum_over_ranks(torch.stack([self._sums[n].cpu() for n in names]))
            out = {
                name: (row[0] / row[1]).item()
                for name, row in zip(names, stacked, strict=True)
                if row[1] != 0
            }
        for ranked in gather_objects(self._largest) if self._largest else []:
            for name, value in ranked.items():
                out[name] = max(value, out.get(name, float("-inf")))
        self._sums, self._largest = {}, {}
        return out


def _wide(x: Tensor | float) -> Tensor:
    """A number as float64 (float32 on devices without)."""
    if not isinstance(x, Tensor):
        return torch.tensor(float(x), dtype=torch.float64)
    return x.detach().float().cpu() if x.device.type == "mps" else x.detach().double()
