"""A key/value cache with room for the tokens to come.

transformers' DynamicLayer copies the whole cache for every new token. Here a token is written into
memory that was asked for once; rows that leave take their place with them. Only public methods of
the layer are used, and layers of other kinds (sliding windows, linear attention) stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def growing_cache(config: Any, length: int) -> Any:
    """DynamicCache for a model whose full-attention layers hold `length` tokens without a copy."""
    cache: Any = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class GrowingLayer(DynamicLayer):
    """keys, values: views (rows, heads, tokens so far, head size) of memory for `length` tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self._memory: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens (rows, heads, new, head size); return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._memory or self._memory[0].shape[-2] < end:
            self._memory = [
                _with_room(old, new, max(end, self.length), start)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        keys, values = self._memory
        keys[..., start:end, :], values[..., start:end, :] = key_states, value_states
        self.keys, self.values = found = keys[..., :end, :], values[..., :end, :]
        return found

    def fill(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        """Take over memory (rows, heads, length, head size) whose first `tokens` are written."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._memory = [keys, values]
        self.keys, self.values = (memory[..., :tokens, :] for memory in self._memory)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, or take them several times, with the room that was there."""
        tokens = self.get_seq_length()
        kept = []
        for memory in self._memory:
            taken = memory.new_empty(len(beam_idx), *memory.shape[1:])
            taken[..., :tokens, :] = memory[..., :tokens, :][beam_idx]
            kept.append(taken)
        if kept:
            self._memory = kept
            self.keys, self.values = (memory[..., :tokens, :] for memory in kept)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As `reorder_cache`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take every row so many times."""
        if self._memory:
            memory = self._memory[0]
            self.reorder_cache(
                torch.arange(len(memory), device=memory.device).repeat_interleave(repeats)
            )

    def reset(self) -> None:
        """Forget everything."""
        self._memory = []
        super().reset()


def _with_room(old: Tensor | None, new: Tensor, length: int, start: int) -> Tensor:
    memory = new.new_empty(*new.shape[:2], length, new.shape[-1])
    if start and old is not None:
        memory[..., :start, :] = old
    return memory
