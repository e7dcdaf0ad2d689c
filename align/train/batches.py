"""Which examples each rank sees when: the same ones in a step for every world and micro-batch size.

The library's distributed sampler repeats examples so that all ranks get equally many, which changes
the gradient with the number of ranks. Here the last batches of an epoch are filled with examples
that carry no loss instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from align.groups import CPU_TOKENS, TokenGroup
from align.losses_dpo import BATCH_COUPLED

if TYPE_CHECKING:
    from align.config import Config

FILLER = -1


def filler(token: int = 0) -> TokenGroup:
    """A group that every model can read and that has no loss."""
    return TokenGroup([token], [[token]], masks=[[0]])


class GroupDataset(Dataset):
    """A sequence of groups, and the filler under index -1."""

    def __init__(self, groups: Sequence[TokenGroup]) -> None:
        self.groups = groups
        # As many candidates and extras as the others have, so that batches look alike.
        first = groups[0]
        empty = {
            k: [[] if isinstance(v[0], (list, tuple)) else 0.0] for k, v in first.extras.items()
        }
        self._filler = TokenGroup([0], [[0]], masks=[[0]], extras=empty)

    def __len__(self) -> int:
        """Number of real groups."""
        return len(self.groups)

    def __getitem__(self, index: int) -> TokenGroup:
        """Group `index`; FILLER gives one without loss."""
        return self._filler if index == FILLER else self.groups[index]


class StepBatches(Sampler[list[int]]):
    """Index lists of one rank, one list per micro-batch.

    Optimiser step s takes items [s·B, (s+1)·B) of the epoch's order, B = micro · world ·
    accumulation; micro-batch j of rank r is the (j·world + r)-th part. Missing items are FILLER.
    """

    def __init__(
        self, items: int, micro: int, accumulation: int, *, rank: int, world: int, seed: int,
        shuffle: bool,
    ) -> None:  # fmt: skip
        self.items, self.micro, self.accumulation = items, micro, accumulation
        self.rank, self.world, self.seed, self.shuffle = rank, world, seed, shuffle
        self.epoch = 0

    @property
    def batch_sampler(self) -> StepBatches:
        """Itself: where the Trainer looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of a rank in an epoch, all steps complete."""
        return -(-self.items // (self.micro * self.world * self.accumulation)) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the epoch's micro-batches."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.items, generator=generator).tolist()
        else:
            order = list(range(self.items))
        for j in range(len(self)):
            start = (j * self.world + self.rank) * self.micro
            part = order[start : start + self.micro]
            yield part + [FILLER] * (self.micro - len(part))


def train_loader(groups: Sequence[TokenGroup], sampler: StepBatches, collate: Any) -> DataLoader:
    """The loader that the Trainer iterates; it is not prepared by accelerate again."""
    return DataLoader(GroupDataset(groups), batch_sampler=sampler, collate_fn=collate)


def eval_parts(items: int, micro: int, *, rank: int, world: int) -> list[list[int]]:
    """Index lists of one rank for an evaluation: every item once over all ranks, as many lists."""
    parts = []
    for start in range(0, items, micro * world):
        mine = range(start + rank * micro, min(start + (rank + 1) * micro, items))
        parts.append(list(mine) or [FILLER])
    return parts


def token_budget(config: Config, device: torch.device, *, in_step: bool) -> int | None:
    """Tokens of one piece of a micro-batch; None leaves micro-batches whole.

    Without train.max_tokens_per_batch a CPU takes CPU_TOKENS at a time: more bring it no speed, and
    cost padding and memory. Where ranks go in step nothing is cut
    unasked; nor on accelerators, which like large batches; nor rows that packing has filled. A loss
    that sorts the whole batch is never cut.
    """
    if config.method == "dpo" and config.dpo.loss_type in BATCH_COUPLED:
        return None
    if config.train.max_tokens_per_batch is not None:
        return config.train.max_tokens_per_batch
    return None if in_step or config.packs or device.type != "cpu" else CPU_TOKENS


def pieces(groups: Sequence[TokenGroup], budget: int | None, layout: str) -> list[list[TokenGroup]]:
    """Cut a micro-batch so that no piece has more than `budget` tokens, padding included.

    A group is never cut: one that alone is over the budget is a piece of its own.
    """
    return [[groups[i] for i in part] for part in piece_indices(groups, budget, layout)]


def piece_indices(
    groups: Sequence[TokenGroup], budget: int | None, layout: str, *, ordered: bool = False
) -> list[list[int]]:
    """The indices of each piece's groups. ordered: keep the order given; else longest first."""
    if budget is None:
        return [list(range(len(groups)))]
    result: list[list[int]] = []
    order: Sequence[int] = range(len(groups))
    if not ordered:
        order = sorted(order, key=lambda i: -groups[i].row_tokens(layout))
    for i in order:
        if result and _cost([groups[j] for j in (*result[-1], i)], layout) <= budget:
            result[-1].append(i)
        else:
            result.append([i])
    return result


def _cost(groups: Sequence[TokenGroup], layout: str) -> int:
    """Tokens of the batch that the groups make, padding included."""
    rows = sum(len(g.completions) if layout == "plain" else 1 for g in groups)
    return rows * max(g.row_tokens(layout) for g in groups)
