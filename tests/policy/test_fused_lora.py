"""The fused LoRA layer against peft's own forward, and the cases that are left to peft."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from align.fused_lora import FusedLinear, fuse_lora, merged_weights


def model(bias: bool = True, **config) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()
    adapted = get_peft_model(
        net, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], **config),
        autocast_adapter_dtype=False,
    )  # fmt: skip
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:  # B starts at zero
            nn.init.normal_(parameter)
    return adapted.double()


def fused_calls(monkeypatch) -> list[int]:
    """Shapes that went through the fused node."""
    from align import fused_lora

    calls: list[int] = []
    original = fused_lora._LoraLinear.apply

    def counted(x, *rest):
        calls.append(x.shape[-1])
        return original(x, *rest)

    monkeypatch.setattr(fused_lora._LoraLinear, "apply", counted)
    return calls


def run(net: nn.Module, x: torch.Tensor):
    x = x.clone().requires_grad_()
    out = net(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out.square() * weights).sum().backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return out.detach(), x.grad, grads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_output_and_gradients_equal_peft(bias, shape, monkeypatch) -> None:
    own = model(bias)
    fused = copy.deepcopy(own)
    fuse_lora(fused)
    calls = fused_calls(monkeypatch)
    x = torch.randn(shape, dtype=torch.float64)
    expected = run(own, x)
    assert calls == []
    actual = run(fused, x)
    assert calls == [6, 5]
    assert actual[2].keys() == expected[2].keys()
    assert len(actual[2]) == 4
    torch.testing.assert_close(actual, expected)


def test_gradients_by_finite_differences() -> None:
    net = model()
    fuse_lora(net)
    layer = next(m for m in net.modules() if isinstance(m, FusedLinear))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def through(x, a, b):
        return torch.func.functional_call(
            layer, {"lora_A.default.weight": a, "lora_B.default.weight": b}, (x,)
        )

    assert torch.autograd.gradcheck(through, (x, a, b))


def switched_off(net):
    return net.disable_adapter()


CASES = {
    "dropout in training": ({"lora_dropout": 0.5}, lambda net: nullcontext(), []),
    "DoRA": ({"use_dora": True}, lambda net: nullcontext(), []),
    "adapter off": ({}, switched_off, []),
    "bias on B": ({"lora_bias": True}, lambda net: nullcontext(), []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_the_formula_is_peft_s(case, monkeypatch) -> None:
    config, around, expected_calls = CASES[case]
    own = model(**config)
    fused = copy.deepcopy(own)
    fuse_lora(fused)
    calls = fused_calls(monkeypatch)
    x = torch.randn(4, 6, dtype=torch.float64)
    results = []
    for net in (own, fused):
        torch.manual_seed(3)
        with around(net):
            results.append(net(x))
    assert calls == expected_calls
    torch.testing.assert_close(results[1], results[0])


def test_dropout_in_evaluation_is_fused(monkeypatch) -> None:
    net = model(lora_dropout=0.5).eval()
    fuse_lora(net)
    calls = fused_calls(monkeypatch)
    net(torch.randn(4, 6, dtype=torch.float64))
    assert calls == [6, 5]


def test_two_adapters_and_autocast_are_peft_s(monkeypatch) -> None:
    net = model()
    net.add_adapter("second", LoraConfig(r=2, target_modules=["0", "2"]))
    fuse_lora(net)
    calls = fused_calls(monkeypatch)
    x = torch.randn(4, 6, dtype=torch.float64)
    net.base_model.set_adapter(["default", "second"])
    net.double()(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net.base_model.set_adapter("default")
        net(x)
    assert calls == []
    net(x)
    assert calls == [6, 5]


def test_merging_and_saving_know_the_layer(tmp_path) -> None:
    net = model()
    fuse_lora(net)
    assert all(isinstance(m, Linear) for m in net.modules() if hasattr(m, "lora_A"))
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = net(x)
    net.merge_adapter()
    torch.testing.assert_close(net(x), expected)
    net.unmerge_adapter()
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.merge_and_unload()(x), expected)


def test_merged_weights_give_the_same_output_and_leave_no_trace(monkeypatch) -> None:
    net = model().float()
    fuse_lora(net)
    calls = fused_calls(monkeypatch)
    x = torch.randn(4, 6)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        plain = net(x)
        assert len(calls) == 2
        with merged_weights(net):
            torch.testing.assert_close(net(x), plain)
            assert len(calls) == 2  # one product a layer
            with net.disable_adapter():
                assert not torch.allclose(net(x), plain)
        assert torch.equal(net(x), plain)
    assert len(calls) == 4
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_only_float32_is_merged() -> None:
    net = model()
    fuse_lora(net)
    with torch.no_grad(), merged_weights(net):
        assert all(x.aside is None for x in net.modules() if isinstance(x, FusedLinear))
