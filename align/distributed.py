"""What differs when several processes train together: sums over ranks, ZeRO-3, rank order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align import launch_env


def is_distributed() -> bool:
    """Whether a process group of more than one rank exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process' rank among all."""
    return dist.get_rank() if is_distributed() else 0


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of x over the ranks, a new tensor; what `reduce` is in `align.advantages`."""
    if not is_distributed():
        return x
    # The group's backend decides where a tensor must be: gloo takes any, nccl only the device's.
    device = x.device
    total = x.clone() if dist.get_backend() == "gloo" else x.to(_device()).clone()
    dist.all_reduce(total)
    return total.to(device)


def max_over_ranks(value: float) -> float:
    """Largest of the ranks' numbers."""
    if not is_distributed():
        return value
    held = torch.tensor(float(value), dtype=torch.float64, device=_device())
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return held.item()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank."""
    return max_over_ranks(float(flag)) > 0


def gather_objects(value: Any) -> list[Any]:
    """The ranks' objects in the order of the ranks, on every rank."""
    if not is_distributed():
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def from_rank_zero(make: Callable[[], Any]) -> Any:
    """What `make` returns on rank 0, sent to every rank; its error is raised everywhere."""
    if not is_distributed():
        return make()
    held: list[Any] = [None, None]
    if rank() == 0:
        try:
            held[0] = make()
        except Exception as error:
            held[1] = error
    dist.broadcast_object_list(held, src=0)
    if held[1] is not None:
        raise held[1]
    return held[0]


def zero3() -> bool:
    """Whether weights are sharded by DeepSpeed ZeRO-3."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


@contextmanager
def gathered(parameters: Sequence[Tensor], modify: bool = False) -> Iterator[None]:
    """Whole weights inside, under ZeRO-3; rank 0's changes are kept where modify is set."""
    if not zero3():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None):
        yield


@contextmanager
def without_zero3() -> Iterator[None]:
    """Load a model whole inside although the run shards: transformers reads a global to decide."""
    if not zero3():
        yield
        return
    from transformers.integrations import deepspeed as integration

    held = integration.deepspeed_config()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        _KEPT.append(integration.HfDeepSpeedConfig(held))  # making one registers it


# transformers holds its DeepSpeed configuration by a weak reference.
_KEPT: list[Any] = []


def check_launch(accelerator: Any) -> None:
    """Raise UserError unless the ranks are those of the launch, and in its engine.

    Launches that look right can leave every rank with rank 0, or train without the engine that the
    configuration names, and exit 0.
    """
    ranks = gather_objects(accelerator.process_index)
    if ranks != list(range(launch_env.asked_world())) or rank() != launch_env.rank():
        raise launch_env.wrong_launch(
            f"started ranks 0 to {launch_env.asked_world() - 1}, and the trainer's are {ranks}"
        )
    engine = accelerator.distributed_type.value
    for asked, kind in (
        (launch_env.under_fsdp(), "FSDP"),
        (launch_env.under_deepspeed(), "DEEPSPEED"),
    ):
        if asked and engine != kind:
            raise launch_env.wrong_launch(f"asked for {kind} and the trainer has {engine}")


def in_parts() -> bool:
    """Whether ranks hold parts of weights: their passes must be equally many."""
    return zero3() or launch_env.under_fsdp()


def total_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of gradients, over the parts of all ranks where these hold parts."""
    kinds = [[g for g in gradients if is_dtensor(g) is parts] for parts in (False, True)]
    norms = [full_tensor(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    if len(norms) < 2:
        return float(norms[0]) if norms else 0.0
    return float(torch.stack(norms).norm())


def is_dtensor(x: Any) -> bool:
    """Whether FSDP2 or tensor parallelism holds a tensor in parts."""
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def full_tensor(x: Any) -> Tensor:
    """A tensor that ranks hold in parts put together, on all of them; any other as it is."""
    return x.full_tensor() if is_dtensor(x) else x


def sharded(module: nn.Module) -> bool:
    """Whether the ranks hold parts of this model's weights now."""
    return zero3() or any(is_dtensor(p) for p in module.parameters())


def _device() -> Any:
    if dist.get_backend() == "gloo":
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator() or "cpu")
