"""The wrapped module: recomputation, wants, second batches, reward heads."""

from __future__ import annotations

import pytest
import tiny_policies as tiny
import torch
from transformers import AutoModelForSequenceClassification

from align.config_errors import UserError

LORA = {"lora": {"r": 4}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


def gradient(policy) -> dict[str, torch.Tensor]:
    module = policy.module
    module.train()
    module.zero_grad(set_to_none=True)
    want = ("scores",) if module.scorer else ("logps", "values") if module.critic else ("logps",)
    out = module(policy.collate(tiny.groups()), want=want)
    sum(o.square().sum() for o in out.values()).backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("adapters", [{}, LORA])
def test_recomputing_activations_gives_the_same_gradients(kind, method, adapters, tmp_path):
    path = tiny.save(tmp_path / "m", kind)
    more = {"ppo": {"critic": "separate"}, "policy": adapters}
    policy = tiny.load(method, path, tmp_path, critic=method == "ppo", **more)
    tiny.disturb(policy.module)
    plain = gradient(policy)
    assert not policy.module.is_gradient_checkpointing
    calls = []
    body = next(m for n, m in policy.module.lm.named_modules() if n.endswith(("layers.0", "h.0")))
    policy.module.gradient_checkpointing_enable()
    assert policy.module.is_gradient_checkpointing
    body.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    recomputed = gradient(policy)
    assert len(calls) == 2  # once forwards, once more on the way back
    assert plain.keys() == recomputed.keys() == tiny.trained(policy)
    assert all(tiny.close(plain[n], recomputed[n], 1e-5) for n in plain)
    policy.module.gradient_checkpointing_disable()
    assert not policy.module.is_gradient_checkpointing


def test_recomputation_under_an_adapter_reference_uses_the_adapters(base, tmp_path):
    policy = tiny.load("dpo", base, tmp_path, policy=LORA)
    tiny.disturb(policy.module)

    def together() -> dict[str, torch.Tensor]:
        module = policy.module.train()
        module.zero_grad(set_to_none=True)
        out = module(policy.collate(tiny.groups()), want=("logps", "ref_logps"))
        (out["logps"] - out["ref_logps"]).square().sum().backward()
        return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    plain = together()
    policy.module.gradient_checkpointing_enable()
    recomputed = together()
    assert plain.keys() == recomputed.keys()
    assert all(tiny.close(plain[n], recomputed[n], 1e-4) for n in plain)


def test_unknown_wants_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="rewards"):
        tiny.ask(tiny.load("sft", base, tmp_path), "rewards")


def test_entropy_is_that_of_the_models_distribution(base, tmp_path):
    policy = tiny.load("sft", base, tmp_path)
    logps, entropy = tiny.ask(policy, "logps", "entropy", temperature=2.0)
    own = []
    with torch.no_grad():
        for group in tiny.groups():
            for completion in group.completions:
                row = torch.tensor([group.prompt_ids + completion])
                logits = tiny.causal(base)(input_ids=row).logits[0, len(group.prompt_ids) - 1 : -1]
                own.append(torch.distributions.Categorical(logits=logits / 2).entropy())
    assert tiny.close(entropy, torch.cat(own), 1e-4)
    assert (logps < 0).all()


def test_a_second_batch_rides_along(base, tmp_path):
    policy = tiny.load("ppo", base, tmp_path, policy=LORA)
    first, second = tiny.groups()
    batch = policy.collate([first])
    batch.also = policy.collate([second])
    with torch.no_grad():
        out = policy.module(batch, want=("logps",), temperature=0.5)
    # The second batch is data, not samples: the temperature is the samples' alone.
    assert tiny.close(out["also_logps"], tiny.ask(policy)[13:], 1e-5)
    assert tiny.close(out["logps"], tiny.ask(policy, temperature=0.5)[:13], 1e-5)


def test_a_batch_without_loss_gives_empty_numbers_on_the_graph(base, tmp_path):
    from align.groups import TokenGroup

    policy = tiny.load("sft", base, tmp_path)
    batch = policy.collate([TokenGroup([5], [[6]], masks=[[0]])])
    logps = policy.module(batch)["logps"]
    assert logps.shape == (0,)
    logps.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.module.parameters())


# Reward heads


@pytest.mark.parametrize("adapters", [{}, LORA])
def test_a_new_reward_head_is_small_and_depends_on_the_seed(adapters, base, tmp_path):
    def head(seed: int, heads: int = 400) -> torch.Tensor:
        more = {"reward": {"heads": heads}, "train": {"seed": seed}, "policy": adapters}
        policy = tiny.load("reward", base, tmp_path, **more)
        return next(p for n, p in policy.module.named_parameters() if "score" in n).detach()

    first = head(1)
    assert first.shape == (400, 32)
    assert first.std().item() == pytest.approx(0.17408, rel=0.02)  # 1/√33
    assert torch.equal(first, head(1))
    assert not torch.equal(first, head(2))


def test_scores_are_the_classifiers_own(base, tmp_path):
    policy = tiny.load("reward", base, tmp_path, reward={"heads": 2})
    assert tiny.close(tiny.ask(policy, "scores"), tiny.own_scores(policy.module.lm), 1e-5)


def test_training_a_reward_model_further_keeps_its_head(tmp_path):
    path = tiny.save(tmp_path / "rm", heads=2, seed=4)
    policy = tiny.load("reward", path, tmp_path, reward={"heads": 2})
    own = tiny.own_scores(AutoModelForSequenceClassification.from_pretrained(path).eval())
    assert tiny.close(tiny.ask(policy, "scores"), own, 1e-5)
    with pytest.raises(UserError, match=r"reward\.heads=1 does not fit .* Use 2"):
        tiny.load("reward", path, tmp_path, reward={"heads": 1})
