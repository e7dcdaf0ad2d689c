"""A k-bit base under adapters, on the CPU: what trains, what stays, what is merged and counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_policies as tiny
import torch
from safetensors.torch import load_file

from align import policy_loading
from align.config_checks import check_rules
from align.config_errors import UserError
from align.dry_run_size import memory, meta_module
from align.policy_module import base_model

pytest.importorskip("bitsandbytes", reason="extra 'quantize'")

LORA = {"lora": {"r": 4}}
# 48 and 80: no multiples of the 64 weights that share a scale.
SHAPE = {"hidden_size": 48, "intermediate_size": 80, "head_dim": 12}
BITS = ["4bit", "8bit"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"), **SHAPE)


def quantised(method, path, run_dir, bits, **more):
    policy = more.pop("policy", {})
    sections = {**more, "policy": {**LORA, "quantization": bits, **policy}}
    return tiny.load(method, path, run_dir, critic=method == "ppo", **sections)


def held(module) -> dict[str, torch.Tensor]:
    """Everything frozen, to the bit: weights as they are packed, and their scales."""
    out = {}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            out[name] = p.detach().clone()
            if (state := getattr(p, "quant_state", None)) is not None:
                out[f"{name}.absmax"] = state.absmax.clone()
    return out


def train(policy, steps: int = 6, part: str = "") -> list[float]:
    """Make the candidates likelier with AdamW; the losses."""
    trained = [p for n, p in policy.module.named_parameters() if p.requires_grad and part in n]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    batch, losses = policy.collate(tiny.groups()), []
    for _ in range(steps):
        loss = -policy.module(batch, want=("logps",))["logps"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bits", BITS)
def test_training_moves_the_adapter_and_not_one_bit_of_the_base(base, tmp_path, bits):
    policy = quantised("dpo", base, tmp_path, bits)
    before, logps = held(policy.module), tiny.ask(policy)
    kinds = {p.dtype for n, p in policy.module.named_parameters() if "base_layer.weight" in n}
    assert kinds == {torch.uint8 if bits == "4bit" else torch.int8}
    losses = train(policy)
    assert losses[-1] < losses[0] - 0.1
    after = held(policy.module)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # With the adapters off it is the model of the start, to the bit.
    assert torch.equal(tiny.ask(policy, "ref_logps"), logps)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("reference", ["adapter_off", "frozen"])
def test_the_reference_is_the_policy_before_the_first_step(base, tmp_path, bits, reference):
    policy = quantised("dpo", base, tmp_path, bits, policy={"reference": reference})
    logps, ref = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(logps, ref, 0 if reference == "adapter_off" else 1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("critic", ["adapter", "separate"])
def test_a_critic_starts_at_zero_and_leaves_the_policy_alone(base, tmp_path, bits, critic):
    policy = quantised("ppo", base, tmp_path, bits, ppo={"critic": critic})
    logps, ref, values = tiny.ask(policy, "logps", "ref_logps", "values")
    assert torch.equal(values, torch.zeros_like(values))
    assert torch.equal(logps, ref)
    tiny.disturb(policy.module, "critic" if critic == "adapter" else "critic.")
    tiny.disturb(policy.module, "value_head" if critic == "adapter" else "score")
    moved, values = tiny.ask(policy, "logps", "values")
    assert torch.equal(moved, logps)
    assert values.abs().max() > 1e-3


@pytest.mark.parametrize("bits", BITS)
def test_a_score_head_is_not_quantised(base, tmp_path, bits):
    policy = quantised("reward", base, tmp_path, bits)
    head = base_model(policy.module.lm).score
    head = getattr(head, "weight", None)
    assert head is not None
    assert (head.dtype, head.requires_grad) == (torch.float32, True)


@pytest.mark.parametrize("bits", BITS)
def test_final_is_the_full_precision_base_plus_the_adapter(base, tmp_path, bits, monkeypatch):
    policy = quantised("dpo", base, tmp_path, bits)
    rounding = (tiny.own_logps(tiny.causal(base)) - tiny.ask(policy)).abs().mean()
    train(policy)
    policy.save(tmp_path / "final", tiny.state(policy))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ImportError
    assert "quantization" not in (tmp_path / "final/config.json").read_text()
    merged = load_file(tmp_path / "final/model.safetensors")
    start = load_file(f"{base}/model.safetensors")
    adapter = load_file(tmp_path / "final/adapter/adapter_model.safetensors")
    scale = policy.config.policy.lora.alpha / policy.config.policy.lora.r
    below = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = adapter[f"{below}.lora_A.weight"], adapter[f"{below}.lora_B.weight"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(merged[name], start[name] + scale * (b @ a), atol=1e-6)
    assert torch.equal(merged["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    # Near what was trained, and apart from it by the base's rounding.
    gap = (tiny.own_logps(tiny.causal(tmp_path / "final")) - tiny.ask(policy)).abs().mean()
    assert 0 < gap < 3 * rounding
    config = json.loads((tmp_path / "final/config.json").read_text())
    assert config["dtype"] == "float32"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_dry_run_counts_the_bytes_that_the_weights_take(base, tmp_path, bits, method):
    policy = quantised(method, base, tmp_path, bits)
    real = sum(p.numel() * p.element_size() for p in policy.module.parameters())
    for p in policy.module.parameters():
        if (state := getattr(p, "quant_state", None)) is not None:
            real += state.absmax.numel() * 4
    planned, _ = memory(policy.config, meta_module(policy.config, tiny.VOCAB))
    assert planned == pytest.approx(real, rel=0.01)


def test_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    asked = {"policy": {**LORA, "quantization": "4bit"}, "data": {"preferences": "x.jsonl"}}
    config = tiny.configure("orpo", None, Path(), **asked)
    with pytest.raises(UserError, match=r"policy\.quantization='4bit' cannot .* FSDP"):
        check_rules(config)


def test_zero3_is_refused(base, tmp_path, monkeypatch, fault):
    fault("a k-bit base under ZeRO-3", "refused; DDP and ZeRO-2 work")
    monkeypatch.setattr(policy_loading, "zero3", lambda: True)
    with pytest.raises(UserError, match=r"ZeRO-3 shards .*accelerate_zero2"):
        quantised("sft", base, tmp_path, "4bit")
