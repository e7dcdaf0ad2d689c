"""Memory that runs out, and gradients that are not numbers."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
import processes
from processes import runs

from align.checkpoint_files import complete
from align.config import load_config
from align.disk import size
from align.out_of_memory import is_out_of_memory, knobs
from align.run import run
from align.train import sft

pytestmark = pytest.mark.faults
OPTIONS = ("--train.resume", "auto", "--train.max_steps", 6, "--train.save_steps", 2,
           "--train.eval_strategy", "no", *runs.CONSTANT)  # fmt: skip


def test_memory_that_runs_out(tmp_path, fault):
    fault(
        "out of memory",
        "exit 1 with what to change, an estimate of what each change saves, and "
        "the last checkpoint",
    )
    folder = tmp_path / "run"
    options = (*OPTIONS, "--train.per_device_train_batch_size", 24, "--data.max_length", 600)
    running = processes.start("sft", folder, *options, wrong="little_memory")
    assert running.wait() == 1, running.out
    assert "Failed: out of memory: " in running.out
    for words in (
        "--train.per_device_train_batch_size 12 --train.gradient_accumulation_steps 2",
        "--train.max_tokens_per_batch 600", "--train.gradient_checkpointing true",
        "ds_configs/accelerate_zero1.yaml with 8 processes",
        "ds_configs/accelerate_zero2.yaml with 8 processes",
        "ds_configs/accelerate_zero3.yaml with 8 processes",
    ):  # fmt: skip
        assert re.search(rf"^  {re.escape(words)}: [\d.]+ [KMG]iB$", running.out, re.M), running.out
    assert f"The last complete checkpoint is {folder}/checkpoint-2." in running.out


def test_the_estimates_are_those_of_adam_and_zero(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = load_config("sft", runs.arguments(Path("unused")))
    found = dict(knobs(config))
    weights = sum(x.numel() for x in load_file(Path(runs.base()) / "model.safetensors").values())
    # Eight processes: 7/8 of Adam's two float32 moments, and of the gradients.
    assert found["ds_configs/accelerate_zero1.yaml with 8 processes"] == size(weights * 7)
    assert found["ds_configs/accelerate_zero2.yaml with 8 processes"] == size(weights * 10.5)


def test_an_adapter_saves_what_frozen_weights_need_no_more(tmp_path):
    config = load_config("sft", runs.arguments(Path("unused"), "--data.max_length", 97))
    LlamaConfig(hidden_size=512, num_hidden_layers=4, vocab_size=32000).save_pretrained(tmp_path)
    config.policy.path = str(tmp_path)
    config.train.args["per_device_train_batch_size"] = 1
    found = dict(knobs(config))["--policy.lora '{r: 16}'"]
    # About three times the weights of 4 bytes: 2 · 32000 · 512 of tables, and 4 layers.
    layer = 4 * 512 * 512 + 3 * 512 * 11008
    weights = 4 * (2 * 32000 * 512 + 4 * layer) / 2**20
    assert found.endswith("GiB")
    assert float(found.split()[0]) * 1024 == pytest.approx(3 * weights, rel=0.05)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_gradient_that_is_not_a_number(tmp_path, capsys, monkeypatch, fault):
    fault(
        "a NaN gradient",
        "exit 1 before the step, the last good checkpoint named; the same command goes on",
    )
    plain = sft.TokenTrainer

    class Spoiled(plain):
        def objective(self, model, batch):
            result = super().objective(model, batch)
            if self.state.global_step == 4 and model.training:
                result.total.register_hook(lambda gradient: gradient * math.nan)
            return result

    folder = tmp_path / "run"
    monkeypatch.setattr(sft, "TokenTrainer", Spoiled)
    assert run("sft", runs.arguments(folder, *OPTIONS)) == 1
    error = capsys.readouterr().err
    assert "step 5: the gradient is not finite" in error
    assert f"The last good checkpoint is {folder}/checkpoint-4" in error
    assert [p.name for p in complete(folder)] == ["checkpoint-4", "checkpoint-2"]
    monkeypatch.setattr(sft, "TokenTrainer", plain)
    runs.train("sft", folder, *OPTIONS)
    processes.same(runs.train("sft", tmp_path / "whole", *OPTIONS), folder)
