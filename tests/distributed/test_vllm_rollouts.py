"""Rollouts from a server in several processes: one starts it, all sample from it, all push."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import ppo_models as tiny
import vllm_stub
from launching import ROOT, config_file, environment, launch, need

pytestmark = pytest.mark.distributed


def prepared(folder: Path, **sections) -> list[str]:
    """The command line of a run of two updates, whose server is the stand-in."""
    server = {"python": vllm_stub.interpreter(folder), "timeout_s": 120}
    rollout = {"engine": "vllm_server", "server": server, **sections.pop("rollout", {})}
    train = {"max_steps": 2, "learning_rate": 1e-2, **sections.pop("train", {})}
    tiny.config(folder, rollout=rollout, train=train, **sections)
    return ["--config", str(folder / "config.yaml")]


def rows(folder: Path) -> list[dict]:
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for line in text.splitlines() if "sampler_gap" in (row := json.loads(line))]


def servers(folder: Path) -> list[int]:
    """Processes of the stand-in that were started with this folder's interpreter or its weights."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if "vllm_stub.py" in line and f"{folder}/" in line:
            found.append(int(entry.name))
    return found


def test_two_processes_restart_the_server_that_one_of_them_started(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_DIES_AFTER", "13")  # in the second rollout
    monkeypatch.setenv("STUB_DIED", str(tmp_path / "died"))
    done = launch("recipes/ppo.py", prepared(tmp_path), config_file("ddp"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = rows(tmp_path)
    assert len(found) == 2
    assert max(row["sampler_gap"] for row in found) < 1e-4
    assert "Restart 1 of 3" in done.stdout
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world_size"] == 2
    assert not servers(tmp_path)


def test_weights_in_parts_are_pushed_whole(tmp_path):
    need("zero3")
    sections = {"train": {"per_device_train_batch_size": 4}, "rollout": {"gather_chunk_mb": 1}}
    done = launch("recipes/ppo.py", prepared(tmp_path, **sections), config_file("zero3"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(row["sampler_gap"] for row in rows(tmp_path)) < 1e-4


def test_a_run_that_is_killed_leaves_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_HANGS", "1")
    argv = [sys.executable, "recipes/ppo.py", *prepared(tmp_path)]
    env = environment()
    run = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while not servers(tmp_path) and time.monotonic() < end:
            time.sleep(0.5)
        assert servers(tmp_path)
        os.kill(run.pid, signal.SIGKILL)
        while servers(tmp_path) and time.monotonic() < end:
            time.sleep(0.2)
        assert not servers(tmp_path)
    finally:
        run.kill()
        run.wait()
