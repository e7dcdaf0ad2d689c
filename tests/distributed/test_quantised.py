"""A k-bit base with two processes: DDP and ZeRO-2 take the steps of one; ZeRO-3 is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from launching import config_file, launch, need

pytest.importorskip("bitsandbytes", reason="extra 'quantize'")
pytestmark = pytest.mark.distributed
KBIT = ("--policy.lora", "{r: 4}", "--policy.quantization", "4bit", *runs.CONSTANT)


@pytest.mark.parametrize("name", ["cpu2", "zero2"])
def test_two_processes_take_the_steps_of_one(tmp_path, name):
    need(name)
    size = "--train.per_device_train_batch_size"
    alone = runs.train("dpo", tmp_path / "one", *KBIT, size, 4)
    argv = runs.arguments(tmp_path / "two", *KBIT, size, 2)
    done = launch("recipes/dpo.py", argv, config_file(name))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert runs.manifest(tmp_path / "two")["world_size"] == 2
    first, second = runs.weights(alone), runs.weights(tmp_path / "two")
    moved = [n for n in first if n.startswith("adapter/") and "lora_B" in n]
    assert all(bool(first[n].abs().max() > 0) for n in moved)
    assert all(torch.allclose(first[n], second[n], atol=2e-4) for n in first)
    for x, y in zip(runs.figures(alone), runs.figures(tmp_path / "two"), strict=True):
        kept = [{k: v for k, v in row.items() if k != "grad_norm"} for row in (x, y)]
        assert kept[0] == pytest.approx(kept[1], abs=1e-4, rel=1e-4)


def test_zero3_is_refused_with_what_works(tmp_path):
    need("zero3")
    done = launch("recipes/sft.py", runs.arguments(tmp_path / "run", *KBIT), config_file("zero3"))
    assert done.returncode != 0
    assert "policy.quantization='4bit' cannot be used while ZeRO-3" in done.stderr
    assert "accelerate_zero2.yaml" in done.stderr
