"""PPO with vLLM in the training process: weights pushed, checked, and what follows a failure."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rollout"))
import ppo_models as tiny
import vllm_fake

from align.config_errors import Failed
from align.train import vllm_colocate
from align.train.runner import callbacks, run_training

LORA = {"policy": {"lora": {"r": 4, "alpha": 8.0, "target_modules": "all-linear"}}}


@pytest.fixture
def fake(monkeypatch):
    return vllm_fake.install(monkeypatch)


def run(folder: Path, *, steps: int = 3, **sections):
    """A run of a few updates of one step each, with what `ppo.train` does around it."""
    rollout = {"engine": "vllm_colocate", **sections.pop("rollout", {})}
    train = {"max_steps": steps, "learning_rate": 1e-2, **sections.pop("train", {})}
    settings = tiny.config(folder, rollout=rollout, train=train, **sections)
    made = tiny.trainer(settings, callbacks=callbacks(settings))
    try:
        run_training(made, settings)
    finally:
        made.collector.draws.close()
    return made


@pytest.mark.parametrize(("sync", "more"), [("auto", {}), ("lora", LORA)], ids=["reload", "lora"])
def test_each_update_samples_with_the_weights_it_is_measured_with(tmp_path, fake, sync, more):
    made = run(tmp_path, rollout={"sync": sync, "gpu_memory_utilization": 0.2}, **more)
    gaps = tiny.logged(made, "sampler_gap")
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
    assert all(math.isfinite(x) for x in tiny.logged(made, "score/mean"))
    assert tiny.logged(made, "kl/sum")[-1] != 0  # the weights have moved
    assert not (tmp_path / "run" / ".rollout_weights").exists()
    (llm,) = fake.made
    kept = {k: llm.settings[k] for k in ("generation_config", "logprobs_mode", "max_model_len",
            "dtype", "enforce_eager", "gpu_memory_utilization")}  # fmt: skip
    assert kept == {"generation_config": "vllm", "logprobs_mode": "processed_logprobs",
                    "max_model_len": 96, "dtype": "float32", "enforce_eager": True,
                    "gpu_memory_utilization": 0.2}  # fmt: skip
    calls = [name for name in fake.log if name != "step"]
    if sync == "lora":
        assert len(llm.stub.loaded) == 1  # the base
        assert calls == ["add_lora 1", "add_lora 2", "remove_lora 1", "add_lora 3", "remove_lora 2"]
    else:
        assert [Path(f).name for f in llm.stub.loaded] == ["weights-1", "weights-0", "weights-1"]
        assert calls == ["reload_weights", "reset_prefix_cache"] * 2


@pytest.mark.slow
def test_completions_of_a_prompt_differ_and_come_again(tmp_path, fake):
    (tmp_path / "again").mkdir()
    first = run(tmp_path, steps=2, rollout={"n": 4})
    again = run(tmp_path / "again", steps=2, rollout={"n": 4})
    seeds = [[r["seed"] for r in llm.stub.requests] for llm in fake.made]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(seeds[0]) == 2 * (16 + 1)  # and those of the checks
    assert tiny.logged(first, "score/mean") == tiny.logged(again, "score/mean")
    assert tiny.logged(first, "score/std")[0] > 0


def test_an_engine_that_keeps_old_weights_ends_the_run(tmp_path, fake):
    fake.faults.deaf = True
    with pytest.raises(Failed) as caught:
        run(tmp_path)
    said = str(caught.value)
    assert "vLLM samples with other weights than the trainer's: right after a sync" in said
    assert "more than rollout.max_sampler_gap=0.001. Look at what it said above" in said
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


def test_an_engine_that_fails_ends_the_run_which_resumes(tmp_path, fake):
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    fake.faults.dies_after = 12  # the check and 8 of each update: in the second
    with pytest.raises(Failed, match="vLLM in this process failed while sampling") as caught:
        run(tmp_path)
    assert "checkpoint-1" in str(caught.value)
    assert len(fake.made) == 2  # it was not started again
    fake.faults.dies_after = None
    resumed = run(tmp_path, train={"resume": "auto"})
    assert resumed.state.global_step == 3
    for name in ("score/mean", "kl/sum"):
        assert tiny.logged(resumed, name)[-2:] == pytest.approx(tiny.logged(whole, name)[-2:])


@pytest.mark.slow
def test_one_that_does_not_start_ends_the_run(tmp_path, fake):
    fake.faults.start = "not enough memory"
    with pytest.raises(Failed, match=r"vLLM did not start in this process: .*not enough memory"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("visible", "index", "given"), [("", 1, "1"), ("4,GPU-7", 1, "GPU-7"), ("4,GPU-7", 0, "4")]
)
def test_a_rank_gives_its_own_gpu(monkeypatch, visible, index, given):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = torch.device("cuda", index)
    assert vllm_colocate.engine_env(device)["CUDA_VISIBLE_DEVICES"] == given


def test_ranks_share_the_cores(monkeypatch):
    cpu = torch.device("cpu")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in vllm_colocate.engine_env(cpu)
    monkeypatch.setattr(vllm_colocate, "world_size", lambda: 2)
    assert vllm_colocate.engine_env(cpu)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert vllm_colocate.engine_env(cpu)["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_it_sleeps_on_a_gpu_alone(tmp_path, fake):
    config = tiny.config(tmp_path, rollout={"engine": "vllm_colocate"})
    assert vllm_colocate.llm_words(config, cpu=False)["enable_sleep_mode"]
    assert "dtype" not in vllm_colocate.llm_words(config, cpu=False)
    assert "enable_sleep_mode" not in vllm_colocate.llm_words(config, cpu=True)
