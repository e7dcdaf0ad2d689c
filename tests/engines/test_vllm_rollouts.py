"""PPO with rollouts from a real vLLM server, in an environment of its own."""

from __future__ import annotations

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
from launching import ROOT, config_file, environment, launch
from vllm_models import LORA, base, rows

from align.engines.venvs import find_python, root

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(find_python("vllm") is None, reason=f"no vllm in {root()} (ALIGN_ENGINES)"),
]
# The prompts of an update are more tokens than a step may have.
SERVER = {"args": ["--max-num-seqs", "16", "--max-num-batched-tokens", "96"], "timeout_s": 300}


def prepared(folder: Path, steps: int = 4, **sections) -> list[str]:
    """The command line of a run of some updates."""
    rollout = {"engine": "vllm_server", "server": SERVER, **sections.pop("rollout", {})}
    train = {"max_steps": steps, "learning_rate": 1e-2, **sections.pop("train", {})}
    policy = {"path": base(), **sections.pop("policy", {})}
    tiny.config(folder, rollout=rollout, train=train, policy=policy, **sections)
    return ["--config", str(folder / "config.yaml")]


def recipe(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "recipes/ppo.py", *argv], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("sync", "more"), [("reload", {}), ("lora", LORA)], ids=["reload", "lora"])
def test_its_log_probs_are_the_trainers_after_every_push(tmp_path, sync, more):
    done = recipe(prepared(tmp_path, rollout={"sync": sync}, **more))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = rows(tmp_path)
    assert len(found) == 4
    assert max(row["sampler_gap"] for row in found) < 1e-4
    assert found[-1]["kl/sum"] > 0.05  # the weights have moved


def test_two_processes_share_one_server(tmp_path):
    done = launch("recipes/ppo.py", prepared(tmp_path, steps=2), config_file("ddp"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert max(row["sampler_gap"] for row in rows(tmp_path)) < 1e-4


def test_an_engine_that_is_killed_comes_back(tmp_path):
    argv = [sys.executable, "recipes/ppo.py", *prepared(tmp_path, steps=30)]
    with subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                          text=True) as run:  # fmt: skip
        end = time.monotonic() + 300
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() and time.monotonic() < end:
            time.sleep(0.2)
        os.kill(api_server(tmp_path), signal.SIGKILL)
        said = run.communicate(timeout=300)[0]
    assert run.returncode == 0
    assert "Restart 1 of 3" in said
    found = rows(tmp_path)
    assert len(found) == 30
    assert found[-1]["engine_restarts"] == 1
    assert max(row["sampler_gap"] for row in found) < 1e-4


def api_server(folder: Path) -> int:
    """The process that answers HTTP for the run of this folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if "vllm.entrypoints" in line and f"{folder}/" in line and "guard.py" not in line:
            return int(entry.name)
    raise AssertionError("no server runs")
