"""Sampling ahead, and weights of tokens, in two processes: the steps of one, sharded, resumed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny
from test_ppo_ranks import SECTIONS, launched, probed

pytestmark = pytest.mark.distributed
# Updates of two steps, of which each but the first is sampled an update ahead.
AHEAD = ("--rollout.async", "1", "--ppo.ppo_epochs", "2", "--train.max_steps", "7",
         "--train.save_steps", "3", "--train.learning_rate", "1e-3")  # fmt: skip
NAMES = ("loss", "grad_norm", "policy_loss", "value_loss", "score/mean", "staleness",
         "importance/mean", "importance/max", "importance/clipped", "sampler_gap",
         "eval_kl/sum")  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Log lines of two processes, and their folder."""
    folder = tmp_path_factory.mktemp("ddp")
    return launched(folder, "cpu2", *AHEAD), folder


def of(rows: list[dict], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def test_weights_of_tokens_do_not_depend_on_the_number_of_processes(tmp_path):
    """The step over a rollout whose tokens have weights between 0.2 and 2."""
    seen = tiny.Gradients()
    made = tiny.build(tmp_path, None, [seen], **SECTIONS)
    rollout = made.collector.collect(0)
    made.meter.flush()
    drawn = torch.Generator().manual_seed(0)
    for group in rollout.groups:
        group.extras["importance"] = [
            (0.2 + 1.8 * torch.rand(len(ids), generator=drawn)).tolist()
            for ids in group.completions
        ]
    torch.save(rollout.state_dict(), tmp_path / "rollout.pt")
    made.rollout = rollout
    tiny.move(made, 0.2)
    made.train()
    (tmp_path / "two").mkdir()
    _, together = probed(tmp_path / "two", tmp_path / "rollout.pt")
    alone = seen.steps[0]
    size = torch.sqrt(sum((g.square().sum() for g in alone.values()), torch.zeros(())))
    for name, gradient in alone.items():
        other = together.get(name, together.get(f"module.{name}"))
        assert ((other - gradient).abs().max() / size).item() < 1e-5, name


def test_two_processes_sample_ahead(plain):
    rows, _ = plain
    assert of(rows, "staleness") == [0, 1, 1, 1]
    assert len(of(rows, "importance/mean")) == 3
    assert all(0.5 < x < 1.5 for x in of(rows, "importance/mean"))
    assert of(rows, "sampler_gap")[0] < 1e-5 < 1e-4 < min(of(rows, "sampler_gap")[1:])


def test_two_processes_resume_with_what_each_drew_ahead(plain, tmp_path):
    """From the middle of an update, with the next one's samples in the checkpoint of each rank."""
    rows, folder = plain
    shutil.copytree(folder, tmp_path / "run")
    run = tmp_path / "run" / "ppo"
    states = [torch.load(run / "checkpoint-3" / f"ppo_state_{r}.pt")["ahead"] for r in (0, 1)]
    assert [(s["update"], s["version"]) for s in states] == [(2, 1), (2, 1)]
    assert states[0]["samples"] != states[1]["samples"]
    for later in ("checkpoint-6", "checkpoint-7", "final"):
        shutil.rmtree(run / later, ignore_errors=True)
    again = launched(tmp_path / "run", "cpu2", *AHEAD)
    for name in NAMES:
        assert of(again, name) == of(rows, name), name
    one, other = (
        load_file(f / "ppo" / "final" / "model.safetensors") for f in (folder, run.parent)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sharded_weights_sample_ahead_alike(plain, tmp_path):
    pytest.importorskip("deepspeed", reason="extra 'deepspeed'")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles an extension on the CPU: install g++")
    rows, _ = plain
    sharded = launched(tmp_path, "zero3", *AHEAD)
    for name in NAMES:
        assert of(sharded, name) == pytest.approx(of(rows, name), rel=2e-3, abs=1e-4), name
