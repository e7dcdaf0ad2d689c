"""PPO with vLLM in the training processes, as a user starts it in the environment that has both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
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


def left(folder: Path) -> list[int]:
    """Processes whose command line names the run's folder."""
    return [pid for pid, (_, line) in processes().items() if f"{folder}/" in line]


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_an_engine_that_ends_ends_the_run_which_resumes(tmp_path, number):
    argv = prepared(tmp_path, steps=200)
    with started(argv) as run:
        engine = until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and children(run.pid))
        os.killpg(run.pid, number) if number == signal.SIGTERM else os.kill(engine[0], number)
        output = run.communicate(timeout=120)[0]
    assert run.returncode == (75 if number == signal.SIGTERM else 1), output[-3000:]
    saved = max(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    assert f"checkpoint-{saved}" in output
    assert not left(tmp_path)
    done = recipe([*argv, "--train.max_steps", str(saved + 2)])
    assert done.returncode == 0, said(done)
    assert max(gaps(tmp_path)) < 1e-3


def test_a_run_that_is_killed_leaves_no_engine(tmp_path):
    with started(prepared(tmp_path, steps=200)) as run:
        until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        below = children(run.pid)
        run.kill()
    assert len(below) >= 2  # the engine and its worker
    until(lambda: not any(alive(pid) for pid in below))


def started(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PYTHON), *argv], cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def until(found):
    """What it gives, once that is something."""
    end = time.monotonic() + 300
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.2)
    assert value
    return value


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            found[int(entry.name)] = (
                int(parent),
                (entry / "cmdline").read_text("utf-8", "replace"),
            )
    return found


def children(pid: int) -> list[int]:
    """vLLM's processes below a run, the engine first."""
    table = processes()
    engines = [p for p, (parent, line) in table.items() if parent == pid and "EngineCore" in line]
    return engines + [p for p, (parent, _) in table.items() if parent in engines]


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
