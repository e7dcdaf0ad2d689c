"""Log-probs of a linear head with the gradient written out, instead of what autograd would keep.

With z = s·(W h + b), p = softmax(z) and an incoming gradient g per token:

    ∂/∂h = g·s·(W[y] − Wᵀp),   ∂/∂W = Σ g·s·(onehot(y) − p) hᵀ,   ∂/∂b = Σ g·s·(onehot(y) − p)

The normaliser itself, log Σ exp(z), is given too where it is wanted; its gradient is s·Wᵀp and
s·p hᵀ, which adds to p's factor above and nothing else.

The bracket of the first does not depend on g. So where the head is frozen (LoRA) it is made in the
forward pass, while a chunk's probabilities are at hand, and nothing of vocabulary size is kept: two
products of the size of the logits instead of the three that recomputing takes. Where the head is
trained, the probabilities are kept if all of them fit in one chunk, and else made again.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def writes_out(head: Any) -> TypeGuard[nn.Linear]:
    """Whether calling the head is nothing but x·Wᵀ + b with whole weights.

    A subclass (quantised, adapted), a hook, or a weight that ZeRO-3 or a sharded tensor type holds
    in parts, must be called as a module.
    """
    if type(head) is not nn.Linear or hasattr(head, "parametrizations"):
        return False
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks:
        return False
    weights = [w for w in (head.weight, head.bias) if w is not None]
    return all(type(w) in (Tensor, nn.Parameter) and not hasattr(w, "ds_id") for w in weights)


def linear_logps(
    hidden: Tensor, labels: Tensor, head: nn.Linear, scale: float, chunk_tokens: int
) -> Tensor:
    """Log-probs (N,) of labels (N,) under softmax(scale·head(hidden)), hidden (N, H).

    Float32 (float64 if hidden is), differentiable once. chunk_tokens: rows whose logits are in
    memory at once.
    """
    if not torch.is_grad_enabled():
        return linear_entropy(hidden, labels, head, scale, chunk_tokens, want_entropy=False)[0]
    return _LinearLogps.apply(hidden, head.weight, head.bias, labels, scale, chunk_tokens)


def linear_logps_lse(
    hidden: Tensor, labels: Tensor, head: nn.Linear, scale: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """`linear_logps`, and the normaliser logsumexp(scale·head(hidden)) (N,) beside it.

    For a trained head; differentiable once in both.
    """
    return _LinearLse.apply(hidden, head.weight, head.bias, labels, scale, chunk_tokens)


@torch.no_grad()
def linear_entropy(
    hidden: Tensor, labels: Tensor, head: nn.Linear, scale: float, chunk_tokens: int,
    *, want_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The same log-probs and, in the same pass, H = −Σ p log p in nats (N,); no gradient."""
    logps = hidden.new_empty(len(labels), dtype=_wide(hidden.dtype))
    entropy = torch.empty_like(logps) if want_entropy else None
    for at in _parts(len(labels), chunk_tokens):
        logps[at], probs, _ = _softmax(hidden[at], head.weight, head.bias, labels[at], scale)
        if entropy is not None:
            entropy[at] = torch.special.entr(probs).sum(-1)
    return logps, entropy


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
        scale: float, chunk_tokens: int,
    ) -> Tensor:  # fmt: skip
        kind = hidden.device.type
        ctx.autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        ctx.scale, ctx.chunk, ctx.slope = scale, chunk_tokens, None
        ctx.trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        wants_slope = ctx.needs_input_grad[0] and not ctx.trained
        logps = hidden.new_empty(len(labels), dtype=_wide(hidden.dtype))
        slope = torch.empty_like(hidden) if wants_slope else None
        keeps = ctx.trained and len(labels) <= chunk_tokens
        kept = None
        for at in _parts(len(labels), chunk_tokens):
            logps[at], probs, _ = _softmax(hidden[at], weight, bias, labels[at], scale)
            if slope is not None:
                slope[at] = _slope(probs, weight, labels[at], scale)
            kept = probs if keeps else None
        ctx.save_for_backward(hidden, weight, bias, labels, slope, kept)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        slope = ctx.saved_tensors[4]
        if not ctx.trained:
            rows = ctx.saved_tensors[0]
            d_hidden = (grad[:, None] * slope).to(rows.dtype) if slope is not None else None
            return d_hidden, None, None, None, None, None
        return (*_head_gradients(ctx, grad, -grad), None, None, None)


class _LinearLse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
        scale: float, chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        kind = hidden.device.type
        ctx.autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        ctx.scale, ctx.chunk = scale, chunk_tokens
        logps = hidden.new_empty(len(labels), dtype=_wide(hidden.dtype))
        normaliser, kept = torch.empty_like(logps), None
        for at in _parts(len(labels), chunk_tokens):
            logps[at], probs, normaliser[at] = _softmax(hidden[at], weight, bias, labels[at], scale)
            kept = probs if len(labels) <= chunk_tokens else None
        ctx.save_for_backward(hidden, weight, bias, labels, None, kept)
        return logps, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> Any:  # type: ignore[override]
        return (*_head_gradients(ctx, grad, grad_lse - grad), None, None, None)


def _head_gradients(
    ctx: Any, grad: Tensor, on_probs: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias; grad, on_probs: (N,), of z_y and of every p_j ∂z_j."""
    hidden, weight, bias, labels, _, kept = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.zeros_like(weight) if wanted[1] else None
    d_bias = torch.zeros_like(bias) if wanted[2] else None
    kind, enabled, dtype = ctx.autocast
    for at in _parts(len(labels), ctx.chunk):
        rows = hidden[at]
        if kept is None:
            with torch.autocast(kind, dtype=dtype, enabled=enabled):
                _, error, _ = _softmax(rows, weight, bias, labels[at], ctx.scale)
        else:
            error = kept
        # What is kept serves this one backward pass, unless the graph is retained.
        error = error * (on_probs[at, None] * ctx.scale)
        error.scatter_add_(1, labels[at, None], (grad[at, None] * ctx.scale).to(error.dtype))
        if d_bias is not None:
            d_bias += error.sum(0).to(d_bias.dtype)
        error = error.to(dtype if enabled else weight.dtype)
        if d_hidden is not None:
            d_hidden[at] = (error @ weight.to(error.dtype)).to(hidden.dtype)
        if d_weight is not None:
            if d_weight.dtype == error.dtype:
                d_weight.addmm_(error.t(), rows.to(error.dtype))
            else:
                d_weight += (error.t() @ rows.to(error.dtype)).to(d_weight.dtype)
    return d_hidden, d_weight, d_bias


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _softmax(
    rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the labels (n,), probabilities of all entries (n, V), normaliser (n,)."""
    logits = nn.functional.linear(rows.to(weight.dtype), weight, bias)
    logits = logits.to(_wide(logits.dtype))
    if scale != 1.0:
        logits *= scale
    highest, where = logits.max(-1, keepdim=True)
    chosen = logits.gather(1, labels[:, None])
    probs = torch.softmax(logits, -1, out=logits)
    # The largest probability is 1/Σ exp(z − max), and at least 1/V: its logarithm is exact.
    largest = probs.gather(1, where).log()
    return (chosen - highest + largest)[:, 0], probs, (highest - largest)[:, 0]


def _slope(probs: Tensor, weight: Tensor, labels: Tensor, scale: float) -> Tensor:
    """∂ log p / ∂ hidden (n, H)."""
    # Under autocast the product runs in the narrow dtype, as autograd's would.
    mean = probs.to(weight.dtype) @ weight
    return (weight[labels].to(mean.dtype) - mean) * scale


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
