"""The loss of a PPO step: value and policy terms, clipping, normalisation, extra terms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.policy_module import base_model
from align.train import examples


@pytest.fixture
def stepped(tmp_path):
    """A trainer whose policy and critic have moved since its rollout, and how to make more."""

    def make(**ppo):
        made = tiny.build(tmp_path, ppo={"ppo_epochs": 1, **ppo})
        tiny.move(made, 0.2)
        rollout = made.collector.collect(0)
        tiny.move(made, 0.5, seed=1)
        return made, rollout

    return make


def extras(rollout):
    """old_logps, advantages, old_values, returns as float64 arrays."""
    names = ("old_logps", "advantages", "old_values", "returns")
    return tuple(tiny.flat(rollout, name).double().numpy() for name in names)


def now(made, rollout):
    """Log-probs and values of the moved models, by plain forward passes."""
    critic, logps, values = made.policy.module.critic, [], []
    for prompt, ids in tiny.completions(rollout):
        logps += tiny.plain_logps(made.policy.module.lm, prompt, ids)
        with torch.no_grad():
            hidden = critic.transformer(torch.tensor([prompt + ids])).last_hidden_state[0]
            values += critic.score(hidden[len(prompt) - 1 : -1])[:, 0].double().tolist()
    return np.array(logps), np.array(values)


def figures(made, rollout):
    result = made.objective(made.policy.module, made.policy.collate(rollout.groups))
    means = {n: float(total) / float(count) for n, (total, count) in result.stats.items()}
    return float(result.total.detach()), means


# 18. Whitening


def test_item18_advantages_are_whitened_over_the_rollout_not_the_minibatch(tmp_path):
    made = tiny.build(tmp_path, ppo={"num_minibatches": 4}, rollout={"n": 2})
    rollout = made.collector.collect(0)
    every = tiny.flat(rollout, "advantages").double()
    assert every.mean().item() == pytest.approx(0, abs=1e-6)
    assert every.std().item() == pytest.approx(1, abs=1e-5)
    parts = [torch.tensor([x for row in g.extras["advantages"] for x in row]) for g in
             rollout.groups]  # fmt: skip
    assert max(abs(part.mean().item()) for part in parts) > 0.05


def test_item18_whitened_rewards_keep_their_mean(tmp_path):
    ppo = {"whiten_rewards": True, "kl_coef": 0.0, "lam": 1.0}
    made = tiny.build(tmp_path, ppo=ppo)
    rollout = made.collector.collect(0)
    words = made.policy.tokenizer
    rewards = []  # 0 on all tokens but the last of a completion
    for _, ids in tiny.completions(rollout):
        text = words.decode(ids, skip_special_tokens=True)
        rewards.append([0.0] * (len(ids) - 1) + [len(text) / 10])
    every = np.concatenate([np.array(row) for row in rewards])
    scale = every.std(ddof=1)
    found = [returns for g in rollout.groups for returns in g.extras["returns"]]
    for row, returns in zip(rewards, found, strict=True):
        scaled = (np.array(row) - every.mean()) / scale + every.mean()
        assert returns == pytest.approx(np.cumsum(scaled[::-1])[::-1], abs=1e-4)


# 19. Value loss


@pytest.mark.parametrize("clip", [0.2, 0.05, None])
def test_item19_value_loss_has_the_half_and_the_clip(stepped, clip):
    made, rollout = stepped(value_clip_range=clip)
    _, _, old, returns = extras(rollout)
    _, values = now(made, rollout)
    error = (values - returns) ** 2
    if clip is not None:
        kept = old + np.clip(values - old, -clip, clip)
        clipped = (kept - returns) ** 2
        share = (clipped > error).mean()
        error = np.maximum(error, clipped)
        assert 0 < share < 1
    total, means = figures(made, rollout)
    assert means["value_loss"] == pytest.approx(0.5 * error.mean(), rel=1e-3)
    assert means["value_clip_frac"] == pytest.approx(share if clip is not None else 0.0, abs=1e-6)
    # vf_coef is 0.1 unless the file says otherwise.
    assert total / len(old) == pytest.approx(
        means["policy_loss"] + 0.1 * means["value_loss"], rel=1e-5
    )


# 20. Policy loss


@pytest.mark.parametrize(
    ("ppo", "low", "high"),
    [
        ({}, 0.2, 0.2),
        ({"clip_range": 0.1, "clip_range_high": 0.3}, 0.1, 0.3),
        ({"clip_range": 0.3, "clip_range_high": 0.05}, 0.3, 0.05),
    ],
)
def test_item20_clipped_surrogate_with_both_ranges(stepped, ppo, low, high):
    made, rollout = stepped(**ppo)
    old, advantage, _, _ = extras(rollout)
    logps, _ = now(made, rollout)
    ratio = np.exp(logps - old)
    assert ratio.min() < 1 - low
    assert ratio.max() > 1 + high
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - low, 1 + high))
    below = ((ratio < 1 - low) & (advantage < 0)).mean()
    above = ((ratio > 1 + high) & (advantage > 0)).mean()
    assert below > 0
    assert above > 0
    _, means = figures(made, rollout)
    assert means["policy_loss"] == pytest.approx(loss.mean(), abs=1e-4)
    assert means["clip_frac_low"] == pytest.approx(below)
    assert means["clip_frac_high"] == pytest.approx(above)
    assert means["clip_frac"] == pytest.approx(below + above)
    assert means["approx_kl"] == pytest.approx((ratio - 1 - np.log(ratio)).mean(), rel=1e-3)
    assert made.meter.flush()["ratio/max"] == pytest.approx(ratio.max(), rel=1e-3)


def test_item20_dual_clip(stepped):
    made, rollout = stepped(dual_clip=1.2)
    old, advantage, _, _ = extras(rollout)
    ratio = np.exp(now(made, rollout)[0] - old)
    loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.2))
    capped = np.where(advantage < 0, np.minimum(loss, -1.2 * advantage), loss)
    assert (capped < loss).any()
    _, means = figures(made, rollout)
    assert means["policy_loss"] == pytest.approx(capped.mean(), abs=1e-4)
    assert means["clip_frac_dual"] == pytest.approx((capped < loss).mean())


def test_item20_the_log_ratio_is_clamped(stepped):
    made, rollout = stepped()
    group = rollout.groups[0]
    group.extras["old_logps"][0][0] = -500.0  # e^490 would be infinite
    group.extras["advantages"][0][0] = -1.0
    total, means = figures(made, rollout)
    tokens = sum(len(c) for _, c in tiny.completions(rollout))
    assert np.isfinite(total)
    assert means["policy_loss"] == pytest.approx(np.exp(20) / tokens, rel=1e-3)


class Poison(TrainerCallback):
    """Makes one number of the rollout NaN for step 2, and puts it back for step 3."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        row = self.trainer.rollout.groups[0].extras["advantages"][0]
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        if state.global_step == 1:
            self.kept, row[0] = row[0], float("nan")
        if state.global_step == 2:
            row[0] = self.kept


def test_item20_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path):
    poison = Poison()
    made = tiny.build(tmp_path, None, [poison], ppo={"ppo_epochs": 3}, train={"max_steps": 3})
    poison.trainer = made
    made.train()
    first, second, third = poison.weights
    assert torch.equal(first, second), "the bad step changed weights"
    assert not torch.equal(second, third)
    assert torch.isfinite(third).all()
    assert [row.get("skipped_steps") for row in made.state.log_history[:3]] == [None, 1, 1]
    assert made.position.update == 1  # the pass counts all the same


# 21. One normalisation for every way to cut a step


def relative(a, b):
    """Largest difference of two sets of gradients, relative to the size of the second."""
    assert a.keys() == b.keys()
    size = torch.sqrt(sum(g.square().sum() for g in b.values()))
    return max(((a[n] - b[n]).abs().max() / size).item() for n in b)


WHOLE = {"per_device_train_batch_size": 8}
CUTS = {
    "micro 4": {"train": {"per_device_train_batch_size": 4}},
    "micro 3, groups cut": {"train": {"per_device_train_batch_size": 3}},
    "micro 1": {"train": {"per_device_train_batch_size": 1}},
    "plain rows": {"policy": {"layout": "plain"}},
    "plain rows, micro 5": {
        "policy": {"layout": "plain"}, "train": {"per_device_train_batch_size": 5}},
    "token budget": {"train": {"max_tokens_per_batch": 60}},
}  # fmt: skip
PPO = {"vf_coef": 0.5, "score_at": "after_eos", "entropy_coef": 0.05}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return tiny.gradient(folder, disturb=0.2, train=WHOLE, ppo=PPO)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CUTS)
def test_item21_the_gradient_does_not_depend_on_how_a_step_is_cut(tmp_path, whole, name):
    found, made = tiny.gradient(tmp_path, disturb=0.2, ppo=PPO, **CUTS[name])
    assert relative(found, whole) < 1e-5
    assert made.state.log_history[0]["grad_norm_critic"] > 0


def test_item21_every_completion_token_weighs_the_same(tmp_path):
    """Against a loss written out: one sum over all tokens by their number, no means of means."""
    found, made = tiny.gradient(tmp_path, disturb=0.2)
    rollout = made.rollout
    _, advantage, old_values, returns = (torch.tensor(x) for x in extras(rollout))
    again = tiny.build(tmp_path)
    tiny.move(again, 0.2)
    module = again.policy.module
    module.zero_grad()
    terms, at = [], 0
    for prompt, ids in tiny.completions(rollout):
        row, part = torch.tensor([prompt + ids]), slice(at, at + len(ids))
        logits = module.lm(row).logits[0, len(prompt) - 1 : -1].double()
        logp = -F.cross_entropy(logits, torch.tensor(ids), reduction="none")
        hidden = module.critic.transformer(row).last_hidden_state[0, len(prompt) - 1 : -1]
        value = module.critic.score(hidden)[:, 0].double()
        assert (value.detach() - old_values[part]).abs().max() < 1e-5  # nothing is clipped
        # In the first minibatch ∇ of the surrogate is −A·∇log π.
        terms.append(-advantage[part] * logp + 0.1 * 0.5 * (value - returns[part]) ** 2)
        at += len(ids)
    torch.cat(terms).mean().backward()
    expected = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert relative(found, expected) < 1e-5


# 24. PTX, 25. entropy


def sft_gradient(folder, count):
    """Gradient of the mean NLL over the completion tokens of the first `count` SFT groups."""
    again = tiny.build(folder)
    lm = base_model(again.policy.module.lm)
    groups = examples.sft_groups(again.settings, again.policy.tokenizer)[0]
    total, tokens = torch.zeros(()), 0
    for i in range(count):
        g = groups[i % len(groups)]
        logits = lm(torch.tensor([g.prompt_ids + g.completions[0]])).logits[0]
        keep = torch.tensor(g.mask_of(0)).bool()
        at = logits[len(g.prompt_ids) - 1 : -1][keep]
        total = total + F.cross_entropy(at, torch.tensor(g.completions[0])[keep], reduction="sum")
        tokens += int(keep.sum())
    (total / tokens).backward()
    return {f"lm.{n}": p.grad for n, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [8, 2])
def test_item24_ptx_adds_its_coefficient_times_the_sft_gradient(tmp_path, micro):
    train = {"per_device_train_batch_size": micro}
    without, _ = tiny.gradient(tmp_path, train=train)
    with_ptx, made = tiny.gradient(tmp_path, train=train, ppo={"ptx_coef": 0.7})
    expected = sft_gradient(tmp_path, count=8)
    added = {n: with_ptx[n] - without[n] for n in expected}
    assert relative(added, {n: 0.7 * g for n, g in expected.items()}) < 1e-4
    critic = {n for n in with_ptx if n.startswith("critic.")}
    assert critic
    assert all(torch.equal(with_ptx[n], without[n]) for n in critic)
    assert made.state.log_history[0]["loss/ptx"] > 0


def test_item25_the_entropy_bonus_raises_mean_entropy(tmp_path):
    without, _ = tiny.gradient(tmp_path, disturb=0.1)
    with_bonus, made = tiny.gradient(tmp_path, disturb=0.1, ppo={"entropy_coef": 0.3})
    again = tiny.build(tmp_path)
    tiny.move(again, 0.1)
    lm = again.policy.module.lm
    entropies = []
    for prompt, ids in tiny.completions(made.rollout):
        p = lm(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].softmax(-1)
        entropies.append(-(p * p.log()).sum(-1))
    mean = torch.cat(entropies).mean()
    mean.backward()
    expected = {f"lm.{n}": -0.3 * p.grad for n, p in lm.named_parameters() if p.grad is not None}
    added = {n: with_bonus[n] - without[n] for n in expected}
    assert relative(added, expected) < 1e-4
    assert made.state.log_history[0]["entropy"] == pytest.approx(mean.item(), rel=1e-4)
