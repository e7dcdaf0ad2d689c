"""Whole runs on a k-bit base, on the CPU: every method trains, and a resume changes no bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs
from test_resume import in_parts

from align.evaluation.generate import main as generate

pytest.importorskip("bitsandbytes", reason="extra 'quantize'")
METHODS = ("sft", "reward", "dpo", "orpo", "ppo")


def kbit(bits: str) -> tuple[str, ...]:
    return ("--policy.lora", "{r: 4}", "--policy.quantization", bits)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_four_bits(tmp_path, method):
    run = runs.train(method, tmp_path / "run", *kbit("4bit"), *runs.CONSTANT)
    moved = [t for n, t in runs.weights(run).items() if n.startswith("adapter/") and "lora_B" in n]
    assert moved  # they start at 0
    assert all(bool(t.abs().max() > 0) for t in moved)
    lines = runs.figures(run)
    assert [row["step"] for row in lines if "loss" in row] == [1, 2, 3, 4]
    if method == "dpo":  # the policy is its reference before the first step
        assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    if method in ("sft", "ppo"):
        assert generate(["--model", str(run), "--prompt", "你好", "--max_new_tokens", "2"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_sft_learns(tmp_path, bits):
    base = runs.ROOT / "recipes" / "assets" / "demo_base"  # a random base has nothing to adapt
    words = ("--train.max_steps", 12, "--train.learning_rate", 3e-3, "--train.eval_steps", 4,
             "--policy.path", base, *runs.CONSTANT)  # fmt: skip
    run = runs.train("sft", tmp_path / "run", *kbit(bits), *words)
    held_out = [row["eval_loss"] for row in runs.figures(run) if "eval_loss" in row]
    assert held_out[-1] < held_out[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bits"), [("sft", "4bit"), ("dpo", "8bit"), ("reward", "4bit"), ("ppo", "4bit")]
)
def test_half_and_half_is_the_whole(tmp_path, method, bits):
    in_parts(method, tmp_path, 4, (2,), *kbit(bits))


def test_a_critic_of_its_own_may_be_quantised_too(tmp_path):
    words = ("--ppo.critic", "separate", *kbit("8bit"))
    run = runs.train("ppo", tmp_path / "run", *words, *runs.CONSTANT)
    assert all(bool(torch.isfinite(t).all()) for t in runs.weights(run).values())
