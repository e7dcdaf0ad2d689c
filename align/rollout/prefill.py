"""Reading the prompts of a batch, a piece at a time, into one cache for the tokens to come.

All rows of a batch decode together, so their prompts are padded to the longest. Reading them that
way would pass every padded place through the model. Here prompts of similar length are read
together, without the others' padding and with few enough tokens that a layer's activations stay in
the CPU's caches; then their keys and values are put into place. A prompt that is sampled several
times is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.rollout.cache import GrowingLayer, growing_cache

Forward = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@dataclass
class Prefill:
    """A batch that is ready to decode.

    logits (R, V) of the first token to draw, mask (R, width + room), positions (R, 1) of the last
    token, width: columns that the longest prompt takes.
    """

    cache: Any
    logits: Tensor
    mask: Tensor
    positions: Tensor
    width: int


def read_prompts(
    forward: Forward,
    config: Any,
    prompts: Sequence[Sequence[int]],
    index: Tensor,
    room: int,
    budget: int | None,
) -> Prefill:
    """Read prompts, the longest first; row r of the result is prompts[index[r]].

    forward(ids, mask, positions, cache) gives the logits after the last token. room: tokens to
    come. budget: tokens of a piece, padding included; None reads all at once, as do models some of
    whose layers keep something else than all keys and values.
    """
    device, width = index.device, max(map(len, prompts))
    first = growing_cache(config, width + room)
    whole = budget is None or not all(type(x) is GrowingLayer for x in first.layers)
    parts = [range(len(prompts))] if whole else pieces(prompts, budget or 0)
    if len(parts) == 1:
        ids, mask, positions = left_pad(prompts, room, device)
        logits = forward(ids, mask[:, :width], positions, first)
        if len(index) > len(prompts) or not _in_order(index):
            first.reorder_cache(index)
        return Prefill(first, logits[index], mask[index], positions[index, -1:], width)
    caches, found = [], []
    for part in parts:
        ids, mask, positions = left_pad([prompts[i] for i in part], 0, device)
        caches.append(growing_cache(config, ids.shape[1]))
        found.append(forward(ids, mask, positions, caches[-1]))
    lengths = torch.tensor([len(p) for p in prompts], device=device)[index, None]
    columns = torch.arange(width + room, device=device)
    return Prefill(
        joined(caches, parts, index, width, room, first),
        torch.cat(found)[index],
        (columns >= width - lengths).long(),
        lengths - 1,
        width,
    )


def pieces(prompts: Sequence[Sequence[int]], budget: int) -> list[range]:
    """Runs of prompts, at most `budget` tokens each with their padding, or a single prompt."""
    parts, start, longest = [], 0, 0
    for i, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if i > start and longest * (i + 1 - start) > budget:
            parts.append(range(start, i))
            start, longest = i, len(prompt)
    return [*parts, range(start, len(prompts))]


def joined(
    caches: list[Any], parts: Sequence[range], index: Tensor, width: int, room: int, target: Any
) -> Any:
    """One cache of len(index) rows from those of the parts, each aligned at column `width`.

    A layer of a part is given up as soon as it is copied.
    """
    members = [((index >= p.start) & (index < p.stop)).nonzero()[:, 0] for p in parts]
    for number, layer in enumerate(target.layers):
        memory: list[Tensor] = []
        for which in ("keys", "values"):
            sample = getattr(caches[0].layers[number], which)
            filled = sample.new_empty(len(index), sample.shape[1], width + room, sample.shape[-1])
            for cache, part, rows in zip(caches, parts, members, strict=True):
                held = getattr(cache.layers[number], which)
                start = width - held.shape[-2]
                filled[rows, :, start:width] = held[index[rows] - part.start]
                filled[rows, :, :start] = 0  # masked, and 0 · NaN would still be NaN
            memory.append(filled)
        layer.fill(memory[0], memory[1], width)
        for cache in caches:
            cache.layers[number].reset()
    return target


def _in_order(index: Tensor) -> bool:
    return torch.equal(index, torch.arange(len(index), device=index.device))


def left_pad(
    prompts: Sequence[Sequence[int]], room: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts as one left-padded batch.

    Returns ids (R, P), mask (R, P + room) with ones for the tokens to come, and positions (R, P)
    that count real tokens only, which learned position embeddings need. The padding id is 0:
    whatever it means to the tokenizer, the mask hides it.
    """
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.ones(len(prompts), width + room, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        pad = width - len(prompt)
        ids[row, pad:] = torch.tensor(prompt)
        mask[row, :pad] = 0
    real = mask[:, :width]
    return ids.to(device), mask.to(device), (real.cumsum(1) - 1).clamp(min=0).to(device)
