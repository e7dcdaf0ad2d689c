"""Cutting a rollout's groups into minibatches and passes, and numbers back into groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.groups import TokenGroup

if TYPE_CHECKING:
    from align.train.rollouts import Rollout


def prompt_indices(
    update: int, prompts: int, per_update: int, seed: int, shuffle: bool = True
) -> list[int]:
    """Which prompts an update samples, all ranks together: passes over all, each shuffled anew."""
    wanted = range(update * per_update, (update + 1) * per_update)
    order: dict[int, list[int]] = {}
    chosen = []
    for i in wanted:
        epoch, place = divmod(i, prompts)
        if epoch not in order:
            drawn = torch.Generator().manual_seed(seed + epoch)
            shuffled = torch.randperm(prompts, generator=drawn).tolist()
            order[epoch] = shuffled if shuffle else list(range(prompts))
        chosen.append(order[epoch][place])
    return chosen


def in_order(
    flat: Tensor, groups: Sequence[TokenGroup], order: Sequence[int], per_candidate: bool
) -> Tensor:
    """Numbers of groups[order[0]], groups[order[1]], … as those of groups[0], groups[1], …."""
    sizes = [
        len(group.completions) if per_candidate else sum(map(len, group.completions))
        for group in groups
    ]
    parts = flat.split([sizes[i] for i in order])
    place = {group: rank for rank, group in enumerate(order)}
    return torch.cat([parts[place[i]] for i in range(len(groups))])


def attach(
    groups: list[TokenGroup],
    per_token: dict[str, Tensor],
    per_candidate: dict[str, Tensor],
    offsets: Tensor,
) -> None:
    """Split flat tensors over the groups' candidates."""
    bounds = offsets.tolist()
    lists = {name: x.tolist() for name, x in per_token.items()}
    singles = {name: x.tolist() for name, x in per_candidate.items()}
    c = 0
    for group in groups:
        mine = range(c, c + len(group.completions))
        group.extras = {
            name: [values[bounds[i] : bounds[i + 1]] for i in mine]
            for name, values in lists.items()
        } | {name: [values[i] for i in mine] for name, values in singles.items()}
        c += len(group.completions)


def select(group: TokenGroup, candidates: Sequence[int]) -> TokenGroup:
    """The same prompt with some of its candidates."""
    extras = {name: [values[k] for k in candidates] for name, values in group.extras.items()}
    return TokenGroup(group.prompt_ids, [group.completions[k] for k in candidates], extras=extras)


def chunks(groups: Sequence[TokenGroup], size: int) -> Iterator[list[TokenGroup]]:
    """Batches of at most `size` completions in order; a group is cut where a batch is full."""
    batch: list[TokenGroup] = []
    room = size
    for group in groups:
        start, total = 0, len(group.completions)
        while start < total:
            taken = min(room, total - start)
            batch.append(select(group, range(start, start + taken)))
            start, room = start + taken, room - taken
            if room == 0:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def minibatch(rollout: Rollout, number: int, count: int, seed: int) -> list[TokenGroup]:
    """The completions of one minibatch of one pass, equally many in each.

    Whole groups are dealt where their number allows it, so that candidates share their prompt;
    else single completions, and those of one prompt that meet in a minibatch share it.
    """
    drawn = torch.Generator().manual_seed(seed)
    groups = rollout.groups
    if len(groups) % count == 0:
        order = torch.randperm(len(groups), generator=drawn).tolist()
        size = len(groups) // count
        return [groups[i] for i in order[number * size : (number + 1) * size]]
    places = [(g, k) for g, group in enumerate(groups) for k in range(len(group.completions))]
    order = torch.randperm(len(places), generator=drawn).tolist()
    size = len(places) // count
    taken: dict[int, list[int]] = {}
    for i in order[number * size : (number + 1) * size]:
        g, k = places[i]
        taken.setdefault(g, []).append(k)
    return [select(groups[g], ks) for g, ks in taken.items()]


def as_batch_counts(groups: Sequence[TokenGroup]) -> dict[str, float]:
    """Completion tokens (items) and all tokens of some groups."""
    completion = float(sum(len(c) for g in groups for c in g.completions))
    prompts = float(sum(len(g.prompt_ids) for g in groups))
    return {"items": completion, "tokens": completion + prompts}
