"""Peaks of devices and operations of a token, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from align.train.speed import device_peak, measured_peak, peak_of, token_operations


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-16GB", 125e12), ("NVIDIA GeForce RTX 4090", 165e12),
        ("AMD Instinct MI300X", 1307e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12),
        ("Something new", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_device(name, peak):
    assert peak_of(name) == peak


def test_a_cpu_is_measured_and_random_numbers_stay():
    before = torch.random.get_rng_state()
    assert measured_peak(0.02) > 1e8
    assert torch.equal(before, torch.random.get_rng_state())
    assert device_peak(torch.device("cpu"))


def test_operations_of_a_token_by_hand():
    """GPT-2 of width 8, two layers, vocabulary 30, rows of ten tokens.

    Matrices of a layer: 8·24 + 8·8 + 8·32 + 32·8 = 768, of both 1,536; head 8·30 = 240. Each is
    6 operations a token, forward and backward: 6·1,776 = 10,656. Attention: 4·8·2 a pair forward,
    2.5 times that backward, 5.5 pairs a token: 64·3.5·5.5 = 1,232.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=10)
    )
    assert token_operations(model, 10) == pytest.approx(10_656 + 1_232)
    # Texts of three tokens that see themselves: two pairs a token.
    assert token_operations(model, 10, seen=3) == pytest.approx(10_656 + 64 * 3.5 * 2)
    # A masked model predicts 15 % of the tokens, and each sees all ten.
    masked = 6 * (1_536 + 0.15 * 240) + 64 * 3.5 * 10
    assert token_operations(model, 10, predicted=0.15) == pytest.approx(masked)
