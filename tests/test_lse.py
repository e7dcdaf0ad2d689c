"""The softmax' normaliser beside the log-probs, and the z-loss that is made of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from align import losses
from align.logprobs import token_logps, token_logps_lse

N, H, V = 11, 5, 17


def problem(bias: bool = True) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.randint(V, (N,), generator=g)
    head = nn.Linear(H, V, bias=bias).double()
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return hidden, labels, head


class Hooked(nn.Linear):
    """A head that must be called as a module."""


def test_z_loss_by_hand():
    """Logits 0, ln 2, ln 5 have Z = 8: 0.1 · (ln 8)² = 0.1 · 2.0794² = 0.43241."""
    lse = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64).logsumexp(-1)
    assert losses.z_loss(lse, 0.1).item() == pytest.approx(0.432408, abs=1e-6)
    assert losses.z_loss(torch.tensor([0.0]), 0.1).item() == 0  # Z = 1 is what it pulls to
    assert losses.z_loss(torch.tensor([-2.0, 2.0]), 0.5).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("chunk", [1, 4, N, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"softcap": 3.0, "scale": 2.0}])
def test_values_and_gradients_are_those_of_whole_logits(chunk, bias, options):
    hidden, labels, head = problem(bias)
    z = head(hidden) * options.get("scale", 1.0)
    cap = options.get("softcap")
    z = cap * torch.tanh(z / cap) if cap else z
    expected = z.log_softmax(-1)[range(N), labels], z.logsumexp(-1)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)

    def total(pair):
        return (weights * pair[0]).sum() + (weights.flip(0) * pair[1] ** 2).sum()

    parameters = [hidden, *head.parameters()]
    wanted = torch.autograd.grad(total(expected), parameters)
    found = token_logps_lse(hidden, labels, head, chunk_tokens=chunk, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(total(found), parameters), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [3, None])
def test_the_gradient_of_the_z_loss_by_finite_differences(chunk):
    hidden, labels, head = problem()

    def loss(hidden, weight, bias):
        own = nn.Linear(H, V).double()
        own.weight, own.bias = nn.Parameter(weight), nn.Parameter(bias)
        del own.weight, own.bias
        own.weight, own.bias = weight, bias  # the leaf that is varied, not a copy
        logps, lse = token_logps_lse(hidden, labels, own, chunk_tokens=chunk)
        return losses.z_loss(lse, 0.3) - logps

    inputs = (hidden, head.weight.detach().requires_grad_(), head.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_other_heads_and_frozen_ones_take_the_general_way():
    hidden, labels, head = problem()
    expected = token_logps_lse(hidden, labels, head)
    hooked = Hooked(H, V).double()
    hooked.load_state_dict(head.state_dict())
    head.requires_grad_(False)
    for other in (hooked, head):
        found = token_logps_lse(hidden, labels, other, chunk_tokens=4)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        assert all(x.requires_grad for x in found)
    with torch.no_grad():
        torch.testing.assert_close(
            token_logps_lse(hidden, labels, head)[0], token_logps(hidden, labels, head)[0]
        )


def test_no_logits_of_all_tokens():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[1] == V:
                    self.size = max(self.size, x.shape[0])
            return out

    hidden, labels, head = problem()
    with Largest() as seen:
        logps, lse = token_logps_lse(hidden, labels, head, chunk_tokens=2)
        (lse**2 - logps).sum().backward()
    assert seen.size <= 5  # chunks of two rows; the head's weight has five columns, not V
