"""Whole weights of a sharded policy for a while: what samples reads every weight at every token.

Under ZeRO-3 and FSDP2 a weight lives in parts on all ranks. To gather it for each layer and token
would be about ten times as slow as once a rollout (https://github.com/huggingface/trl/issues/1483).
So the policy's weights, adapters already added to them, are copied into a plain model, a chunk at a
time; reference, critic and reward models are never gathered, and no engine's hooks are touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from align.distributed import full_tensor, gathered, sharded, without_zero3
from align.policy_module import base_model

_MIB = 1 << 20


@contextmanager
def whole_lm(lm: Any, device: Any, chunk_mb: int) -> Iterator[Any]:
    """Give the policy's causal LM with its weights in one piece.

    lm: a transformers model or PeftModel. Where nothing is sharded it is given as it is; else a
    plain copy on `device`, in evaluation mode, that lives inside the block. chunk_mb: MiB of
    weights that are gathered at once beside the copy. Every rank must enter; inside, ranks are
    independent of each other.
    """
    if not sharded(lm):
        yield lm
        return
    copied = plain_copy(lm, device)
    fill(copied, lm, chunk_mb * _MIB)
    yield copied


def plain_copy(lm: Any, device: Any) -> Any:
    """A model without adapters like the base of `lm`, its buffers copied, its weights not yet."""
    source = base_model(lm)
    with without_zero3(), torch.device("meta"):
        made = type(source)(copy.deepcopy(source.config))
    made.to(source.dtype)
    made.to_empty(device=device)
    made.tie_weights()  # which moving from the meta device undoes
    made.eval().requires_grad_(False)
    buffers = dict(source.named_buffers())
    for name, buffer in made.named_buffers():
        buffer.copy_(buffers[name])
    return made


def fill(target: nn.Module, lm: Any, chunk: int) -> None:
    """Copy the weights of `lm`, active adapter added, into `target`; at most chunk bytes at once.

    A single weight larger than a chunk is gathered alone.
    """
    part: list[tuple[Tensor, nn.Module, str]] = []
    size = 0
    source = base_model(lm)
    for name, parameter in target.named_parameters():
        path, _, own = name.rpartition(".")
        if part and size + parameter.nbytes > chunk:
            _copy(part)
            part, size = [], 0
        part.append((parameter, source.get_submodule(path), own))
        size += parameter.nbytes
    _copy(part)


def _copy(part: Sequence[tuple[Tensor, nn.Module, str]]) -> None:
    """Gather the weights of some modules and copy them."""
    needed = [p for _, module, own in part for p in _parts_of(module, own)]
    with torch.no_grad(), gathered(needed):
        for parameter, module, own in part:
            parameter.copy_(full_tensor(_value(module, own)))


def _parts_of(module: Any, own: str) -> list[Tensor]:
    """Every weight that makes up one weight of the plain model."""
    if not _adapted(module):
        return [getattr(module, own)]
    weights = [getattr(module.get_base_layer(), own)]
    if own == "weight":
        for name in module.active_adapters:
            for pieces in (module.lora_A, module.lora_B):
                weights += list(pieces[name].parameters()) if name in pieces else []
            for pieces in (module.lora_embedding_A, module.lora_embedding_B):
                weights += [pieces[name]] if name in pieces else []
    return weights


def _value(module: Any, own: str) -> Tensor:
    """W, or W + s·B A where an adapter is on it."""
    if not _adapted(module):
        return getattr(module, own)
    weight = getattr(module.get_base_layer(), own)
    if own == "weight":
        for name in module.active_adapters:
            if name in module.lora_variant:
                raise NotImplementedError(
                    f"a {type(module).__name__} of another kind than plain LoRA cannot be added to "
                    "sharded weights. Use ZeRO-2, or merge the adapter first"
                )
            if name in module.scaling:
                weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight


def _adapted(module: Any) -> bool:
    return hasattr(module, "get_delta_weight")

