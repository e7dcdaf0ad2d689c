"""Work that several processes share and whose result does not depend on how many there are.

What is computed together is fixed before it is shared: a chunk of rows is one rank's, whichever
that is, and its batch, its padding and its rounding are the same on one process as on eight. Every
row belongs to one chunk, so nothing is counted twice, also where the last chunk is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from align import launch_env
from align.config_errors import UserError
from align.distributed import gather_objects, rank, world_size

T = TypeVar("T")


def over_ranks(
    order: Sequence[int], size: int, work: Callable[[list[int]], Sequence[T]]
) -> list[T]:
    """Results of `work`, one for each index, in the order of the indices, on every rank.

    order: the numbers 0 … n − 1 in the order in which they are cut into chunks of `size`. work:
    returns as many results as it is given indices; it must not meet other ranks. An error of one
    rank is raised on all of them.
    """
    found: dict[int, T] = {}
    failed: BaseException | None = None
    try:
        for number, start in enumerate(range(0, len(order), size)):
            if number % world_size() == rank():
                chunk = list(order[start : start + size])
                found.update(zip(chunk, work(chunk), strict=True))
    except Exception as error:  # the others wait in the gathering below
        failed = error
    told = failed if isinstance(failed, UserError) else None
    said = f"{type(failed).__name__}: {failed}" if failed else None
    everything: dict[int, T] = {}
    for number, (part, user_error, text) in enumerate(gather_objects((found, told, said))):
        if text is not None:
            if failed is not None:
                raise failed
            raise user_error or RuntimeError(f"rank {number}: {text}")
        everything.update(part)
    return [everything[i] for i in range(len(order))]


def in_chunks(
    lengths: Sequence[int], size: int, work: Callable[[list[int]], Sequence[Any]]
) -> list:
    """As `over_ranks`, rows of like length together, the longest first."""
    return over_ranks(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), size, work)


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Meet the other processes of a launch inside; nothing where there is one process.

    Only small objects are exchanged, so gloo serves every device. UserError if ranks are missing.
    """
    launch_env.refuse_lost_ranks()
    if launch_env.asked_world() == 1:
        yield
        return
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(launch_env.local_rank())
    # A rank may wait for as long as another's share of the answers takes.
    dist.init_process_group("gloo", timeout=timedelta(hours=24))
    try:
        launch_env.check_world(world_size())
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
