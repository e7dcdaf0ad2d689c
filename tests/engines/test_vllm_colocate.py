"""PPO with vLLM in the training processes, in the environment that has both, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import ppo_models as tiny
from launching import ROOT, environment
from vllm_models import LORA, base, gaps, rows

from align.engines.venvs import find_python, root

PYTHON = find_python("vllm-train")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(PYTHON is None, reason=f"no vllm-train in {root()} (ALIGN_ENGINES)"),
]


def prepared(folder: Path, steps: int = 4, **sections) -> list[str]:
    """The command line of a run of some updates."""
    rollout = {"engine": "hf", **sections.pop("rollout", {})}
    train = {"max_steps": steps, "learning_rate": 1e-2, "resume": "auto", "save_steps": 2,
             "save_strategy": "steps", **sections.pop("train", {})}  # fmt: skip
    policy = {"path": base(), **sections.pop("policy", {})}
    tiny.config(folder, rollout=rollout, train=train, policy=policy, **sections)
    return ["recipes/ppo.py", "--config", str(folder / "config.yaml"),
            "--rollout.engine", "vllm_colocate"]  # fmt: skip


def recipe(argv: list[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PYTHON), *launcher, *argv], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize(("sync", "more"), [("reload", {}), ("lora", LORA)], ids=["reload", "lora"])
def test_its_log_probs_are_the_trainers_after_every_push(tmp_path, sync, more):
    done = recipe(prepared(tmp_path, rollout={"sync": sync}, **more))
    assert done.returncode == 0, said(done)
    assert len(gaps(tmp_path)) == 4
    assert max(gaps(tmp_path)) < 1e-3
    assert rows(tmp_path)[-1]["kl/sum"] > 0.05  # the weights have moved
    assert not left(tmp_path)
    assert not (tmp_path / "run" / ".rollout_weights").exists()


def test_each_of_two_processes_has_its_own(tmp_path):
    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    done = recipe([*prepared(tmp_path, steps=2), "--train.use_cpu", "true"], *two)
    assert done.returncode == 0, said(done)
    assert len(gaps(tmp_path)) == 2
    assert max(gaps(tmp_path)) < 1e-3
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world_size"] == 2
    assert not left(tmp_path)
