"""Whole PPO runs: figures in the log, files, resume, and every kind of critic and reference."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2ForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.config import UserError, load_config
from align.run import run
from align.train.runner import callbacks, run_training

ROOT = Path(__file__).resolve().parents[2]
# The names that a PPO run promises (docs/metrics.md).
NAMES = [
    "score/mean", "score/std", "reward/shaped", "kl/sum", "kl/token", "kl_coef", "entropy",
    "length/mean", "eos_rate", "approx_kl", "clip_frac", "clip_frac_low", "clip_frac_high",
    "ratio/max", "value_loss", "value_clip_frac", "explained_variance", "grad_norm",
    "grad_norm_critic", "sampler_gap", "time/rollout", "time/score", "time/optimise",
    "tokens_per_s",
]  # fmt: skip


def lines(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    file = str(ROOT / "recipes" / "configs" / "smoke.yaml")
    words = ["--config", file, "--demo.root", str(folder), "--ppo.ema_decay", "0.9"]
    assert run("ppo", words) == 0
    return folder / "ppo"


def test_the_smoke_run_logs_every_promised_name(smoke):
    rows = lines(smoke)
    found = set().union(*rows)
    assert not set(NAMES) - found
    for row in rows:
        for name, value in row.items():
            assert isinstance(value, (int, float)), (name, value)
    assert {n for n in found if n.startswith("eval_")} == {
        "eval_score/mean", "eval_score/std", "eval_kl/sum", "eval_length/mean", "eval_eos_rate",
        "eval_score/p1", "eval_score/p5", "eval_score/p10", "eval_score/min", "eval_runtime",
    }  # fmt: skip
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in found - {"step", "total_flos", "train_runtime", "train_loss"}:
        if not name.endswith(("_per_second", "_runtime")):
            assert f"`{name.removeprefix('eval_')}`" in documented, name


def test_figures_of_the_smoke_run_make_sense(smoke):
    first = next(row for row in lines(smoke) if "score/mean" in row)
    assert first["kl/sum"] == pytest.approx(0, abs=1e-4)
    assert first["sampler_gap"] < 1e-5
    assert first["time/rollout"] > 0
    assert first["kl_coef"] == 0.05
    updates = [row for row in lines(smoke) if "time/optimise" in row]
    for row in updates:
        assert 0 < row["time/optimise"] < 60
    tokens = first["length/mean"] * 8
    spent = first["time/rollout"] + first["time/score"] + updates[0]["time/optimise"]
    assert updates[0]["tokens_per_s"] == pytest.approx(tokens / spent, rel=1e-6)


def test_the_smoke_run_leaves_models_that_load(smoke):
    policy = AutoModelForCausalLM.from_pretrained(smoke / "final")
    assert not (smoke / "final.tmp").exists()
    critic = (smoke / "final" / "critic" / "config.json").read_text(encoding="utf-8")
    assert "ForSequenceClassification" in critic
    average = AutoModelForCausalLM.from_pretrained(smoke / "final-ema")
    start = AutoModelForCausalLM.from_pretrained(smoke / "init")
    name = "model.layers.0.mlp.up_proj.weight"
    first, mean, last = (m.state_dict()[name] for m in (start, average, policy))
    assert 0 < (mean - first).norm() < (last - first).norm()
    assert (smoke / "samples.jsonl").is_file()
    assert (smoke / "report.html").is_file()


# Checkpoints


SAVED = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear",
         "max_grad_norm": 1.0}  # fmt: skip
STATEFUL = {"kl_target": 0.4, "kl_horizon": 50, "score_norm": "std", "ppo_epochs": 2,
            "num_minibatches": 2, "ema_decay": 0.8, "ptx_coef": 0.3, "score_at": "after_eos",
            "target_kl": 0.05}  # fmt: skip


def finished(folder, resume="never", stop_after=None):
    """A run of 7 steps, or the part of it up to step `stop_after`, with its checkpoints."""
    settings = tiny.config(folder, ppo=STATEFUL, train={**SAVED, "max_steps": 7, "resume": resume})
    made = tiny.trainer(settings, callbacks=callbacks(settings))
    if stop_after:
        made.args.eval_on_start = False

        class Stop(tiny.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == stop_after
                return control

        made.add_callback(Stop())
    run_training(made, settings)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 3, 4])
def test_steps_equal_half_the_steps_and_resume_bit_for_bit(tmp_path, whole, at):
    """Stops between passes, in the middle of one, and between updates."""
    finished(tmp_path, stop_after=at)
    resumed = finished(tmp_path, resume="auto")
    assert resumed.state.global_step == whole.state.global_step == 7
    named = dict(whole.policy.module.named_parameters())
    for name, p in resumed.policy.module.named_parameters():
        assert torch.equal(p, named[name]), name
    for name, average in whole.ema.shadow.items():
        assert torch.equal(resumed.ema.shadow[name], average)
    assert resumed.position.state_dict() == whole.position.state_dict()
    assert resumed.collector.state_dict() == whole.collector.state_dict()
    assert resumed.rollout.groups == whole.rollout.groups
    skip = ("time/", "tokens_per_s", "train_", "eval_")
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(skip)} for row in lines(folder)]
        for folder in (Path(whole.args.output_dir), tmp_path / "run")
    ]
    for one, other in zip(*rows, strict=True):
        assert one == other


def test_a_checkpoint_of_more_processes_is_refused(tmp_path):
    made = tiny.build(tmp_path)
    folder = tmp_path / "checkpoint"
    made.save_model(str(folder))
    saved = folder / "ppo_state_0.pt"
    (folder / "ppo_state_1.pt").write_bytes(saved.read_bytes())
    with pytest.raises(UserError, match="written by 2 processes, and this run has 1"):
        made.load_state(folder)


# Kinds of policy, critic and reference


@pytest.mark.parametrize(
    ("policy", "critic"),
    [
        ({}, "separate"),
        ({}, "shared"),
        ({"lora": {"r": 4}}, "adapter"),
        ({"lora": {"r": 4}}, "separate"),
        ({"lora": {"r": 4}}, "shared"),
        ({"lora": {"r": 4}, "reference": "frozen"}, "adapter"),
    ],
)
def test_every_critic_and_reference_trains_and_is_saved(tmp_path, policy, critic):
    settings = tiny.config(
        tmp_path, policy=policy, ppo={"critic": critic, "ppo_epochs": 2}, train={"max_steps": 4}
    )
    made = tiny.trainer(settings, callbacks=callbacks(settings))
    before = {n: p.clone() for n, p in made.policy.module.named_parameters()}
    run_training(made, settings)
    changed = {n for n, p in made.policy.module.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in made.policy.module.named_parameters() if p.requires_grad}
    assert changed
    assert changed <= trained
    assert any("critic" in n or n.startswith("value_head") for n in changed)
    assert any(n.startswith("lm.") and ".critic." not in n for n in changed)
    assert not any(n.startswith("reference.") for n in changed)
    kl = tiny.logged(made, "kl/sum")
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert abs(kl[1]) > 1e-6
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").eval()
    ids = torch.tensor([[5, 6, 7]])
    batch = made.policy.collate([tiny.TokenGroup([5], [[6, 7]])])
    with torch.no_grad():
        logps = made.policy.module.eval()(batch)["logps"]
        own = final(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(own, logps, atol=1e-4, rtol=0)
    folder = tmp_path / "run" / "final" / "critic"
    if critic == "separate" and not policy:
        loaded = GPT2ForSequenceClassification.from_pretrained(folder)
        assert torch.equal(loaded.score.weight, made.policy.module.critic.score.weight)
    else:
        assert load_file(folder / "critic.safetensors")


def test_the_number_of_steps_follows_from_epochs(tmp_path):
    from align.train import ppo

    settings = tiny.config(
        tmp_path,
        train={"max_steps": -1, "num_train_epochs": 1},
        ppo={"ppo_epochs": 3, "num_minibatches": 2},
    )
    ppo.train(settings)
    # 8 prompts in rollouts of 4: 2 updates of 3 passes of 2 minibatches.
    assert max(row["step"] for row in lines(tmp_path / "run")) == 12


def test_ppo_cannot_use_a_cache_or_no_reference(tmp_path):
    for reference in ("cached", "none"):
        with pytest.raises(UserError, match=r"policy\.reference"):
            tiny.config(tmp_path, policy={"reference": reference})
    assert load_config("ppo", ["--config", str(ROOT / "recipes/configs/smoke.yaml")]).reference == (
        "frozen"
    )
