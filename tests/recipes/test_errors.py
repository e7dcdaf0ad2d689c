"""Wrong input: exit 2 in under a second, before torch, with field, value, reason and the remedy."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import recipe_runs as rr

# (recipe, overrides of the smoke configuration, what the message must say, all parts of it)
WRONG = {
    # Unknown keys: the nearest name.
    "key": ("sft", ["--data.max_lenght", "9"], ["data.max_lenght=9 is", "'data.max_length'"]),
    "section": ("dpo", ["--rollouts.n", "2"], ["rollouts", "Did you mean 'rollout'?"]),
    "misplaced": ("dpo", ["--train.beta", "0.2"], ["train.beta=0.2", "'dpo.beta' or 'orpo.beta'"]),
    "other_method": ("sft", ["--ppo.kl_coeff", "1"], ["ppo.kl_coeff=1", "'ppo.kl_coef'"]),
    "overlay": ("sft", ["--per_method.rewrd.train.seed", "1"], ["per_method.rewrd", "'reward'"]),
    "tool": ("sft", ["--tools.export.model", "x"], ["is not a tool", "export_model"]),
    "removed": ("sft", ["--train.evaluation_strategy", "no"], ["Use train.eval_strategy"]),
    "owned": ("sft", ["--train.remove_unused_columns", "true"], ["is set by align"]),
    # Wrong types.
    "float": ("ppo", ["--ppo.gamma", "high"], ["ppo.gamma='high'", "is not a number"]),
    "int": ("ppo", ["--rollout.n", "1.5"], ["rollout.n=1.5", "is not a whole number"]),
    "bool": ("reward", ["--reward.margin", "maybe"], ["reward.margin='maybe'", "true or false"]),
    "list": ("ppo", ["--rollout.stop", "。"], ["rollout.stop='。'", "is not a list"]),
    "choice": ("dpo", ["--dpo.loss_type", "sigmiod"], ["Did you mean 'sigmoid'?", "One of:"]),
    "trainer_type": ("sft", ["--train.max_steps", "2.5"], ["train.max_steps=2.5", "not int"]),
    "optimiser": ("sft", ["--train.optim", "adamw_torhc"], ["Did you mean 'adamw_torch'?"]),
    "tracker": ("sft", ["--train.report_to", "tensorbord"], ["Did you mean 'tensorboard'?"]),
    "attention": ("sft", ["--policy.attn_implementation", "sdpaa"], ["Did you mean 'sdpa'?"]),
    # Out of range.
    "low": ("orpo", ["--orpo.beta", "-1"], ["orpo.beta=-1", "below", "Allowed: ≥ 0"]),
    "open": ("dpo", ["--dpo.label_smoothing", "0.5"], ["must be below 0.5", "≥ 0 and < 0.5"]),
    "rate": ("sft", ["--train.learning_rate", "-1e-4"], ["train.learning_rate=-0.0001", "below 0"]),
    "finite": ("sft", ["--train.num_train_epochs", ".inf"], ["is not a finite number"]),
    # Missing files.
    "data": ("dpo", ["--data.preferences", "nowhere.jsonl"], ["='nowhere.jsonl' does not exist"]),
    "near": ("sft", ["--data.sft", f"{rr.ROOT}/recipes/data/stf.jsonl"], ["Did you", "sft.jsonl"]),
    "folder": ("sft", ["--data.sft", str(rr.ROOT / "recipes")], ["is a folder, not a file"]),
    "model": ("dpo", ["--policy.path", "./no/model"], ["policy.path='./no/model' does not exist"]),
    "template": ("sft", ["--data.chat_template", "my.jinja"], ["='my.jinja' does not exist"]),
    "deepspeed": ("sft", ["--train.deepspeed", "zero9.json"], ["='zero9.json' does not exist"]),
    "function": ("ppo", ["--rewards.0.path", f"{rr.ROOT}/recipes/data/smoke_reward.py:near_ten"],
                 ["names 'near_ten'", "Did you mean 'near_twenty'?"]),
    "config": ("ppo", ["--config", "mine.yaml"], ["--config='mine.yaml' does not exist"]),
    # Combinations.
    "cached": ("ppo", ["--policy.reference", "cached"], ["are sampled during training"]),
    "adapter_off": ("dpo", ["--policy.reference", "adapter_off"], ["needs policy.lora"]),
    "smoothing": ("dpo", ["--dpo.loss_type", "ipo", "--dpo.label_smoothing", "0.1"],
                  ["dpo.label_smoothing=0.1", "not part of loss_type 'ipo'", "Use 0"]),
    "exo": ("dpo", ["--dpo.loss_type", "exo"], ["must be above 0 for exo", "1e-3"]),
    "minibatches": ("ppo", ["--ppo.num_minibatches", "3"], ["rollout of 8 completions", "Use 2"]),
    "no_room": ("ppo", ["--rollout.max_new_tokens", "160"], ["no room for a prompt"]),
    "calibrated": ("ppo", ["--rewards.0.calibrated", "true"], ["is for reward models"]),
    "critic": ("ppo", ["--ppo.critic", "adapter"], ["ppo.critic='adapter' needs policy.lora"]),
    "warm_up": ("ppo", ["--ppo.critic", "shared", "--ppo.critic_warmup_updates", "1"],
                ["cannot freeze a policy that shares its body"]),
    "packing": ("sft", ["--sft.packing", "true", "--policy.layout", "plain"], ["sft.packing=true"]),
    "heads": ("pretrain", ["--pretrain.n_head", "3"], ["divide pretrain.n_embd=32", "Use 2"]),
    "best": ("sft", ["--train.load_best_model_at_end", "true", "--data.validation_fraction", "0"],
             ["needs held-out data"]),
    "patience": ("dpo", ["--train.early_stopping_patience", "2", "--train.eval_strategy", "no"],
                 ["needs evaluations to wait for", "train.eval_steps"]),
    "endless": ("ppo", ["--ppo.missing_eos", "{mode: subtract, value: -1}"], ["never end"]),
    "unused": ("sft", ["--train.neftune_noise_alpha", "5"], ["has no effect", "Use null"]),
    "vocabulary": ("train_tokenizer", ["--tokenizer.vocab_size", "100"], ["Allowed: ≥ 260"]),
}  # fmt: skip
# Runs every case in one process: whatever imports torch taints all that follow.
ALL_CASES = """
import contextlib, importlib.util, io, json, sys, time
root, cases = sys.argv[1], json.load(sys.stdin)
for name, (recipe, words) in cases.items():
    spec = importlib.util.spec_from_file_location(recipe, f"{root}/recipes/{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said, start = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(said):
        code = module.main(words)
    heavy = [m for m in ("torch", "transformers", "datasets") if m in sys.modules]
    seconds = time.process_time() - start
    print(json.dumps([name, code, said.getvalue(), heavy, seconds]))
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """(exit code, message, heavy modules, CPU seconds) by case; the folder they ran in."""
    folder = tmp_path_factory.mktemp("errors")
    cases = {}
    for name, (recipe, words, _) in WRONG.items():
        file = [] if "--config" in words else ["--config", rr.SMOKE]
        cases[name] = (recipe, [*file, *words])
    done = subprocess.run(
        [sys.executable, "-c", ALL_CASES, str(rr.ROOT)], input=json.dumps(cases),
        capture_output=True, text=True, cwd=folder, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in lines}, folder


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(refused, case):
    code, message, heavy, seconds = refused[0][case]
    assert code == 2, message
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert all(part in message for part in WRONG[case][2]), message
    assert heavy == []
    assert seconds < 1
    assert list(refused[1].iterdir()) == []


@pytest.mark.parametrize("recipe", [*rr.TRAINING, "demo"])
@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["--config", rr.SMOKE, "--demo.roots", "x"], 2)]
)
def test_under_a_second_as_a_script(recipe, words, code, tmp_path):
    """Processor time, so that a busy machine does not decide."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(rr.ROOT / "recipes" / f"{recipe}.py"), *words],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_yaml_mistakes_are_said(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    for text, message in (
        ("policy: {path: null}\npolicy: {path: x}\n", "written twice"),
        ("train: [1, 2\n", "is not valid YAML"),
        ("- a\n", "holds no sections"),
        ("data: {max_length: 9}\n", "policy.path is not set"),
    ):
        file.write_text(text, encoding="utf-8")
        assert rr.main_of("sft")(["--config", str(file)]) == 2
        assert message in capsys.readouterr().err
    file.write_bytes(b"\xff\xfe\x00")
    assert rr.main_of("sft")(["--config", str(file)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_rows_are_refused_with_their_place(tmp_path, capsys):
    """What only reading the data can tell is exit 2 too, and says which row."""
    bad = rr.write_rows(tmp_path / "bad.jsonl", [{"frage": "春天有哪些花？"}])
    words = ["--config", rr.SMOKE, "--demo.root", str(tmp_path / "runs")]
    assert rr.main_of("sft")([*words, "--data.sft", str(bad)]) == 2
    assert "has no usable row" in capsys.readouterr().err
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "一", "chosen"\n', encoding="utf-8")
    assert rr.main_of("dpo")([*words, "--data.preferences", str(broken)]) == 2
    assert "broken.jsonl:1" in capsys.readouterr().err
    untitled = rr.write_rows(tmp_path / "text.jsonl", [{"body": "春天"}])
    for recipe in ("train_tokenizer", "pretrain"):
        assert rr.main_of(recipe)([*words, "--data.text", str(untitled)]) == 2
        assert "text.jsonl:1" in capsys.readouterr().err


def test_the_rules_know_the_losses():
    """config_checks cannot import torch, so it names the losses itself."""
    import typing

    from align import config_checks, losses_dpo
    from align.config_schema import DPO_LOSSES

    known = set(typing.get_args(DPO_LOSSES))
    assert set(config_checks.REFERENCE_FREE) == losses_dpo.REFERENCE_FREE & known
    assert set(config_checks.LABEL_SMOOTHED) == losses_dpo.LABEL_SMOOTHED & known
