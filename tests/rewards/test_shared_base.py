"""A reward adapter of the policy's base is put on it: the scores of the merged model, one base."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
import small_runs as runs
import tiny_policies as tiny

from align.config import UserError
from align.policy import Policy
from align.records import Message
from align.rewards.model import ModelReward

LORA = ("--policy.lora", "{r: 4}")
PROMPTS = [[Message("user", "写一条酒店评论。")], [Message("user", "Say something kind.")]] * 2
TEXTS = ["房间很干净，早餐也不错。", "Thank you for coming!", "不好。", "No."]


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    """A reward model trained with LoRA; its adapter is in final/adapter."""
    steps = ("--train.max_steps", 6, "--train.learning_rate", 1e-2, *runs.CONSTANT)
    return runs.train("reward", tmp_path_factory.mktemp("judge"), *steps, *LORA) / "final"


def policy_of(folder: Path, **sections) -> Policy:
    more = {"policy": {"lora": {"r": 4}}, "ppo": {"critic": "adapter"}, **sections}
    more |= {"rewards": [{"kind": "function", "path": "m:f"}], "data": {"prompts": "x"}}
    policy = tiny.load("ppo", runs.base(), folder, critic=True, **more)
    tiny.disturb(policy.module)
    return policy


def joined(judge: Path, policy: Policy) -> ModelReward:
    reward = ModelReward(judge, policy=policy)
    assert reward.in_parts
    reward.join(policy.module.judges, lambda k, *rows: policy.module(rows, judge=k)["scores"])
    return reward


def test_scores_are_those_of_the_merged_model_and_the_base_is_not_loaded_again(judge, tmp_path):
    policy = policy_of(tmp_path)
    weights = sum(p.numel() for p in policy.module.parameters())
    trained = {n for n, p in policy.module.named_parameters() if p.requires_grad}
    before = tiny.ask(policy, "logps", "ref_logps", "values")
    reward = joined(judge / "adapter", policy)
    assert reward.name == judge.parent.name
    apart = ModelReward(judge)(PROMPTS, TEXTS, [True] * 4)
    assert len(set(apart)) == 4
    assert reward(PROMPTS, TEXTS, [True] * 4) == pytest.approx(apart, abs=1e-5)
    added = sum(p.numel() for p in policy.module.parameters()) - weights
    assert 0 < added < weights / 2
    # The policy is what it was, and learns what it learned.
    assert {n for n, p in policy.module.named_parameters() if p.requires_grad} == trained
    after = tiny.ask(policy, "logps", "ref_logps", "values")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_adapter_of_another_base_and_a_policy_without_lora_get_a_model_of_their_own(
    judge, tmp_path
):
    other = tiny.save(tmp_path / "other", "gpt2")
    more = {"rewards": [{"kind": "function", "path": "m:f"}], "data": {"prompts": "x"}}
    lora = {"policy": {"lora": {"r": 4}}, "ppo": {"critic": "adapter"}}
    elsewhere = tiny.load("ppo", other, tmp_path / "a", critic=True, **more, **lora)
    full = tiny.load("ppo", runs.base(), tmp_path / "b", critic=True, **more)
    for policy in (elsewhere, full):
        reward = ModelReward(judge / "adapter", policy=policy)
        assert not reward.in_parts
        assert len(reward(PROMPTS, TEXTS, [True] * 4)) == 4


def test_a_base_that_is_not_the_one_it_was_trained_on_is_refused(judge, tmp_path):
    copied = Path(shutil.copytree(judge / "adapter", tmp_path / "adapter"))
    contract = json.loads((copied / "contract.json").read_text(encoding="utf-8"))
    assert contract["base_fingerprint"]
    contract["base_fingerprint"] = "0" * 16
    (copied / "contract.json").write_text(json.dumps(contract), encoding="utf-8")
    for policy in (None, policy_of(tmp_path)):
        with pytest.raises(UserError, match="the base model of"):
            ModelReward(copied, policy=policy)


def test_a_folder_without_a_head_is_refused_as_without_a_policy(judge, tmp_path):
    copied = Path(shutil.copytree(judge / "adapter", tmp_path / "adapter"))
    weights = load_file(copied / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".score." not in name}
    assert len(kept) < len(weights)
    save_file(kept, copied / "adapter_model.safetensors")
    for policy in (None, policy_of(tmp_path)):
        with pytest.raises(UserError, match="has no trained reward head"):
            ModelReward(copied, policy=policy)


@pytest.mark.slow
def test_ppo_takes_the_same_steps_and_saves_the_policys_adapter_alone(judge, tmp_path):
    steps = (*LORA, "--ppo.critic", "adapter", "--train.max_steps", 4, "--train.save_steps", 2)
    kept = {}
    for name, path in (("apart", judge), ("shared", judge / "adapter")):
        rewards = ("--rewards", f"[{{kind: model, path: '{path}'}}]")
        run = runs.train("ppo", tmp_path / name, *steps, *rewards, *runs.CONSTANT)
        kept[name] = run
    runs.trace_difference(kept["apart"], kept["shared"], limit=1e-4)
    first, second = (runs.weights(run) for run in kept.values())
    assert first.keys() == second.keys()
    assert max(float((first[n] - second[n]).abs().max()) for n in first) < 1e-4
    assert not list(kept["shared"].rglob("*judge*"))
    again = (*steps, "--rewards", f"[{{kind: model, path: '{judge / 'adapter'}'}}]")
    resumed = tmp_path / "resumed"
    runs.train("ppo", resumed, *again, *runs.CONSTANT, "--train.max_steps", 2)
    runs.train("ppo", resumed, *again, *runs.CONSTANT)
    ended = runs.weights(resumed)
    assert all(torch.equal(ended[n], second[n]) for n in second)
