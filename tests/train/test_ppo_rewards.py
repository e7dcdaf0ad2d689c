"""From scores to returns in the collector: EOS rules, KL penalty, placement, normalisation."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2ForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.advantages import AdaptiveKL
from align.chat import stop_ids
from align.config import UserError, load_config
from align.heads import find_head, init_head
from align.policy import Policy
from align.rewards import make_reward

# γ = λ = 1 and a critic that says 0: a token's return is the sum of the rewards from it on.
BARE = {"kl_coef": 0.0, "gamma": 1.0, "lam": 1.0, "ppo_epochs": 1}


def always(value):
    return lambda prompts, completions, finished: [value] * len(completions)


def collected(folder, reward=None, ppo=None, disturb=0.0, head=0.0, **sections):
    made = tiny.build(folder, reward, ppo={**BARE, **(ppo or {})}, **sections)
    if disturb:
        tiny.move(made, disturb, head)
    return made, made.collector.collect(0)


def rows(rollout, name):
    return [list(row) for g in rollout.groups for row in g.extras[name]]


def log_ratios(made, rollout):
    """log π − log π_ref of every completion's tokens, from plain forward passes."""
    module = made.policy.module
    out = []
    for prompt, ids in tiny.completions(rollout):
        pair = (tiny.plain_logps(m, prompt, ids) for m in (module.lm, module.reference))
        out.append([a - b for a, b in zip(*pair, strict=True)])
    return out


def to_go(rewards):
    return list(itertools.accumulate(reversed(rewards)))[::-1]


# 9. No stop token


@pytest.mark.parametrize(
    ("mode", "value", "unfinished"),
    [("none", 1.0, 2.0), ("set", -1.0, -1.0), ("subtract", 0.5, 1.5)],
)
def test_item09_a_completion_without_a_stop(tmp_path, mode, value, unfinished):
    ppo = {"missing_eos": {"mode": mode, "value": value}}
    made, rollout = collected(tmp_path, always(2.0), ppo, rollout={"n": 4})
    stops = stop_ids(made.policy.tokenizer)
    kinds = set()
    for (_, ids), returns in zip(tiny.completions(rollout), rows(rollout, "returns"), strict=True):
        finished = ids[-1] in stops
        kinds.add(finished)
        assert returns == pytest.approx([2.0 if finished else unfinished] * len(ids))
    assert kinds == {True, False}
    assert made.meter.flush()["score/mean"] == 2.0  # the log has the raw score


# 10. KL in the reward


def test_item10_each_token_pays_for_its_own_log_ratio_and_no_other(tmp_path):
    made, rollout = collected(tmp_path, always(0.0), {"kl_coef": 0.3}, disturb=0.3)
    ratios = log_ratios(made, rollout)
    assert max(abs(x) for row in ratios for x in row) > 0.2
    for returns, row in zip(rows(rollout, "returns"), ratios, strict=True):
        assert returns == pytest.approx(to_go([-0.3 * x for x in row]), abs=1e-4)
    figures = made.meter.flush()
    total, tokens = sum(map(sum, ratios)), sum(map(len, ratios))
    assert figures["kl/sum"] == pytest.approx(total / 8, abs=1e-4)
    assert figures["kl/token"] == pytest.approx(total / tokens, abs=1e-5)
    assert figures["reward/shaped"] == pytest.approx(-0.3 * total / 8, abs=1e-4)


def test_item10_without_kl_and_score_nothing_is_left(tmp_path):
    _, rollout = collected(tmp_path, always(0.0), {"kl_coef": 0.0}, disturb=0.3)
    assert set(tiny.flat(rollout, "returns").tolist()) == {0.0}


# 11, 17. Where the score sits, and GAE with a critic


def by_recursion(rewards, values, gamma, lam):
    """A_t = δ_t + γλ·A_{t+1}, from the last position to the first. Returns A and A + V."""
    advantages, ahead, after = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        ahead = rewards[t] + gamma * after - values[t] + gamma * lam * ahead
        advantages[t], after = ahead, values[t]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whitened(nested):
    every = torch.tensor([x for row in nested for x in row], dtype=torch.float64)
    return ((every - every.mean()) / every.std()).tolist()


def test_item11_item17_at_eos_the_last_token_carries_the_score(tmp_path):
    ppo = {"kl_coef": 0.2, "gamma": 0.9, "lam": 0.8}
    made, rollout = collected(tmp_path, None, ppo, disturb=0.3, head=0.3)
    texts = [made.policy.tokenizer.decode(c, skip_special_tokens=True) for _, c in
             tiny.completions(rollout)]  # fmt: skip
    advantages = []
    for text, row, values, returns in zip(
        texts, log_ratios(made, rollout), rows(rollout, "old_values"), rows(rollout, "returns"),
        strict=True,
    ):  # fmt: skip
        rewards = [-0.2 * x for x in row]
        rewards[-1] += len(text) / 10
        mine, expected = by_recursion(rewards, values, 0.9, 0.8)
        assert returns == pytest.approx(expected, abs=2e-4)
        advantages.append(mine)
    found = tiny.flat(rollout, "advantages").tolist()
    assert found == pytest.approx(whitened(advantages), abs=1e-3)


def test_item11_item17_after_eos_one_more_position_has_a_value_and_a_return(tmp_path):
    ppo = {"kl_coef": 0.2, "gamma": 0.9, "lam": 0.8, "score_at": "after_eos"}
    made, rollout = collected(tmp_path, None, ppo, disturb=0.3, head=0.3)
    critic = made.policy.module.critic
    ends = [x for g in rollout.groups for x in g.extras["old_end_values"]]
    end_returns = [x for g in rollout.groups for x in g.extras["end_returns"]]
    advantages = []
    for i, ((prompt, ids), row, values, returns) in enumerate(
        zip(
            tiny.completions(rollout), log_ratios(made, rollout), rows(rollout, "old_values"),
            rows(rollout, "returns"), strict=True,
        )
    ):  # fmt: skip
        with torch.no_grad():  # the critic reads the whole completion, its last token included
            hidden = critic.transformer(torch.tensor([prompt + ids])).last_hidden_state[0, -1]
            end = find_head(critic)[1](hidden).item()
        assert ends[i] == pytest.approx(end, abs=1e-5)
        text = made.policy.tokenizer.decode(ids, skip_special_tokens=True)
        rewards = [-0.2 * x for x in row] + [len(text) / 10]
        mine, expected = by_recursion(rewards, [*values, end], 0.9, 0.8)
        assert returns == pytest.approx(expected[:-1], abs=2e-4)
        assert end_returns[i] == pytest.approx(expected[-1], abs=2e-4)
        advantages.append(mine[:-1])
    # The extra position has no action: it is not whitened along.
    found = tiny.flat(rollout, "advantages").tolist()
    assert found == pytest.approx(whitened(advantages), abs=1e-3)


def test_item11_the_extra_position_enters_the_value_loss(tmp_path):
    ppo = {"score_at": "after_eos", "value_clip_range": None, "vf_coef": 1.0}
    made, rollout = collected(tmp_path, always(3.0), ppo, disturb=0.2, head=0.3)
    batch = made.policy.collate(rollout.groups)
    with torch.no_grad():
        out = made.policy.module(batch, want=["values", "end_values"])
    # λ = γ = 1 and no KL: every return is the score, 3.
    errors = torch.cat([out["values"], out["end_values"]]) - 3.0
    result = made.objective(made.policy.module, batch)
    total, count = result.stats["value_loss"]
    assert float(total) == pytest.approx(0.5 * float(errors.square().sum()), rel=1e-4)
    assert count == batch.num_tokens


# 12. Normalisation


def in_turn(*batches):
    """A reward that gives the next batch of numbers at every call."""
    left = iter(batches)
    return lambda prompts, completions, finished: list(next(left))


@pytest.mark.parametrize(
    ("mode", "clip", "first", "second"),
    [
        # 0…7: mean 3.5, Σ(x−3.5)² = 42, σ = √(42/7) = √6. 0…15: mean 7.5, σ = √(340/15).
        ("std", None, [x / math.sqrt(6) for x in range(8)],
         [x / math.sqrt(340 / 15) for x in range(8, 16)]),
        ("mean_std", None, [(x - 3.5) / math.sqrt(6) for x in range(8)],
         [(x - 7.5) / math.sqrt(340 / 15) for x in range(8, 16)]),
        ("none", 5.0, [0, 1, 2, 3, 4, 5, 5, 5], [5.0] * 8),
    ],
)  # fmt: skip
def test_item12_scores_are_normalised_by_running_statistics(tmp_path, mode, clip, first, second):
    reward = in_turn(range(8), range(8, 16))
    made, rollout = collected(tmp_path, reward, {"score_norm": mode, "score_clip": clip})
    for update, expected in enumerate((first, second)):
        if update:
            rollout = made.collector.collect(update)
        found = [row[0] for row in rows(rollout, "returns")]
        assert found == pytest.approx(expected, abs=1e-5)


def test_item12_the_statistics_are_in_the_checkpoint(tmp_path):
    ppo = {"score_norm": "std"}
    made, _ = collected(tmp_path, in_turn(range(8)), ppo)
    made.save_model(str(tmp_path / "saved"))
    other = tiny.build(tmp_path, in_turn(range(8, 16)), ppo={**BARE, **ppo})
    other.load_state(tmp_path / "saved")
    found = [row[0] for row in rows(other.collector.collect(1), "returns")]
    assert found == pytest.approx([x / math.sqrt(340 / 15) for x in range(8, 16)], abs=1e-5)


# 13, 14. Heads


def test_item13_a_reward_head_starts_with_unit_variance(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pair = {"prompt": "评价", "chosen": "很好。", "rejected": "太差。"}
    pairs.write_text(json.dumps(pair, ensure_ascii=False), encoding="utf-8")
    tiny.config(tmp_path, data={"preferences": str(pairs)}, reward={"heads": 64})
    settings = load_config("reward", ["--config", str(tmp_path / "config.yaml")])
    head = find_head(Policy.load(settings, role="reward").module.lm)[1]
    assert head.weight.shape == (64, 32)
    # 2,048 draws from N(0, 1/√33): the deviation is known to 1.6 %.
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.06)
    assert abs(head.weight.mean().item()) < 4 / math.sqrt(33 * 2048)
    assert head.bias is None or head.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("critic", "lora"), [("separate", None), ("shared", None), ("adapter", {"r": 4})]
)
def test_item14_a_new_critic_says_zero(tmp_path, critic, lora):
    _, rollout = collected(tmp_path, None, {"critic": critic}, policy={"lora": lora})
    assert set(tiny.flat(rollout, "old_values").tolist()) == {0.0}


def reward_model(folder):
    """A reward model's weights on the policy's body and tokenizer."""
    model = GPT2ForSequenceClassification.from_pretrained(tiny.base(), num_labels=1)
    init_head(model, seed=5)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model.eval()


def test_item14_a_critic_can_be_a_copy_of_the_reward_model(tmp_path):
    model = reward_model(tmp_path / "rm")
    made, rollout = collected(tmp_path, None, {"critic_path": str(tmp_path / "rm")})
    batch = made.policy.collate(rollout.groups)
    with torch.no_grad():
        ends = made.policy.module(batch, want=["end_values"])["end_values"]
        for (prompt, ids), end in zip(tiny.completions(rollout), ends, strict=True):
            score = model(torch.tensor([prompt + ids])).logits[0, 0]
            assert end.item() == pytest.approx(score.item(), abs=1e-5)
    assert ends.std() > 0.05


def test_item14_a_critic_with_another_tokenizer_is_refused(tmp_path):
    from align.data.tokenizer import train_tokenizer

    reward_model(tmp_path / "rm")
    train_tokenizer(["other words", "别的字"] * 5, 280, chat_template="chatml").save_pretrained(
        tmp_path / "rm"
    )
    with pytest.raises(UserError, match="another tokenizer"):
        tiny.build(tmp_path, ppo={"critic_path": str(tmp_path / "rm")})


# 15. KL estimators and the controller


def test_item15_k3_in_the_reward(tmp_path):
    ppo = {"kl_coef": 0.5, "kl_estimator": "k3"}
    made, rollout = collected(tmp_path, always(1.0), ppo, disturb=0.3)
    for returns, row in zip(rows(rollout, "returns"), log_ratios(made, rollout), strict=True):
        penalties = [-0.5 * (math.exp(-x) - 1 + x) for x in row]
        assert max(penalties) <= 1e-9  # never a bonus
        penalties[-1] += 1.0
        assert returns == pytest.approx(to_go(penalties), abs=1e-4)


def test_item15_the_controller_reads_sums_over_completions(tmp_path):
    ppo = {"kl_coef": 0.1, "kl_target": 0.1, "kl_horizon": 100}
    made = tiny.build(tmp_path, ppo={**ppo, "ppo_epochs": 1}, train={"max_steps": 4})
    assert isinstance(made.collector.kl, AdaptiveKL)
    made.train()
    coefs, kls = tiny.logged(made, "kl_coef"), tiny.logged(made, "kl/sum")
    # Before the first step the KL is 0: error −1, clipped to −0.2; 8 completions of a horizon 100.
    assert coefs[:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 8 / 100)])
    assert max(kls[1:3]) > 0.1  # a sum above the target, and far below it per token
    for t in (1, 2):
        error = min(max(kls[t] / 0.1 - 1, -0.2), 0.2)
        assert coefs[t + 1] == pytest.approx(coefs[t] * (1 + error * 8 / 100))
    lengths = tiny.logged(made, "length/mean")
    assert tiny.logged(made, "kl/token") == pytest.approx(
        [k / n for k, n in zip(kls, lengths, strict=True)], abs=1e-6
    )


def test_item15_the_controller_is_in_the_checkpoint(tmp_path):
    ppo = {**BARE, "kl_coef": 0.1, "kl_target": 0.5, "kl_horizon": 100}
    made, _ = collected(tmp_path, None, ppo)
    made.save_model(str(tmp_path / "saved"))
    other = tiny.build(tmp_path, ppo=ppo)
    assert other.collector.kl.value == 0.1
    other.load_state(tmp_path / "saved")
    assert other.collector.kl.value == pytest.approx(0.0984)


# 16. Other terms


def test_item16_length_penalty(tmp_path):
    _, rollout = collected(tmp_path, always(2.0), {"length_penalty": 0.125})
    for returns in rows(rollout, "returns"):
        assert returns[0] == pytest.approx(2.0 - 0.125 * len(returns))


def test_item16_python_functions_with_weights(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def zeichen(prompts, completions):\n    return [len(t) for t in completions]\n\n"
        "def ended(prompts, completions, finished):\n    return [float(f) for f in finished]\n",
        encoding="utf-8",
    )
    rewards = [
        {"kind": "function", "path": f"{file}:zeichen", "weight": 0.5},
        {"kind": "function", "path": f"{file}:ended", "weight": -3.0},
    ]
    made, rollout = collected(tmp_path, None, rewards=rewards)
    words = made.policy.tokenizer
    for (_, ids), returns in zip(tiny.completions(rollout), rows(rollout, "returns"), strict=True):
        text = words.decode(ids, skip_special_tokens=True)
        expected = 0.5 * len(text) - 3.0 * (ids[-1] in stop_ids(words))
        assert returns[0] == pytest.approx(expected)


def test_item16_a_reward_over_http_without_a_server_is_refused(tmp_path):
    with pytest.raises(UserError, match="http"):
        make_reward([{"kind": "http", "path": "http://localhost:1/"}])
