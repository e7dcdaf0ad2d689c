"""PPO in two processes: what is shared is the same on both, and the gradient is that of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "ppo": {"kl_target": 0.5, "kl_horizon": 100, "score_norm": "std", "score_at": "after_eos",
            "ppo_epochs": 1, "entropy_coef": 0.02, "ptx_coef": 0.0},
    "train": {"per_device_train_batch_size": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A step of one process over a rollout: its trainer, gradients, and the rollout's file."""
    folder = tmp_path_factory.mktemp("one")
    seen = tiny.Gradients()
    made = tiny.build(folder, None, [seen], **SECTIONS)
    rollout = made.collector.collect(0)
    made.meter.flush()
    torch.save(rollout.state_dict(), folder / "rollout.pt")
    made.rollout = rollout
    tiny.move(made, 0.2)
    made.train()
    return made, seen.steps[0], folder / "rollout.pt"


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """What the two processes print, and the gradients of the first."""
    return probed(tmp_path_factory.mktemp("two"), one[2])


def probed(folder: Path, rollout: Path):
    """What two processes print that step over a rollout, and the gradients of the first."""
    tiny.config(folder, **SECTIONS)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    probe = str(Path(__file__).with_name("ppo_probe.py"))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
             "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
             probe, *map(str, (folder / "config.yaml", rollout, folder / "grads.pt"))]  # fmt: skip
    run = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    decoder = json.JSONDecoder()
    starts = [m.end() for m in re.finditer("PROBE ", run.stdout)]
    rows = sorted(
        (decoder.raw_decode(run.stdout, start)[0] for start in starts), key=lambda r: r["rank"]
    )
    assert [(row["rank"], row["world"]) for row in rows] == [(0, 2), (1, 2)]
    return rows, torch.load(folder / "grads.pt")


def test_item21_two_processes_take_the_step_of_one(one, two):
    made, alone, _ = one
    rows, together = two
    size = torch.sqrt(sum(g.square().sum() for g in alone.values()))
    for name, gradient in alone.items():
        # The wrapped model's names begin with "module.".
        other = together.get(name, together.get(f"module.{name}"))
        assert ((other - gradient).abs().max() / size).item() < 1e-5, name
    row = made.state.log_history[0]
    for name in ("policy_loss", "value_loss", "loss"):
        assert rows[0]["row"][name] == pytest.approx(row[name], abs=1e-5)
    assert rows[0]["weights"] == rows[1]["weights"]


def test_item18_advantages_are_whitened_over_both_processes(two):
    rows, _ = two
    shares = [torch.tensor(row["advantages"], dtype=torch.float64) for row in rows]
    every = torch.cat(shares)
    assert every.mean().item() == pytest.approx(0, abs=1e-6)
    assert every.std().item() == pytest.approx(1, abs=1e-5)
    assert all(abs(share.mean().item()) > 1e-3 for share in shares)


def test_item05_processes_sample_their_own_prompts_and_draws(two):
    rows, _ = two
    first, second = ([tuple(prompt) for prompt, _ in row["completions"]] for row in rows)
    assert not set(first) & set(second)
    assert len(first) == len(second) == 4


def test_item12_item15_statistics_controller_and_figures_are_those_of_all(two):
    rows, _ = two
    assert rows[0]["figures"] == rows[1]["figures"]
    assert rows[0]["moments"] == rows[1]["moments"]
    assert rows[0]["moments"]["count"] == 8
    assert rows[0]["kl_coef"] == rows[1]["kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 8 / 100))
    lengths = [len(ids) for row in rows for _, ids in row["completions"]]
    assert rows[0]["figures"]["length/mean"] == pytest.approx(sum(lengths) / 8)


def launched(folder: Path, name: str, *more: str) -> list[dict]:
    """Log lines of recipes/ppo.py under a shipped launch configuration, batches cut by tokens."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    env |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # ninja, for DeepSpeed
    words = [sys.executable, "-m", "accelerate.commands.launch",
             "--config_file", f"ds_configs/accelerate_{name}.yaml", "recipes/ppo.py",
             "--config", "recipes/configs/smoke.yaml", "--demo.root", str(folder),
             "--train.max_tokens_per_batch", "60", "--ppo.score_at", "after_eos",
             *more]  # fmt: skip
    run = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    text = (folder / "ppo" / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_item21_sharded_weights_take_the_same_steps(tmp_path):
    pytest.importorskip("deepspeed", reason="extra 'deepspeed'")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles an extension on the CPU: install g++")
    plain, sharded = launched(tmp_path / "ddp", "cpu2"), launched(tmp_path / "zero3", "zero3")
    for name in ("loss", "grad_norm", "policy_loss", "value_loss", "score/mean", "eval_kl/sum"):
        one, other = ([row[name] for row in rows if name in row] for rows in (plain, sharded))
        assert one
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4), name
