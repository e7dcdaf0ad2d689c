"""PPO's rollouts: what is sampled, what is measured, and what the rewards and the critic read."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import ppo_models as tiny

from align.chat import stop_ids
from align.groups import TokenGroup
from align.heads import find_head
from align.policy_module import base_model
from align.rollout import rank_seed
from align.train.rollout_parts import minibatch, prompt_indices
from align.train.rollouts import Rollout


class Recorder:
    """A reward that keeps what it was shown."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, prompts, completions, finished):
        self.calls.append((prompts, completions, finished))
        return [len(text) / 10 for text in completions]


def collected(folder, reward=None, disturb=0.2, **sections):
    """A trainer and the rollout of its first update; policy and reference differ."""
    made = tiny.build(folder, reward, **sections)
    if disturb:
        tiny.move(made, disturb)
    return made, made.collector.collect(0)


# 1. Reward and critic read prompt and completion


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_item01_critic_reads_the_prompt_and_the_completion_so_far(tmp_path, critic):
    made, rollout = collected(tmp_path, ppo={"critic": critic})
    module = made.policy.module
    if critic == "separate":
        body, head = module.critic.transformer, find_head(module.critic)[1]
    else:
        body, head = module.lm.transformer, module.value_head
    values = tiny.flat(rollout, "old_values")
    expected = []
    for prompt, completion in tiny.completions(rollout):
        for t in range(len(completion)):
            with torch.no_grad():
                last = body(torch.tensor([prompt + completion[:t]])).last_hidden_state[0, -1]
            expected.append(head(last).item())
    assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert values.std() > 0.1


def test_item01_the_reward_gets_each_prompt_with_its_completion_once(tmp_path):
    reward = Recorder()
    made, rollout = collected(tmp_path, reward, disturb=0)
    ((prompts, texts, finished),) = reward.calls
    assert len(prompts) == len(texts) == len(finished) == 8
    words = made.policy.tokenizer
    for messages, text, (prompt, completion) in zip(
        prompts, texts, tiny.completions(rollout), strict=True
    ):
        assert messages[-1].content in words.decode(prompt)
        assert text == words.decode(completion, skip_special_tokens=True)
    assert [m[-1].content for m in prompts[::2]] == [m[-1].content for m in prompts[1::2]]
    assert len({m[-1].content for m in prompts}) == 4


# 2. Padding never reaches a number


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("layout", ["grouped", "plain"])
def test_item02_measures_do_not_depend_on_the_batch_around_a_completion(tmp_path, arch, layout):
    made, rollout = collected(tmp_path, policy={"path": tiny.base(arch), "layout": layout})
    assert made.policy.layout == layout
    lm = base_model(made.policy.module.lm)
    groups = [  # completions of 1 to 8 tokens, under prompts of different lengths
        TokenGroup(
            g.prompt_ids, [(c * 8)[: 1 + (3 * i + k) % 8] for k, c in enumerate(g.completions)]
        )
        for i, g in enumerate(rollout.groups)
    ]
    assert len({len(c) for g in groups for c in g.completions}) > 4
    expected = [
        x for g in groups for c in g.completions for x in tiny.plain_logps(lm, g.prompt_ids, c)
    ]
    found = {}
    for size in (8, 3, 1):
        made.args.per_device_train_batch_size = size
        found[size] = made.collector.measure(groups)
        assert found[size]["logps"].tolist() == pytest.approx(expected, abs=2e-5)
    for name, whole in found[8].items():
        torch.testing.assert_close(found[1][name], whole, atol=2e-5, rtol=0, msg=name)


# 3. pad = eos, eos inside a chat prompt


CHATS = [
    [{"role": "system", "content": "用中文回答。"}, {"role": "user", "content": "早餐怎么样？"},
     {"role": "assistant", "content": "不错。"}, {"role": "user", "content": "位置呢？"}],
    [{"role": "user", "content": "Was it clean?"}, {"role": "assistant", "content": "Yes."},
     {"role": "user", "content": "And the food?"}],
]  # fmt: skip


def test_item03_pad_equal_to_eos_and_eos_inside_the_prompt(tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": chat}, ensure_ascii=False) for chat in CHATS]
    file.write_text("\n".join(lines), encoding="utf-8")
    # The prompts hold the end-of-turn token, and by their template the eos (= pad) itself.
    base = Path(shutil.copytree(tiny.base(pad_is_eos=True), tmp_path / "base"))
    own = (base / "chat_template.jinja").read_text(encoding="utf-8")
    (base / "chat_template.jinja").write_text("<|endoftext|>" + own, encoding="utf-8")
    made, rollout = collected(
        tmp_path,
        policy={"path": str(base)},
        data={"chat_template": None},
        rollout={"prompts_per_update": 3, "n": 6, "max_new_tokens": 12},
    )
    words = made.policy.tokenizer
    assert made.policy.pad_id == words.eos_token_id == 0
    stops = set(stop_ids(words))
    assert len(stops) == 2
    pairs = tiny.completions(rollout)
    assert sum(words.eos_token_id in p for p, _ in pairs) >= 6  # long prompts lose their start
    assert all(set(p) & stops for p, _ in pairs)
    ended = [c for _, c in pairs if c[-1] in stops]
    assert any(c[-1] == words.pad_token_id for c in ended), "no completion ends with the pad token"
    lm = base_model(made.policy.module.lm)
    expected = [x for p, c in pairs for x in tiny.plain_logps(lm, p, c)]
    # One number per completion token, the end token included.
    assert tiny.flat(rollout, "old_logps").tolist() == pytest.approx(expected, abs=2e-5)
    batch = made.policy.collate(rollout.groups)
    assert batch.labels.tolist() == [t for _, c in pairs for t in c]


# 4. Temperature


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_item04_temperature_divides_the_logits_of_policy_old_policy_and_reference(
    tmp_path, temperature
):
    made, rollout = collected(tmp_path, rollout={"temperature": temperature})
    module = made.policy.module
    pairs = tiny.completions(rollout)
    old = [x for p, c in pairs for x in tiny.plain_logps(module.lm, p, c, temperature)]
    assert tiny.flat(rollout, "old_logps").tolist() == pytest.approx(old, abs=2e-5)
    measured = made.collector.measure(rollout.groups)
    ref = [x for p, c in pairs for x in tiny.plain_logps(module.reference, p, c, temperature)]
    assert measured["ref_logps"].tolist() == pytest.approx(ref, abs=2e-5)
    assert max(abs(a - b) for a, b in zip(old, ref, strict=True)) > 0.05
    # The new policy in the loss: with the same weights its ratio to the old one is 1.
    result = made.objective(module, made.policy.collate(rollout.groups))
    assert float(result.stats["approx_kl"][0]) == pytest.approx(0, abs=1e-6)
    # And the sampler: its log-probs are of the same distribution.
    made.meter.flush()
    made.collector.collect(1)
    assert made.meter.flush()["sampler_gap"] < 1e-5


def test_item04_filters_are_off_by_default(tmp_path):
    settings = tiny.config(tmp_path)
    assert (settings.rollout.top_k, settings.rollout.top_p) == (0, 1.0)


# 5. Seeds


def test_item05_two_ranks_sample_different_prompts_with_different_seeds():
    for update in range(5):
        chosen = prompt_indices(update, prompts=10, per_update=4, seed=1)
        assert chosen == prompt_indices(update, prompts=10, per_update=4, seed=1)
    assert {rank_seed(1 + u, r) for u in range(1000) for r in range(8)} >= {1, 100_004}
    assert len({rank_seed(1 + u, r) for u in range(1000) for r in range(8)}) == 8000


def test_item05_every_prompt_once_a_pass_and_each_pass_shuffled_anew():
    drawn = [i for update in range(5) for i in prompt_indices(update, 10, 4, seed=7)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    other = [i for update in range(5) for i in prompt_indices(update, 10, 4, seed=8)]
    assert drawn[:10] != other[:10]
    # More prompts an update than there are: passes follow each other.
    assert sorted(prompt_indices(0, 3, 7, seed=0)[:6]) == [0, 0, 1, 1, 2, 2]


def test_item05_shuffle_false_keeps_the_order_of_the_file(tmp_path):
    made, rollout = collected(tmp_path, disturb=0, data={"shuffle": False})
    assert [g.prompt_ids for g in rollout.groups] == [p.ids for p in made.collector.prompts[:4]]


def test_item05_an_update_is_sampled_alike_again_and_the_next_one_is_not(tmp_path):
    made, rollout = collected(tmp_path, disturb=0)
    torch.rand(3)
    assert made.collector.collect(0).groups == rollout.groups
    assert made.collector.collect(1).groups != rollout.groups


# 6. Dropout


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.5, "target_modules": "all-linear"}])
def test_item06_dropout_is_off_in_every_model(tmp_path, lora):
    stored = json.loads((Path(tiny.base()) / "config.json").read_text(encoding="utf-8"))
    assert stored["attn_pdrop"] == stored["resid_pdrop"] == 0.1
    made, rollout = collected(tmp_path, disturb=0, policy={"lora": lora})
    module = made.policy.module.train()
    assert all(m.p == 0 for m in module.modules() if isinstance(m, nn.Dropout))
    batch = made.policy.collate(rollout.groups)
    want = ["logps", "values", "ref_logps"]
    with torch.no_grad():
        first, second = module(batch, want=want), module(batch, want=want)
        still = module.eval()(batch, want=want)
    for name in want:
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], still[name])


# 7. The first minibatch


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"rollout": {"temperature": 0.7}, "ppo": {"score_at": "after_eos"}},
        {"policy": {"lora": {"r": 4, "dropout": 0.3}}},
        {"train": {"per_device_train_batch_size": 3}, "ppo": {"num_minibatches": 2}},
    ],
)
def test_item07_the_first_minibatch_has_ratio_one(tmp_path, sections):
    made = tiny.build(tmp_path, **sections)
    made.train()
    first = made.state.log_history[0]
    assert first["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert first["clip_frac"] == first["clip_frac_low"] == first["clip_frac_high"] == 0
    # And before any step the policy is the reference.
    assert first["kl/sum"] == pytest.approx(0, abs=1e-4)


def test_item07_the_sampler_casts_as_the_trainer_does(tmp_path, monkeypatch):
    def gap(cast):
        made = tiny.build(tmp_path, train={"bf16": True})
        if not cast:
            monkeypatch.setattr(made.accelerator, "autocast", nullcontext)
        made.train()
        first = made.state.log_history[0]
        assert first["kl/sum"] == pytest.approx(0, abs=1e-4)
        assert first["ratio/max"] == pytest.approx(1, abs=1e-4)
        return first["sampler_gap"]

    # Not 0: with its cache the sampler multiplies matrices of other shapes.
    assert gap(cast=True) < 0.6 * gap(cast=False)


def test_item07_a_reference_of_other_weights_is_refused(tmp_path):
    made = tiny.build(tmp_path)
    with torch.no_grad():
        made.policy.module.reference.transformer.wte.weight *= 1.1
    with pytest.raises(RuntimeError, match="is not 0 before the first step"):
        made.train()


# 8. Cut at the stop, then score


def test_item08_completions_end_at_their_first_stop_and_texts_before_it(tmp_path):
    reward = Recorder()
    made, rollout = collected(tmp_path, reward, disturb=0, rollout={"n": 8, "min_new_tokens": 3})
    stops = set(stop_ids(made.policy.tokenizer))
    ((_, texts, finished),) = reward.calls
    early = 0
    for (_, ids), text, done in zip(tiny.completions(rollout), texts, finished, strict=True):
        assert not set(ids[:-1]) & stops
        assert not any(mark in text for mark in ("<|im_end|>", "<|endoftext|>"))
        # Fewer than three tokens before the stop: it counts as missing.
        assert done == (ids[-1] in stops and len(ids) > 3)
        early += ids[-1] in stops and len(ids) <= 3
    assert early > 0
    assert any(finished)
    assert not all(finished)


def test_minibatches_share_prompts_where_they_can():
    groups = [TokenGroup([1], [[g, k] for k in range(3)]) for g in range(4)]

    made = Rollout(0, groups)
    whole = [minibatch(made, i, 2, seed=0) for i in range(2)]
    assert [len(part) for part in whole] == [2, 2]
    assert all(len(g.completions) == 3 for part in whole for g in part)
