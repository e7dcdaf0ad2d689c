"""The growing cache against transformers' own: the same keys and values, without a copy a token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny

from align.rollout.cache import GrowingLayer, growing_cache


def tokens(rows: int, new: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 2, new, 4, generator=drawn) for _ in range(2))
    return keys, values


def both(length: int) -> tuple[GrowingLayer, DynamicLayer]:
    return GrowingLayer(length), DynamicLayer()


def assert_equal(ours: GrowingLayer, theirs: DynamicLayer) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("length", [1, 9, 40])  # too little room, just enough, plenty
def test_holds_what_the_layer_of_transformers_holds(length):
    ours, theirs = both(length)
    for step, new in enumerate((5, 1, 1, 3)):
        given = tokens(3, new, step)
        for got, expected in zip(ours.update(*given), theirs.update(*given), strict=True):
            assert torch.equal(got, expected)
    for layer in (ours, theirs):
        layer.reorder_cache(torch.tensor([2, 0, 0]))
    assert_equal(ours, theirs)
    for layer in (ours, theirs):
        layer.update(*tokens(3, 1, 10))
        layer.batch_repeat_interleave(2)
        layer.batch_select_indices(torch.tensor([5, 1, 2]))
        layer.update(*tokens(3, 2, 11))
    assert_equal(ours, theirs)


def test_a_token_is_written_into_memory_that_was_there():
    layer = GrowingLayer(12)
    layer.update(*tokens(2, 4, 0))
    places = layer.keys.data_ptr(), layer.values.data_ptr()
    for step in range(6):
        layer.update(*tokens(2, 1, step))
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places
    layer.reorder_cache(torch.tensor([1]))  # the row that is left takes its room along
    kept = layer.keys.data_ptr()
    for step in range(2):
        layer.update(*tokens(1, 1, step))
        assert layer.keys.data_ptr() == kept
    layer.update(*tokens(1, 1, 9))  # a 13th token: one copy, nothing lost
    assert layer.get_seq_length() == 13


def test_a_reset_layer_starts_anew():
    layer = GrowingLayer(8)
    layer.update(*tokens(2, 3, 0))
    layer.reset()
    given = tokens(1, 2, 1)
    assert torch.equal(layer.update(*given)[0], given[0])


def test_layers_of_other_kinds_stay_what_they_are():
    windowed = tiny.model("mistral_window").config
    assert [type(x) for x in growing_cache(windowed, 9).layers] == [
        type(x) for x in DynamicCache(config=windowed).layers
    ]
    full = growing_cache(tiny.model("llama_gqa").config, 9).layers
    assert len(full) == 2
    assert all(type(layer) is GrowingLayer for layer in full)
