"""The configuration: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from align.config import METHODS, UserError, load_config
from align.config_parallel import check_parallel, data_place
from align.config_train_args import OWNED, REMOVED, training_arguments

ROOT = Path(__file__).resolve().parent.parent
BASE = """
policy: {path: null}
data: {text: t.txt, sft: s.jsonl, preferences: p.jsonl}
train: {learning_rate: 1e-6, max_steps: 3, eval_steps: 2}
rewards: [{kind: model, path: auto}]
per_method: {ppo: {train: {learning_rate: 2e-6}, rollout: {n: 4}}}
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    for name in ("t.txt", "s.jsonl", "p.jsonl"):
        (tmp_path / name).write_text("x\n", encoding="utf-8")
    file = tmp_path / "c.yaml"
    file.write_text(BASE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    return file


def load(method, file, *words):
    return load_config(method, ["--config", str(file), *words])


def error(method, file, *words) -> str:
    with pytest.raises(UserError) as caught:
        load(method, file, *words)
    return str(caught.value)


def test_file_then_overlay_then_command_line(config_file):
    assert load("dpo", config_file).train.args["learning_rate"] == 1e-6
    assert load("dpo", config_file).rollout.n == 1
    ppo = load("ppo", config_file)
    assert (ppo.train.args["learning_rate"], ppo.rollout.n) == (2e-6, 4)
    both = load("ppo", config_file, "--train.learning_rate=3e-6", "--rollout.n", "2")
    assert (both.train.args["learning_rate"], both.rollout.n) == (3e-6, 2)


def test_exponents_are_numbers_and_no_is_text(config_file):
    config = load("dpo", config_file, "--train.save_strategy", "no", "--dpo.beta", "5e-1")
    assert config.train.args["save_strategy"] == "no"
    assert config.dpo.beta == 0.5
    assert isinstance(load("dpo", config_file, "--dpo.beta", "1").dpo.beta, float)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("words", [(), ("--policy.lora.r", "4", "--train.learning_rate", "7e-5")])
def test_printed_configuration_loads_to_the_same(config_file, tmp_path, method, words):
    first = load(method, config_file, *words)
    (tmp_path / "again.yaml").write_text(first.to_yaml(), encoding="utf-8")
    assert load(method, tmp_path / "again.yaml") == first


def test_paths_are_found_beside_the_yaml(config_file, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Path(load("sft", config_file).data.sft) == tmp_path / "s.jsonl"
    (tmp_path / "elsewhere" / "s.jsonl").write_text("x", encoding="utf-8")
    assert load("sft", config_file).data.sft == "s.jsonl"  # the working directory comes first


def test_lists_and_nested_keys_can_be_overridden(config_file):
    config = load("ppo", config_file, "--rewards.0.weight", "2", "--ppo.missing_eos.mode", "set")
    assert config.rewards[0].weight == 2.0
    assert config.ppo.missing_eos.mode == "set"
    assert load("dpo", config_file, "--policy.lora", "{r: 2}").policy.lora.r == 2


def test_effective_reference(config_file):
    assert load("dpo", config_file).reference == "frozen"
    assert load("dpo", config_file, "--policy.lora", "{}").reference == "adapter_off"
    assert load("orpo", config_file).reference == "none"
    assert load("dpo", config_file, "--dpo.loss_type", "simpo").reference == "none"


# Messages: the exact text matters, because it is what the user has to work with.
MESSAGES = [
    ("dpo", ["--ppo.lamb", "0.9"], "ppo.lamb=0.9 is not a known key. Did you mean 'ppo.lam'?"),
    ("dpo", ["--train.learing_rate", "1"], "Did you mean 'train.learning_rate'?"),
    ("dpo", ["--train.max_length", "9"], "Did you mean 'data.max_length'?"),
    ("dpo", ["--polciy.path", "x"], "Did you mean 'policy'?"),
    ("dpo", ["--train.warmup_ratio", "0.1"], "Use train.warmup_steps"),
    ("dpo", ["--train.evaluation_strategy", "steps"], "Use train.eval_strategy"),
    ("dpo", ["--train.resume_from_checkpoint", "x"], "Use train.resume"),
    ("dpo", ["--train.learning_rate", "fast"], "train.learning_rate='fast' is a str, not int or"),
    ("dpo", ["--train.bf16", "1"], "train.bf16=1 is a int, not bool"),
    ("dpo", ["--train.learning_rate", "-1"], "train.learning_rate=-1 is below 0"),
    ("dpo", ["--train.adam_beta2", "1.0"], "train.adam_beta2=1.0 must be below 1"),
    ("dpo", ["--train.max_steps", "0"], "train.max_steps=0 means no step at all"),
    ("dpo", ["--train.lr_scheduler_type", "cosin"], "One of: linear, cosine"),
    ("sft", ["--dpo.beta", "0"], "dpo.beta=0.0 must be above 0. Allowed: > 0."),
    ("sft", ["--ppo.gamma", "1.5"], "ppo.gamma=1.5 is above the largest allowed value 1"),
    ("sft", ["--ppo.gamma", ".nan"], "ppo.gamma=nan is not a finite number"),
    ("sft", ["--dpo.loss_type", "sigmoyd"], "Did you mean 'sigmoid'?"),
    ("sft", ["--sft.packing", "yes"], "sft.packing='yes' is not true or false"),
    ("sft", ["--pretrain.n_layer", "2.5"], "pretrain.n_layer=2.5 is not a whole number"),
    ("dpo", ["--policy.lora", "true"], "policy.lora=true is not a section"),
    ("dpo", ["--rewards.3.weight", "1"], "does not name one of the 1 items of rewards"),
    ("dpo", ["--rewards.0.kind", "modle"], "Did you mean 'model'?"),
    ("dpo", ["--per_method.ppoo.train.seed", "1"], "Did you mean 'ppo'?"),
    ("dpo", ["--per_method.sft.train.sed", "1"], "per_method.sft.train.sed=1 is not a known key"),
    ("dpo", ["--data.preferences", "pp.jsonl"], "does not exist. Did you mean 'p.jsonl'?"),
    ("dpo", ["--data.preferences", "null"], "data.preferences=null is needed by dpo"),
    ("sft", ["--data.sft", "null"], "data.sft=null is needed by sft"),
    ("dpo", ["--data.chat_template", "chatmll"], "Did you mean 'chatml'?"),
    ("dpo", ["--data.max_prompt_length", "1024"], "leaves no room for a completion"),
    ("dpo", ["--policy.path", "./nowhere/model"], "policy.path='./nowhere/model' does not exist"),
    ("dpo", ["--policy.reference", "adapter_off"], "needs policy.lora"),
    ("dpo", ["--policy.reference", "none"], "cannot be used with dpo"),
    ("dpo", ["--policy.quantization", "4bit"], "needs policy.lora"),
    ("dpo", ["--train.early_stopping_patience", "2", "--train.eval_strategy", "no"], "eval_steps"),
    ("dpo", ["--train.fsdp", "full_shard", "--train.use_cpu", "true"], "needs an accelerator"),
    ("dpo", ["--train.parallelism_config", "2"], "parallelism_config=2 is not a mapping"),
    ("dpo", ["--train.parallelism_config", "{tp_sise: 2}"], "Did you mean tp_size?"),
    ("dpo", ["--train.parallelism_config", "{tp_size: 0}"], "is not a whole number above 0"),
    ("dpo", ["--train.parallelism_config", "{tp_size: 2}", "--train.use_cpu", "true"],
     "needs accelerators: accelerate divides no model between processes of a CPU"),
    ("ppo", ["--policy.reference", "none"], "cannot be used with ppo"),
    ("ppo", ["--rewards", "[]"], "rewards=[] is empty: ppo has nothing to raise"),
    ("ppo", ["--ppo.num_minibatches", "3"], "does not divide the rollout of 64 completions"),
    ("ppo", ["--rollout.min_new_tokens", "65"], "is above rollout.max_new_tokens=64"),
    ("ppo", ["--ppo.critic", "adapter"], "ppo.critic='adapter' needs policy.lora"),
    ("ppo", ["--data.preferences", "null"], "data.prompts=null is needed by ppo"),
    ("ppo", ["--rewards.0", "{kind: function, path: no_colon}"], "Write module:function"),
    ("ppo", ["--rewards.0", "{kind: function, path: 'nowhere_at_all:f'}"], "is not found"),
    ("dpo", ["--train.bf16"], "--train.bf16 needs a value"),
    ("dpo", ["stray"], "command line='stray' is not an option"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "words", "message"), MESSAGES)
def test_refusals_say_what_and_why(config_file, method, words, message):
    assert message in error(method, config_file, *words)


PARALLEL = [
    ("ppo", {"tp_size": 2}, (), "is not supported by ppo, only by pretrain, sft, dpo"),
    ("dpo", {"cp_size": 2}, (), "behind a mask of their own, and cannot be split"),
    ("dpo", {"sp_size": 2}, (), "and cannot be split"),
    ("dpo", {"tp_size": 4}, (), "makes 4 processes, and 2 were launched. Launch 4"),
    ("dpo", {"dp_shard_size": 2}, (), "which the launch has no engine for"),
    ("dpo", {"tp_size": 2}, ("--policy.lora", "{}"), "cannot be used with policy.lora"),
    ("dpo", {"tp_size": 2}, ("--train.deepspeed", "z.json"), "cannot be used with DeepSpeed"),
]


@pytest.mark.parametrize(("method", "sizes", "words", "message"), PARALLEL)
def test_how_a_model_may_be_divided(config_file, monkeypatch, method, sizes, words, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = load(method, config_file, *(() if "z.json" in words else words))
    if "z.json" in words:
        config.train.args["deepspeed"] = "z.json"
    config.train.args["parallelism_config"] = sizes
    with pytest.raises(UserError, match=re.escape(message)):
        check_parallel(config, cpu=False)


def test_sizes_from_the_launcher_count_too(config_file, monkeypatch):
    config = load("dpo", config_file)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_parallel(config, cpu=False)
    places = [data_place(config, rank, 8) for rank in range(8)]
    assert places == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4), (2, 4), (3, 4), (3, 4)]


def test_the_contract_message_word_for_word(config_file):
    assert error("ppo", config_file, "--policy.reference", "cached") == (
        "policy.reference='cached' cannot be used with ppo: completions are sampled during "
        "training. Use 'frozen' or 'adapter_off'."
    )
    assert load("dpo", config_file, "--policy.reference", "cached").reference == "cached"


def test_a_forgotten_model_is_an_error_and_null_is_a_choice(config_file):
    config_file.write_text(BASE.replace("policy: {path: null}", ""), encoding="utf-8")
    assert "policy.path is not set" in error("dpo", config_file)
    assert load("pretrain", config_file).policy.path is None


def test_files_of_other_methods_may_be_missing(config_file, tmp_path):
    (tmp_path / "s.jsonl").unlink()
    assert load("dpo", config_file).data.sft == "s.jsonl"
    assert "data.sft='s.jsonl' does not exist" in error("sft", config_file)


def test_a_run_folder_instead_of_its_model(config_file, tmp_path):
    (tmp_path / "run" / "final").mkdir(parents=True)
    assert "Did you mean 'run/final'?" in error("dpo", config_file, "--policy.path", "run")


def test_hub_ids_pass_unless_offline(config_file, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert load("dpo", config_file, "--policy.path", "owner/name").policy.path == "owner/name"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE" in error("dpo", config_file, "--policy.path", "owner/name")


def test_prompts_must_divide_among_the_ranks(config_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "cannot be shared evenly by 3" in error("ppo", config_file)


def test_yaml_mistakes(config_file):
    config_file.write_text("policy: {path: null}\npolicy: {path: x}\n", encoding="utf-8")
    assert "written twice" in error("dpo", config_file)
    config_file.write_text("policy: [", encoding="utf-8")
    assert "is not valid YAML" in error("dpo", config_file)
    config_file.write_text("- a\n", encoding="utf-8")
    assert "holds no sections" in error("dpo", config_file)
    assert "Did you mean" in error("dpo", config_file.with_name("d.yaml"))


def test_training_arguments_agree_with_transformers():
    from dataclasses import fields

    from transformers import TrainingArguments

    assert set(training_arguments()) == {f.name for f in fields(TrainingArguments)}
    assert set(OWNED) <= set(training_arguments())
    assert not set(REMOVED) & set(training_arguments())


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "recipes/configs").glob("*.yaml")))
def test_every_shipped_yaml_loads_for_every_method(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for method in METHODS:
        config = load_config(method, ["--config", str(ROOT / "recipes/configs" / name)])
        assert yaml.safe_load(config.to_yaml())["train"]["report_to"] == "none"


def test_loading_imports_nothing_heavy():
    code = (
        "import sys; from align.config import load_config\n"
        "try: load_config('ppo', ['--ppo.lamb', '1'])\n"
        "except Exception as e: print(e)\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines() == [
        "ppo.lamb=1 is not a known key. Did you mean 'ppo.lam'?", "[]"
    ]  # fmt: skip


def test_a_long_value_keeps_both_of_its_ends():
    path = f"/data/{'x' * 500}/export.jsonl"
    said = str(UserError("input", path, "is empty", "Export again"))
    assert said.startswith("input='/data/xxx")
    assert said.endswith("xxx/export.jsonl' is empty. Export again.")
    assert len(said) < 300
    assert "…" in said
