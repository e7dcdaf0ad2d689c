"""One unchanged YAML, one SFT model, one preference file: the recipe is the only change."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

sys.path.insert(0, str(Path(__file__).parent / "recipes"))
import recipe_runs as rr

METHODS = ("sft", "reward", "dpo", "orpo", "ppo")
YAML = """\
policy: {{path: {model}, dtype: float32}}
data:
  sft: {data}/sft.jsonl
  preferences: {data}/preferences.jsonl
  validation_fraction: 0.25
  max_length: 96
train:
  learning_rate: 1e-3
  max_steps: 2
  per_device_train_batch_size: 2
  eval_steps: 2
  logging_steps: 1
  seed: 3
dpo: {{beta: 0.1}}
orpo: {{beta: 0.1}}
ppo: {{ppo_epochs: 1, num_minibatches: 2}}
rollout: {{prompts_per_update: 4, max_new_tokens: 8}}
rewards:
  - {{kind: model, path: auto}}
  - {{kind: function, path: {data}/brief.py:brief, weight: 0.5}}
demo: {{root: {root}}}
"""
BRIEF = """
def brief(prompts, completions, **kwargs):
    return [-len(text) / 10 for text in completions]
"""
EXTRA = (
    ("今天天气怎么样？", "今天天气很好，我们去公园。", "不知道。"),
    ("怎样煮鸡蛋？", "水开后煮八分钟。", "煮煮煮。"),
    ("Why do leaves fall?", "Leaves fall in autumn to save water.", "I do not know."),
    ("How do I boil an egg?", "Boil the egg for eight minutes.", "Egg egg egg."),
)


@pytest.fixture(scope="module")
def swap(tmp_path_factory):
    """(folder, file, digest of the file before the runs, exit codes); every method has run."""
    folder = tmp_path_factory.mktemp("swap")
    data = folder / "data"
    data.mkdir()
    pairs = (*rr.PAIRS, *EXTRA)
    rr.write_rows(data / "preferences.jsonl", rr.pair_rows(pairs))
    rr.write_rows(
        data / "sft.jsonl", [{"instruction": p, "input": "", "output": c} for p, c, _ in pairs]
    )
    (data / "brief.py").write_text(BRIEF, encoding="utf-8")
    model = rr.tiny_model(folder / "model")
    file = folder / "my.yaml"
    text = YAML.format(model=model, data=data, root=folder / "runs")
    file.write_text(text, encoding="utf-8")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    codes = {method: rr.main_of(method)(["--config", str(file)]) for method in METHODS}
    return folder, file, before, codes


def test_every_method_ran_from_the_same_bytes(swap):
    folder, file, before, codes = swap
    assert codes == dict.fromkeys(METHODS, 0)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert {path.name for path in (folder / "runs").iterdir()} == set(METHODS)


def test_all_start_from_the_same_model(swap):
    found = {m: rr.manifest(swap[0] / "runs" / m)["inputs"]["policy.path"] for m in METHODS}
    assert {item["path"] for item in found.values()} == {str(swap[0] / "model")}
    assert len({item["sha256"] for item in found.values()}) == 1
    assert found["dpo"]["sha256"]


def test_dpo_and_ppo_read_the_same_preferences(swap):
    folder = swap[0]
    key = "data.preferences"
    found = [rr.manifest(folder / "runs" / m)["inputs"][key] for m in ("reward", "dpo", "ppo")]
    assert found[0] == found[1] == found[2]


def test_ppo_samples_for_the_prompts_of_the_preferences(swap):
    prompts = {p for p, _, _ in (*rr.PAIRS, *EXTRA)}
    samples = rr.rows(swap[0] / "runs" / "ppo" / "samples.jsonl")
    asked = {message["content"] for row in samples for message in row["prompt"]}
    assert asked
    assert asked <= prompts
    counted = rr.counts(swap[0] / "runs" / "ppo")[0]
    assert counted["used"] == len(prompts)


def test_methods_hold_out_the_same_prompts(swap):
    """A prompt that PPO is judged on must not be one that DPO has trained on."""
    from align.config import load_config
    from align.train.examples import preference_groups
    from align.train.ppo_prompts import load_prompt_items

    tokenizer = AutoTokenizer.from_pretrained(swap[0] / "model")
    words = ["--config", str(swap[1])]
    _, by_dpo, _ = preference_groups(load_config("dpo", words), tokenizer)
    _, by_ppo, _ = load_prompt_items(load_config("ppo", words), tokenizer)
    assert by_ppo
    assert [g.prompt_ids for g in by_dpo] == [item.ids for item in by_ppo]


@pytest.mark.parametrize("method", METHODS)
def test_the_finished_model_loads_and_has_moved(swap, method):
    kind = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    final = kind.from_pretrained(swap[0] / "runs" / method / "final")
    start = AutoModelForCausalLM.from_pretrained(swap[0] / "model")
    moved = (final.model.norm.weight - start.model.norm.weight).abs().max()
    assert moved > 1e-4
    with torch.no_grad():
        assert torch.isfinite(final(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_the_reward_model_of_the_same_file_is_the_reward(swap):
    path = rr.manifest(swap[0] / "runs" / "ppo")["inputs"]["rewards.0.path"]["path"]
    assert path == str(swap[0] / "runs" / "reward" / "final")


def test_both_runs_can_be_compared(swap):
    folder, out = swap[0], swap[0] / "compare"
    runs = [str(folder / "runs" / m) for m in ("sft", "dpo", "ppo")]
    prompts = str(folder / "data" / "preferences.jsonl")
    words = [
        "--prompts",
        prompts,
        "--reward",
        str(folder / "runs" / "reward"),
        "--output",
        str(out),
    ]
    assert rr.main_of("compare_runs")([*runs, *words, "--max_new_tokens", "8"]) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in summary["runs"]] == ["sft", "dpo", "ppo"]
    assert all(run["kl"] is not None for run in summary["runs"])
    assert (out / "report.html").is_file()
