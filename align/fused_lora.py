"""peft's LoRA layer with the products of one adapter written into one output.

peft adds `lora_B(lora_A(x)) · s` to the base layer's output: two more tensors of the output's size
in the forward pass and one in the backward pass, which on a CPU cost as much as a third of the
products themselves. Here

    y = W x + b + s·B A x,   ∂/∂x = Wᵀg + s·Aᵀ Bᵀ g,   ∂/∂A = s·Bᵀ g xᵀ,   ∂/∂B = s·g (A x)ᵀ

is accumulated in place. Every case that is not exactly this (several adapters, dropout, DoRA,
quantised, sharded or autocast weights) goes to peft's own forward.

Only public attributes of peft.tuners.lora.Linear are read; tests/policy/test_fused_lora.py holds
the two to each other. Upstream: https://github.com/huggingface/peft/blob/main/src/peft/tuners/lora/layer.py.
To be removed when peft accumulates in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from align.head_gradient import writes_out


def fuse_lora(model: nn.Module) -> None:
    """Give every plain LoRA layer of a PeftModel the forward of this module."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = FusedLinear


@contextmanager
def merged_weights(model: nn.Module) -> Iterator[None]:
    """Inside, layers of float32 on a CPU multiply with W + s·B A, which is made once.

    For sampling, where one token at a time meets all weights: two small products a layer cost as
    much there as half the large one. The weights themselves are not touched, and come back to the
    bit; while it lasts there is a second copy of those that are adapted. No gradients.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FusedLinear)]
    with torch.no_grad():
        for layer in layers:
            layer.merge_aside()
    try:
        yield
    finally:
        for layer in layers:
            layer.aside = None


class FusedLinear(Linear):
    """lora.Linear whose usual case is one autograd node."""

    aside: Tensor | None = None  # weights with the adapter in them, for `merged_weights`

    def merge_aside(self) -> None:
        """Make `aside`, where the layer is a plain one in float32 on a CPU."""
        base: Any = self.get_base_layer()
        name = self._plain_adapter(base.weight)
        if name is None or base.weight.dtype != torch.float32 or base.weight.device.type != "cpu":
            return
        a: Any = self.lora_A[name].weight
        b: Any = self.lora_B[name].weight
        self.aside = torch.addmm(base.weight.detach(), b, a, alpha=self.scaling[name])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's, (…, in) → (…, out)."""
        if self.aside is not None and not self.disable_adapters and not (args or kwargs):
            base: Any = self.get_base_layer()
            return nn.functional.linear(x, self.aside, base.bias)
        adapter = None if args or kwargs else self._plain_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base, a, b = self.get_base_layer(), self.lora_A[adapter], self.lora_B[adapter]
        return _LoraLinear.apply(
            x, base.weight, base.bias, a.weight, b.weight, self.scaling[adapter]
        )  # type: ignore[return-value]

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one active adapter, if the formula above is all there is to it."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        name = active[0]
        if name not in self.lora_A or name in self.lora_variant:  # DoRA and its kin
            return None
        dropout = self.lora_dropout[name]
        if not isinstance(dropout, nn.Identity) and self.training:
            return None
        layers = (self.get_base_layer(), self.lora_A[name], self.lora_B[name])
        if not all(writes_out(layer) and layer.weight.dtype == x.dtype for layer in layers):
            return None
        base, a, b = layers
        if base.weight.requires_grad or a.bias is not None or b.bias is not None:
            return None
        if base.bias is not None and base.bias.requires_grad:
            return None
        return None if torch.is_autocast_enabled(x.device.type) else name


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        out = nn.functional.linear(rows, weight, bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight, a, b, low = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        rows, above = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        d_low = (above @ b).mul_(ctx.scale)
        d_x = (above @ weight).addmm_(d_low, a).view_as(x) if wants_x else None
        d_a = d_low.t() @ rows if wants_a else None
        d_b = (above.t() @ low).mul_(ctx.scale) if wants_b else None
        return d_x, None, None, d_a, d_b, None
