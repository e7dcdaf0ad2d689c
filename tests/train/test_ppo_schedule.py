"""Passes, minibatches, optimizer settings, warm-up and the moving average."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.config import UserError
from align.train import ppo
from align.train.ppo_state import Position

DROP = tiny.DROP


# 22. Passes and minibatches


def walk(made, steps):
    """The (prompt, completion) pairs of each step, as the Trainer would be given them."""
    micros, out = made.micro_batches(), []
    for _ in range(steps):
        pairs = []
        for _ in range(made.args.gradient_accumulation_steps):
            for batch in next(micros)["batches"]:
                bounds = batch.offsets.tolist()
                for c in range(batch.num_candidates):
                    ids = batch.labels[bounds[c] : bounds[c + 1]].tolist()
                    row, col = batch.pred_row[bounds[c]], batch.pred_col[bounds[c]]
                    pairs.append((tuple(batch.input_ids[row, : col + 1].tolist()), tuple(ids)))
        out.append(sorted(pairs))
        made.step_ended()
    return out


@pytest.mark.parametrize(
    ("minibatches", "micro"),
    [(1, 8), (2, 4), (4, 1), (8, 8), (2, 3)],  # 8: fewer completions a step than a group has
)
def test_item22_every_completion_once_a_pass_in_a_new_order(tmp_path, minibatches, micro):
    made = tiny.build(
        tmp_path,
        ppo={"ppo_epochs": 4, "num_minibatches": minibatches},
        train={"per_device_train_batch_size": micro},
        policy={"layout": "plain"},
    )
    steps = walk(made, 4 * minibatches)
    pairs = [(tuple(p), tuple(c)) for p, c in tiny.completions(made.rollout)]
    passes = [steps[i * minibatches : (i + 1) * minibatches] for i in range(4)]
    for one in passes:
        assert sorted(pair for step in one for pair in step) == sorted(pairs)
        assert {len(step) for step in one} == {8 // minibatches}
    if minibatches > 1:
        assert len({str(one) for one in passes}) > 1
    assert made.position.update == 1  # four passes are one update


def test_item22_prompts_go_round_and_every_update_is_sampled_anew(tmp_path):
    made = tiny.build(tmp_path, ppo={"ppo_epochs": 2}, train={"max_steps": 6})
    made.train()
    assert made.position.update == 3
    assert made.rollout.update == 2
    assert len(tiny.logged(made, "score/mean")) == len(tiny.logged(made, "time/optimise")) == 3
    for row, score in zip(made.state.log_history, (True, False) * 3, strict=False):
        assert ("score/mean" in row) == score
        assert ("time/optimise" in row) != score  # with the update's last step


@pytest.mark.parametrize(("target", "updates"), [(None, 1), (1e-7, 2), (100.0, 1)])
def test_item22_target_kl_ends_the_passes(tmp_path, target, updates):
    ppo = {"ppo_epochs": 4, "num_minibatches": 1, "target_kl": target}
    made = tiny.build(tmp_path, ppo=ppo, train={"max_steps": 4, "learning_rate": 1e-2})
    made.train()
    # The first pass has approx_kl 0 and goes on; the second is over the target and ends.
    assert made.position.update == updates
    assert len(tiny.logged(made, "score/mean")) == updates


def test_item22_the_mean_over_the_pass_and_all_ranks_decides():
    place = Position(epochs=3, minibatches=2)
    place.advance()
    place.advance()
    assert place.pass_ended()
    place.approx_kl += torch.tensor([0.6, 10.0])  # this rank 0.06 a token
    other_rank = torch.tensor([0.0, 10.0], dtype=torch.float64)
    assert not place.end_pass(0.04, lambda x: x + other_rank)  # together 0.03
    assert (place.update, place.epoch, place.minibatch) == (0, 1, 0)
    place.approx_kl += torch.tensor([0.6, 10.0])
    assert place.end_pass(0.04, lambda x: x)
    assert (place.update, place.epoch) == (1, 0)


# 23. Optimizer


def test_item23_defaults_of_shared_practice(tmp_path):
    names = ("learning_rate", "lr_scheduler_type", "max_grad_norm", "weight_decay")
    made = tiny.build(tmp_path, train={**dict.fromkeys(names, DROP), "max_steps": 3})
    made.train()
    groups = made.optimizer.param_groups
    assert {g["eps"] for g in groups} == {1e-5}
    assert {g["initial_lr"] for g in groups} == {3e-6}
    assert tiny.logged(made, "learning_rate") == pytest.approx([3e-6, 2e-6, 1e-6])  # linear to 0
    assert made.args.max_grad_norm == 1.0
    keys = type(made.settings.ppo)()
    assert (keys.gamma, keys.lam, keys.vf_coef, keys.value_clip_range) == (1.0, 0.95, 0.1, 0.2)
    assert keys.ppo_epochs == 4


def test_item23_what_the_file_says_wins(tmp_path):
    made = tiny.build(tmp_path, train={"learning_rate": 5e-5, "adam_epsilon": 1e-7})
    assert (made.args.learning_rate, made.args.adam_epsilon) == (5e-5, 1e-7)


@pytest.mark.parametrize(("critic", "lora"), [("separate", None), ("adapter", {"r": 4})])
def test_item23_the_critic_has_a_rate_of_its_own(tmp_path, critic, lora):
    made = tiny.build(
        tmp_path,
        policy={"lora": lora},
        ppo={"critic": critic, "critic_learning_rate": 4e-3, "ppo_epochs": 4},
        train={"lr_scheduler_type": "linear", "max_steps": 4, "weight_decay": 0.01},
    )
    made.train()
    critics = {id(p) for p in made.policy.module.critic_parameters()}
    rates = {}
    for group in made.optimizer.param_groups:
        kinds = {id(p) in critics for p in group["params"]}
        if not kinds:
            continue
        assert len(kinds) == 1, "policy and critic share a group"
        rates.setdefault(kinds.pop(), set()).add(group["initial_lr"])
    assert rates == {True: {4e-3}, False: {1e-3}}
    trained = {id(p) for p in made.policy.module.parameters() if p.requires_grad}
    grouped = [id(p) for g in made.optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(trained)  # each once
    # Both follow the schedule; the logged rate is the policy's.
    assert tiny.logged(made, "learning_rate")[0] == 1e-3


def test_item23_gradients_are_clipped_after_they_are_logged(tmp_path):
    found, made = tiny.gradient(tmp_path, train={"max_grad_norm": 0.25})
    row = made.state.log_history[0]
    assert row["grad_norm"] > 0.5
    norm = torch.sqrt(sum(g.square().sum() for g in found.values()))
    assert norm.item() == pytest.approx(0.25, rel=1e-3)
    free, again = tiny.gradient(tmp_path)
    mine = torch.sqrt(sum(g.square().sum() for n, g in free.items() if n.startswith("critic.")))
    assert again.state.log_history[0]["grad_norm_critic"] == pytest.approx(mine.item(), rel=1e-4)


# 24. Warm-up


class Weights(TrainerCallback):
    """Policy and critic after every step."""

    def __init__(self) -> None:
        self.policy: list[torch.Tensor] = []
        self.critic: list[torch.Tensor] = []

    def look(self, module) -> None:
        critics = {id(p) for p in module.critic_parameters()}
        named = [(id(p) in critics, p) for p in module.parameters() if p.requires_grad]
        for kept, wanted in ((self.policy, False), (self.critic, True)):
            kept.append(torch.cat([p.detach().flatten() for mine, p in named if mine == wanted]))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.look(model)


@pytest.mark.parametrize(("critic", "lora"), [("separate", None), ("adapter", {"r": 4})])
def test_item24_warm_up_leaves_the_policy_bit_identical(tmp_path, critic, lora):
    seen = Weights()
    ppo = {"critic": critic, "critic_warmup_updates": 2, "ppo_epochs": 2, "num_minibatches": 1,
           "entropy_coef": 0.1, "ptx_coef": 1.0}  # fmt: skip
    made = tiny.build(tmp_path, None, [seen], ppo=ppo, policy={"lora": lora},
                      train={"max_steps": 6})  # fmt: skip
    seen.look(made.policy.module)
    made.train()
    frozen, steps = seen.policy[0], seen.policy[1:]
    assert all(torch.equal(frozen, weights) for weights in steps[:4])  # 2 updates of 2 steps
    assert not torch.equal(frozen, steps[4])
    assert not torch.equal(steps[4], steps[5])
    changed = [not torch.equal(a, b) for a, b in zip(seen.critic, seen.critic[1:], strict=False)]
    assert all(changed)
    assert tiny.logged(made, "kl/sum")[:3] == pytest.approx([0, 0, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"weight_decay": 0.1}}, "shrinks it"),
        ({"ppo": {"critic": "shared"}}, "shares its body"),
    ],
)
def test_item24_a_warm_up_that_could_not_freeze_is_refused(tmp_path, sections, message):
    ppo = {"critic_warmup_updates": 1, **sections.get("ppo", {})}
    with pytest.raises(UserError, match=message):
        tiny.config(tmp_path, **{**sections, "ppo": ppo})


# 25. Moving average


def test_item25_moving_average_by_hand(tmp_path):
    seen = Weights()
    made = tiny.build(
        tmp_path, None, [seen], ppo={"ema_decay": 0.75, "ppo_epochs": 3}, train={"max_steps": 3}
    )
    seen.look(made.policy.module)
    names = [n for n, p in made.policy.module.named_parameters() if n.startswith("lm.")]
    made.train()
    w = seen.policy
    # s₁ = ¾w₀ + ¼w₁, s₂ = ¾s₁ + ¼w₂, s₃ = ¾s₂ + ¼w₃
    expected = 0.421875 * w[0] + 0.140625 * w[1] + 0.1875 * w[2] + 0.25 * w[3]
    shadow = torch.cat([made.ema.shadow[n].flatten() for n in names])
    torch.testing.assert_close(shadow, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(shadow, w[3])
    assert set(made.ema.shadow) == set(names)  # the critic has none


# The batch sizes that follow from a rollout


@pytest.mark.parametrize(
    ("minibatches", "micro", "used", "accumulation"),
    [(1, 8, 8, 1), (1, 3, 3, 3), (4, 8, 2, 1), (2, 1, 1, 4)],
)
def test_accumulation_follows_from_the_minibatch(tmp_path, minibatches, micro, used, accumulation):
    made = tiny.build(
        tmp_path,
        ppo={"num_minibatches": minibatches},
        train={"per_device_train_batch_size": micro},
    )
    args = made.args
    assert args.per_device_train_batch_size == used
    assert args.gradient_accumulation_steps == accumulation


def test_minibatches_that_processes_cannot_share_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes cannot share"):
        tiny.config(tmp_path, ppo={"num_minibatches": 8})


def test_a_moving_average_of_sharded_weights_is_refused(tmp_path, monkeypatch):
    settings = tiny.config(tmp_path, ppo={"ema_decay": 0.9})
    ppo.check(settings)
    monkeypatch.setattr(ppo, "in_parts", lambda: True)
    with pytest.raises(UserError, match="needs whole weights"):
        ppo.check(settings)
