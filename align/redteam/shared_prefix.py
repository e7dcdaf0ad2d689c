"""Log-likelihoods of many rows that begin alike: what they share is read once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many first ids all rows have in common, at least one id of each left over."""
    shortest = min(map(len, rows))
    same = (i for i in range(shortest - 1) if len({row[i] for row in rows}) > 1)
    return next(same, shortest - 1)


@torch.no_grad()
def tail_logps(
    model: Any, rows: Sequence[Sequence[int]], *, max_tokens: int = 4096
) -> tuple[int, list[float]]:
    """Σ log p of each row's ids after the part that all share, nats.

    rows: R lists of ids, at least two ids each and the first id in common. max_tokens: padded
    tokens a forward pass, the shared part included. Returns the length of the shared part, and R
    sums: a row's whole likelihood less what the shared part has, which is the same for all.
    """
    start = shared_length(rows)
    if start < 1:
        raise ValueError("the rows have no first id in common")
    device = model.device
    # transformers renamed past_key_values to cache (5.2x); drop the old name with its versions.
    accepts = inspect.signature(model.forward).parameters
    name = next(k for k in ("cache", "past_key_values") if k in accepts)
    read: Any = DynamicCache(config=model.config)
    prefix = torch.tensor([list(rows[0][:start])], device=device)
    first = model(input_ids=prefix, use_cache=True, **{name: read}).logits[:, -1:].float()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    longest = max(map(len, rows))
    size = max(1, max_tokens // longest)
    found = [0.0] * len(rows)
    for at in range(0, len(order), size):
        batch = order[at : at + size]
        tails = [list(rows[i][start:]) for i in batch]
        cache = copy.deepcopy(read)
        cache.batch_repeat_interleave(len(batch))
        ids, mask = _padded(tails, device)
        whole = torch.cat([mask.new_ones(len(batch), start), mask], dim=1)
        places = torch.arange(start, start + ids.shape[1], device=device).expand(len(batch), -1)
        optional = {"position_ids": places} if "position_ids" in accepts else {}
        logits = model(
            input_ids=ids, attention_mask=whole, use_cache=True, **{name: cache}, **optional
        ).logits
        logits = torch.cat([first.expand(len(batch), -1, -1), logits[:, :-1].float()], dim=1)
        logps = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        for i, total in zip(batch, (logps * mask).sum(1).tolist(), strict=True):
            found[i] = total
    return start, found


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask of right-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
