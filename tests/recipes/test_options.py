"""Options of the train section, model shapes and losses, each to the end of a short run."""

from __future__ import annotations

import math

import pytest
import recipe_runs as rr
from transformers import AutoConfig

from align.config_schema import DPO_LOSSES

LORA = ["--policy.lora.r", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("options")


def run(place, recipe, *words, config=rr.SMOKE):
    """(run directory, losses) of a run of the smoke configuration, which must end well."""
    number = len(list(place.iterdir()))
    run_dir = place / f"run-{number}"
    out = ["--train.output_dir", str(run_dir), "--demo.root", str(place / "stages")]
    assert rr.main_of(recipe)(["--config", config, *out, *words]) == 0
    found = rr.losses(run_dir)
    assert all(math.isfinite(loss) for loss in found)
    return run_dir, found


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
@pytest.mark.parametrize("recipe", ["reward", "dpo", "ppo"])
def test_other_architectures(place, recipe, arch):
    run_dir, found = run(place, recipe, "--pretrain.arch", arch)
    assert AutoConfig.from_pretrained(run_dir / "final").model_type == arch
    assert len(found) == 4


# The loss of a pair while policy and reference are equal: every log-ratio is 0.
AT_START = {
    "sigmoid": math.log(2), "robust": math.log(2), "aot": math.log(2), "hinge": 1.0,
    "apo_zero": 1.0, "apo_down": 1.0,
    "ipo": 25.0,  # (1 / (2 · 0.1))²
    "sppo": 50.0,  # 2 · (0.5 / 0.1)²
    # g = σ(0) = ½ mixes the logistic loss and e⁰.
    "discopop": (math.log(2) + 1) / 2,
}  # fmt: skip


@pytest.mark.parametrize("loss", AT_START)
def test_dpo_losses_start_where_they_must(place, loss):
    _, found = run(place, "dpo", "--dpo.loss_type", loss, "--train.max_steps", "2")
    assert found[0] == pytest.approx(AT_START[loss], rel=1e-5)


@pytest.mark.parametrize("loss", ["simpo", "cpo", "exo"])
def test_dpo_losses_of_another_kind(place, loss):
    smoothing = ["--dpo.label_smoothing", "0.01"] if loss == "exo" else []
    run_dir, _ = run(place, "dpo", "--dpo.loss_type", loss, *smoothing, "--train.max_steps", "2")
    assert rr.manifest(run_dir)["finished"] is True


def test_every_dpo_loss_was_tried():
    import typing

    assert set(typing.get_args(DPO_LOSSES)) == {*AT_START, "simpo", "cpo", "exo"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_what_must_not_change_the_numbers(place, recipe):
    """Recomputed activations, cut micro-batches, plain rows, the cached reference."""
    _, plain = run(place, recipe)
    same = [
        ["--train.gradient_checkpointing", "true"],
        ["--train.max_tokens_per_batch", "64"],
        ["--policy.layout", "plain"],
        ["--train.per_device_train_batch_size", "1", "--train.gradient_accumulation_steps", "2"],
    ]
    same += [["--policy.reference", "cached"]] if recipe == "dpo" else [["--sft.packing", "true"]]
    for words in same:
        assert run(place, recipe, *words)[1] == pytest.approx(plain, abs=2e-5), words


def test_epochs_instead_of_steps(place):
    words = ["--train.max_steps", "-1", "--train.num_train_epochs", "2"]
    words += ["--train.eval_strategy", "epoch", "--train.save_strategy", "epoch"]
    run_dir, found = run(place, "orpo", *words, "--train.per_device_train_batch_size", "8")
    lines = rr.rows(run_dir / "metrics.jsonl")
    evaluated = [row for row in lines if "eval_loss" in row]
    assert [row["epoch"] for row in evaluated] == [1.0, 2.0]
    # 26 records, a fifth of the prompts held out: three batches of at most 8 an epoch.
    assert len(found) == 6


def test_early_stopping_and_the_best_checkpoint(place):
    """A rate that spoils the model: the best checkpoint is the first, and training ends early."""
    words = ["--train.learning_rate", "5", "--train.max_steps", "40", "--train.max_grad_norm", "0"]
    words += ["--train.early_stopping_patience", "1", "--train.loss_spike.factor", "1000"]
    run_dir, found = run(place, "sft", *words)
    assert len(found) < 40
    evaluated = [
        row["eval_loss"] for row in rr.rows(run_dir / "metrics.jsonl") if "eval_loss" in row
    ]
    assert evaluated[-1] > min(evaluated)
    again = run(place, "sft", "--policy.path", str(run_dir / "final"), "--train.learning_rate", "0")
    lines = rr.rows(again[0] / "metrics.jsonl")
    assert next(r["eval_loss"] for r in lines if "eval_loss" in r) == pytest.approx(
        min(evaluated), abs=1e-4
    )


def test_a_tracker_gets_the_figures(place):
    pytest.importorskip("tensorboard")
    run_dir, _ = run(place, "sft", "--train.report_to", "tensorboard")
    assert list(run_dir.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    "words",
    [
        ["--ppo.score_at", "after_eos", "--ppo.whiten_rewards", "true"],
        ["--ppo.score_norm", "mean_std", "--ppo.entropy_coef", "0.01", "--ppo.dual_clip", "3"],
        ["--ppo.ptx_coef", "0.5", "--ppo.ema_decay", "0.9"],
        ["--ppo.kl_target", "3", "--ppo.kl_horizon", "100", "--ppo.target_kl", "0.01"],
        ["--ppo.critic", "shared", "--ppo.value_clip_range", "null"],
        ["--ppo.critic_warmup_updates", "1", "--ppo.critic_learning_rate", "1e-3"],
        ["--rollout.stop", "[。]", "--rollout.top_k", "5", "--rollout.top_p", "0.9"],
        ["--ppo.missing_eos", "{mode: subtract, value: 1}", "--ppo.length_penalty", "0.01"],
        ["--eval.prompts", "null", "--eval.temperature", "1.0", "--data.prompts", "null"],
        [*LORA, "--ppo.critic", "separate"],
        [*LORA, "--train.gradient_checkpointing", "true"],
    ],
    ids=lambda words: words[0],
)
def test_ppo_options_run_to_the_end(place, words):
    run_dir, found = run(place, "ppo", *words)
    assert len(found) == 4
    assert rr.rows(run_dir / "samples.jsonl")


def test_rewards_of_both_kinds_and_a_critic_from_the_reward_model(place):
    root = place / "stages"
    assert rr.main_of("reward")(["--config", rr.SMOKE, "--demo.root", str(root)]) == 0
    function = f"{rr.ROOT}/recipes/data/smoke_reward.py:near_twenty"
    rewards = (
        "[{kind: model, path: auto, calibrated: true}, "
        f"{{kind: function, path: '{function}', weight: 0.5}}]"
    )
    words = ["--rewards", rewards, "--ppo.critic_path", "auto"]
    # The critic reads the policy's ids, so both come from one base.
    base = str(root / "reward" / "init")
    run_dir, _ = run(place, "ppo", "--policy.path", base, *words)
    inputs = rr.manifest(run_dir)["inputs"]
    assert inputs["ppo.critic_path"] == inputs["rewards.0.path"]
    assert inputs["rewards.0.path"]["path"] == str(root / "reward" / "final")
