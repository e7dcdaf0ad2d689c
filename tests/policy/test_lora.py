"""Which layers are adapted, which names are refused, and going on from an adapter."""

from __future__ import annotations

import json

import pytest
import tiny_policies as tiny
import torch
from peft import PeftModel

from align.config_errors import UserError

ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


def lora(**more) -> dict:
    return {"lora": {"r": 4, **more}}


def adapted(policy) -> set[str]:
    """Last names of the layers that carry an adapter."""
    return {n.split(".lora_A")[0].rsplit(".", 1)[-1] for n in tiny.trained(policy) if "lora_A" in n}


def test_all_linear_means_the_layers_of_the_body(base, tmp_path):
    policy = tiny.load("sft", base, tmp_path, policy=lora())
    assert adapted(policy) == ALL
    names = tiny.trained(policy)
    assert len(names) == 2 * 2 * len(ALL)  # A and B, two layers
    assert all(".lora_" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("biogpt", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    ],
)
def test_heads_of_other_names_are_not_adapted_either(kind, layers, tmp_path):
    # GPT-NeoX calls its head embed_out, BioGPT output_projection.
    path = tiny.save(tmp_path / "m", kind)
    policy = tiny.load("sft", path, tmp_path, policy=lora())
    assert adapted(policy) == layers
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(path)), 2e-5)


def test_named_layers(base, tmp_path):
    policy = tiny.load("sft", base, tmp_path, policy=lora(target_modules=["q_proj", "up_proj"]))
    assert adapted(policy) == {"q_proj", "up_proj"}
    shapes = {n: tuple(p.shape) for n, p in policy.module.named_parameters() if "lora_A" in n}
    assert set(shapes.values()) == {(4, 32)}  # r × hidden


def test_a_full_name_means_one_layer(base, tmp_path):
    one = "model.layers.1.self_attn.v_proj"
    policy = tiny.load("sft", base, tmp_path, policy=lora(target_modules=[one]))
    assert {n.split("lora_")[1] for n in tiny.trained(policy)} == {
        "A.default.weight", "B.default.weight"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["nope"], "No modules were targeted"),
        ("nope", "No modules were targeted"),
        (["q_proj", "qq_proj"], "'qq_proj' adapts no layer"),
        (["q_proj", "lm_head"], "'lm_head' adapts no layer; heads are trained whole"),
        (["input_layernorm"], "not supported"),
    ],
)
def test_names_that_adapt_nothing_are_refused(names, reason, base, tmp_path):
    with pytest.raises(UserError, match=reason) as error:
        tiny.load("sft", base, tmp_path, policy=lora(target_modules=names))
    assert error.value.field == "policy.lora.target_modules"
    assert "all-linear" in str(error.value)


def test_adapters_change_nothing_before_the_first_step(base, tmp_path):
    policy = tiny.load("sft", base, tmp_path, policy=lora())
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(base)), 2e-5)
    tiny.disturb(policy.module)
    assert not tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(base)), 1e-2)


def test_alpha_over_r_scales_the_update(base, tmp_path):
    found = {}
    for alpha in (4.0, 8.0):
        policy = tiny.load("sft", base, tmp_path, policy=lora(alpha=alpha))
        tiny.disturb(policy.module, seed=1)
        layer = policy.module.lm.base_model.model.model.layers[0].mlp.up_proj
        rows = torch.ones(1, 32)
        with torch.no_grad():
            update = layer(rows) - layer.base_layer(rows)
            product = rows @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        assert tiny.close(update, alpha / 4 * product)
        found[alpha] = update.norm()
    assert found[4.0] > 1e-3


def test_a_reward_head_is_trained_whole(tmp_path, base):
    policy = tiny.load("reward", base, tmp_path, policy=lora(), reward={"heads": 2})
    others = [n for n in tiny.trained(policy) if ".lora_" not in n]
    assert others == ["lm.base_model.model.score.weight"]
    assert adapted(policy) == ALL
    assert tiny.ask(policy, "scores").shape == (5, 2)


def test_an_adapter_goes_on_where_it_was(base, tmp_path):
    path = tiny.adapter(tmp_path / "a", base)
    policy = tiny.load("sft", base, tmp_path, policy=lora(path=path))
    expected = tiny.own_logps(PeftModel.from_pretrained(tiny.causal(base), path).eval())
    assert tiny.close(tiny.ask(policy), expected, 2e-5)
    assert adapted(policy) == {"q_proj", "v_proj"}  # the adapter's own settings
    assert not tiny.close(expected, tiny.own_logps(tiny.causal(base)), 1e-2)


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    path = tiny.adapter(tmp_path / "a", base)
    file = tmp_path / "a" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"target_modules": ["c_attn"]}
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be put on this model") as error:
        tiny.load("sft", base, tmp_path, policy=lora(path=path))
    assert error.value.field == "policy.lora.path"


def test_adapter_dropout_is_the_users(base, tmp_path):
    policy = tiny.load("sft", base, tmp_path, policy=lora(dropout=0.5))
    tiny.disturb(policy.module)
    assert torch.equal(tiny.ask(policy), tiny.ask(policy))
    policy.module.train()
    assert not torch.equal(tiny.ask(policy), tiny.ask(policy))
