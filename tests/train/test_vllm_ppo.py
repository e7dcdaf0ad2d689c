"""PPO whose rollouts come from a server: weights pushed, checked, and the server brought back."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rollout"))
import ppo_models as tiny
import vllm_stub

from align.config_errors import Failed, UserError
from align.train import ppo
from align.train.runner import callbacks, run_training


@pytest.fixture
def engine(tmp_path):
    """The `rollout` keys of a server that the run starts: the stand-in."""
    python = vllm_stub.interpreter(tmp_path)
    return {"engine": "vllm_server", "server": {"python": python, "timeout_s": 60}}


def run(folder: Path, rollout: dict, *, steps: int = 3, **sections):
    """A run of a few updates of one step each, with what `ppo.train` does around it."""
    train = {"max_steps": steps, **sections.pop("train", {})}
    settings = tiny.config(folder, rollout=rollout, train=train, **sections)
    made = tiny.trainer(settings, callbacks=callbacks(settings))
    try:
        run_training(made, settings)
    finally:
        made.collector.close()
    return made


def test_each_update_samples_with_the_weights_it_is_measured_with(tmp_path, engine):
    made = run(tmp_path, engine, train={"learning_rate": 1e-2})
    gaps = tiny.logged(made, "sampler_gap")
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
    assert tiny.logged(made, "engine_restarts") == [0.0] * 3
    assert not (tmp_path / "run" / ".rollout_weights").exists()
    assert "stub: --model" in (tmp_path / "run" / "logs" / "vllm.log").read_text()


def test_a_push_that_the_server_does_not_take_ends_the_run(tmp_path, engine, monkeypatch):
    monkeypatch.setenv("STUB_DEAF", "1")
    said = "samples with other weights than the trainer's: right after a sync their log-probs"
    with pytest.raises(Failed, match=said):
        run(tmp_path, engine, train={"learning_rate": 1e-2})
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
