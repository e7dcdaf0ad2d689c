"""Critics: zero at the start, with gradients of their own, and switching leaves no trace."""

from __future__ import annotations

import pytest
import tiny_policies as tiny
import torch

from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer

LORA = {"lora": {"r": 4}}
# name -> (policy, ppo, names of the critic's own weights begin with or contain)
KINDS = {
    "adapter": (LORA, {"critic": "adapter"}, (".critic.", "value_head.")),
    "separate": ({}, {"critic": "separate"}, ("critic.",)),
    "separate under adapters": (LORA, {"critic": "separate"}, ("critic.",)),
    "shared": ({}, {"critic": "shared"}, ("value_head.",)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


def with_critic(kind: str, base: str, tmp_path, **more):
    policy, ppo, _ = KINDS[kind]
    return tiny.load("ppo", base, tmp_path, critic=True, policy=policy, ppo=ppo, **more)


def owned(policy, kind: str) -> set[str]:
    marks = KINDS[kind][2]
    return {
        n for n in tiny.trained(policy) if n.startswith(marks) or any(f"{m}" in n for m in marks)
    }


def gradients(policy, want: str) -> set[str]:
    """Names of the weights that a loss on one output moves."""
    policy.module.zero_grad(set_to_none=True)
    out = policy.module(policy.collate(tiny.groups()), want=("logps", "values"))[want]
    (out * torch.linspace(-1, 1, len(out))).sum().backward()
    named = policy.module.named_parameters()
    return {n for n, p in named if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_critic_gives_zero_everywhere(kind, base, tmp_path):
    policy = with_critic(kind, base, tmp_path)
    values, ends = tiny.ask(policy, "values", "end_values")
    assert (values.tolist(), ends.tolist()) == ([0.0] * 20, [0.0] * 5)
    assert values.dtype == torch.float32
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(base)), 2e-5)


@pytest.mark.parametrize(
    ("policy", "more", "kind"),
    [
        (LORA, {}, "adapter"),
        ({}, {}, "separate"),
        (LORA, {"train": {"gradient_checkpointing": True}}, "separate"),
    ],
)
def test_auto(policy, more, kind, base, tmp_path):
    module = tiny.load("ppo", base, tmp_path, critic=True, policy=policy, **more).module
    found = "adapter" if module.critic_adapter else "separate" if module.critic else "shared"
    assert found == kind


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_moves_its_own_weights(kind, base, tmp_path):
    policy = with_critic(kind, base, tmp_path)
    critic = owned(policy, kind)
    assert critic
    assert {id(p) for p in policy.module.critic_parameters()} == {
        id(p) for n, p in policy.module.named_parameters() if n in critic
    }
    tiny.disturb(policy.module)  # a zero head passes no gradient on
    by_policy, by_values = gradients(policy, "logps"), gradients(policy, "values")
    assert by_policy == tiny.trained(policy) - critic
    if kind == "shared":
        # The head reads the policy's states, so the value loss moves the body too.
        heads = {n for n in tiny.trained(policy) if "lm_head" in n}
        assert by_values == tiny.trained(policy) - heads
    else:
        assert by_values == critic


@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_critic_do_not_read_each_other(kind, base, tmp_path):
    policy = with_critic(kind, base, tmp_path)
    tiny.disturb(policy.module)
    before = tiny.ask(policy, "logps", "values")
    assert before[1].std() > 1e-3
    with torch.no_grad():
        for parameter in policy.module.critic_parameters():
            parameter.add_(0.1)
    logps, values = tiny.ask(policy, "logps", "values")
    assert torch.equal(logps, before[0])
    assert not tiny.close(values, before[1], 1e-2)
    if kind != "shared":
        others = {id(p) for p in policy.module.critic_parameters()}
        with torch.no_grad():
            for parameter in policy.module.parameters():
                if parameter.requires_grad and id(parameter) not in others:
                    parameter.mul_(1.5)
        moved = tiny.ask(policy, "logps", "values")
        assert torch.equal(moved[1], values)
        assert not tiny.close(moved[0], logps, 1e-2)


def test_switching_adapters_leaves_every_weight_trainable(base, tmp_path):
    policy = with_critic("adapter", base, tmp_path)
    before, module = tiny.trained(policy), policy.module
    assert any(".critic." in n for n in before)
    assert any(".default." in n for n in before)
    assert any(n.startswith("value_head.") for n in before)
    for want in ("values", "logps", "ref_logps", "values"):
        tiny.ask(policy, want)
        assert tiny.trained(policy) == before
        assert module.lm.active_adapter == "default"
    # Also when the forward pass fails half way.
    broken = policy.collate(tiny.groups())
    broken.input_ids[0, 0] = tiny.VOCAB + 5
    with pytest.raises(IndexError):
        module(broken, want=("values",))
    assert module.lm.active_adapter == "default"
    assert tiny.trained(policy) == before


def test_a_step_changes_policy_and_critic_together(base, tmp_path):
    policy = with_critic("adapter", base, tmp_path)
    tiny.disturb(policy.module)
    held = tiny.state(policy)
    optimizer = torch.optim.SGD([p for p in policy.module.parameters() if p.requires_grad], lr=0.1)
    wants = ("logps", "values", "ref_logps")
    out = policy.module(policy.collate(tiny.groups()), want=wants)
    (
        (out["logps"] - out["ref_logps"]).square().sum() + (out["values"] - 1).square().sum()
    ).backward()
    optimizer.step()
    assert [n for n, p in tiny.state(policy).items() if torch.equal(p, held[n])] == []


def test_the_value_of_a_token_is_read_where_it_is_predicted(base, tmp_path):
    policy = with_critic("shared", base, tmp_path)
    tiny.disturb(policy.module)
    values, ends = tiny.ask(policy, "values", "end_values")
    head = policy.module.value_head
    model = policy.module.lm
    expected, last = [], []
    with torch.no_grad():
        for group in tiny.groups():
            for completion in group.completions:
                row = torch.tensor([group.prompt_ids + completion])
                hidden = model(input_ids=row, output_hidden_states=True).hidden_states[-1][0]
                start = len(group.prompt_ids)
                expected.append(head(hidden[start - 1 : -1])[:, 0])
                last.append(head(hidden[-1:])[:, 0])
    assert tiny.close(values, torch.cat(expected))
    assert tiny.close(ends, torch.cat(last))


# A critic that starts from a reward model


@pytest.mark.parametrize("heads", [1, 2])
def test_a_reward_model_is_a_critic_that_knows_its_scores(heads, base, tmp_path):
    source = tiny.save(tmp_path / "rm", heads=heads, seed=9)
    from transformers import AutoModelForSequenceClassification

    own = tiny.own_scores(AutoModelForSequenceClassification.from_pretrained(source).eval())
    policy = tiny.load("ppo", base, tmp_path, critic=True, ppo={"critic_path": source})
    ends = tiny.ask(policy, "end_values")
    assert tiny.close(ends, own.mean(-1), 1e-4)
    assert ends.abs().max() > 0.1


def test_a_causal_model_as_critic_path_gets_a_zero_head(base, tmp_path):
    other = tiny.save(tmp_path / "m", seed=5)
    policy = tiny.load("ppo", base, tmp_path, critic=True, ppo={"critic_path": other})
    assert tiny.ask(policy, "values").tolist() == [0.0] * 20
    body = tiny.causal(other).model.embed_tokens.weight
    assert torch.equal(policy.module.critic.model.embed_tokens.weight, body)


def test_a_critic_of_its_own_does_not_get_the_policys_adapter(base, tmp_path):
    source = tiny.save(tmp_path / "rm", heads=1, seed=9)
    adapter = tiny.adapter(tmp_path / "a", base)
    alone = tiny.load("ppo", base, tmp_path, critic=True, ppo={"critic_path": source})
    policy = tiny.load(
        "ppo", base, tmp_path, critic=True,
        policy={"lora": {"r": 4, "path": adapter}}, ppo={"critic_path": source},
    )  # fmt: skip
    assert tiny.close(tiny.ask(policy, "end_values"), tiny.ask(alone, "end_values"), 1e-5)
    assert all(".lora_" in n or ".score." in n for n in tiny.trained(policy) if "critic." in n)


def test_a_critic_with_another_tokenizer_is_refused(base, tmp_path):
    other = tiny.save(tmp_path / "rm", heads=1)
    train_tokenizer(["abc abc abc", "另一个词表"] * 9, 275).save_pretrained(other)
    with pytest.raises(UserError, match="another tokenizer than the policy") as error:
        tiny.load("ppo", base, tmp_path, critic=True, ppo={"critic_path": other})
    assert error.value.field == "ppo.critic_path"


def test_a_critic_adapter_cannot_be_recomputed(base, tmp_path):
    with pytest.raises(UserError, match=r"gradient_checkpointing.* Use 'separate'"):
        with_critic("adapter", base, tmp_path, train={"gradient_checkpointing": True})


def test_without_a_critic_asking_for_values_raises(base, tmp_path):
    with pytest.raises(RuntimeError, match="without a critic"):
        tiny.ask(tiny.load("ppo", base, tmp_path), "values")
