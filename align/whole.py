"""Whole weights of a sharded policy for a while: what samples reads every weight at every token.

Under ZeRO-3 and FSDP2 a weight lives in parts on all ranks. To gather it for each layer and token
would be about ten times as slow as once a rollout (https://github.com/huggingface/trl/issues/1483).
So the policy's weights, adapters already added to them, are copied into a plain model, a chunk at a
time; reference, critic and reward models are never gathered, and no engine's hooks are touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    parameters = dict(target.named_parameters())
    for part in _chunks(target, lm, chunk):
        with torch.no_grad(), gathered([p for x in part for p in _parts_of(x.module, x.own)]):
            for x in part:
                parameters[x.name].copy_(full_tensor(_value(x.module, x.own)))


def whole_weights(
    lm: Any, chunk_mb: int, *, adapted: bool = True
) -> Iterator[list[tuple[str, Tensor]]]:
    """Name and value of the weights of `lm` as a plain model, at most chunk_mb MiB at once.

    adapted: with the active adapter added, else those below it. Every rank must iterate to the end;
    a value lives until the next is asked for.
    """
    source = base_model(lm)
    with without_zero3(), torch.device("meta"):
        names = type(source)(copy.deepcopy(source.config)).to(source.dtype)
    names.tie_weights()
    for part in _chunks(names, lm, chunk_mb * _MIB):
        with torch.no_grad(), gathered([p for x in part for p in _parts_of(x.module, x.own)]):
            value = _value if adapted else _below
            yield [(x.name, full_tensor(value(x.module, x.own)).detach()) for x in part]


class _Weight(NamedTuple):
    """name in the plain model; module of the policy, or its adapter, that has it as `own`."""

    name: str
    module: nn.Module
    own: str


def _chunks(plain: nn.Module, lm: Any, chunk: int) -> Iterator[list[_Weight]]:
    """The weights of a plain model in parts of at most chunk bytes, one at least."""
    part: list[_Weight] = []
    size = 0
    source = base_model(lm)
    for name, parameter in plain.named_parameters():
        path, _, own = name.rpartition(".")
        if part and size + parameter.nbytes > chunk:
            yield part
            part, size = [], 0
        part.append(_Weight(name, source.get_submodule(path), own))
        size += parameter.nbytes
    yield part


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


def _below(module: Any, own: str) -> Tensor:
    """W, without the adapter that may be on it."""
    return getattr(module.get_base_layer() if _adapted(module) else module, own)


def _adapted(module: Any) -> bool:
    return hasattr(module, "get_delta_weight")
