"""Weights for tokens that another policy drew: by hand, and against the on-policy gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from align.losses import ppo_policy, truncated_importance


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, *expected: float, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, f64(*expected), atol=atol, rtol=0)


# Four actions. The policy draws them with ½ ¼ ⅛ ⅛, the sampler with ¼ each.
POLICY, SAMPLER = f64(1 / 2, 1 / 4, 1 / 8, 1 / 8), f64(1 / 4, 1 / 4, 1 / 4, 1 / 4)
ADVANTAGES = f64(1.0, -1.0, 2.0, 0.0)
# −π(a)·(A(a) − ½), the gradient on the logits, with ½ the policy's mean advantage.
ON_POLICY = (-0.25, 0.375, -0.1875, 0.0625)
# −¼·A(a) + π(a)·½, where ½ is also the sampler's mean advantage.
UNCORRECTED = (0.0, 0.375, -0.4375, 0.0625)


def gradient(shares: torch.Tensor, weighted: bool, cap: float = 2.0) -> torch.Tensor:
    """Gradient on the policy's logits of PPO's first step over actions in the given shares."""
    logits = POLICY.log().requires_grad_()
    logps = logits.log_softmax(0)
    weights = truncated_importance(logps, SAMPLER.log(), cap=cap) if weighted else None
    loss, _ = ppo_policy(logps, logps, ADVANTAGES, clip_range=0.2, importance=weights)
    (loss * shares).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_weights_by_hand() -> None:
    trainer, sampler = f64(-1.0, -1.0, -2.0, -3.0), f64(-1.0, -2.0, -1.0, -1.0)
    # e⁰, e¹ above the cap, e⁻¹, e⁻²
    weights = truncated_importance(trainer, sampler, cap=2.0)
    close(weights, 1.0, 2.0, 0.36787944117144233, 0.1353352832366127)
    close(truncated_importance(trainer, sampler, cap=1.0)[:2], 1.0, 1.0)


def test_a_token_that_the_sampler_should_not_have_drawn_gets_the_cap() -> None:
    far = f64(-math.inf, -9999.0)
    close(truncated_importance(f64(-1.0, -1.0), far, cap=2.0), 2.0, 2.0)
    assert (truncated_importance(far, f64(-1.0, -1.0), cap=2.0) < 1e-8).all()


@pytest.mark.parametrize("cap", [0.99, 0.0, float("nan")])
def test_a_cap_below_one_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        truncated_importance(f64(0.0), f64(0.0), cap=cap)


def test_the_weighted_loss_by_hand() -> None:
    # r = 1.5, 1.5, ½, ½ and A = ±2: −2.4, 3, −1 and 1.6 (test_losses.py), dual clip 1.25·2
    ratios = f64(1.5, 1.5, 0.5, 0.5).log()
    advantages, weights = f64(2, -2, 2, -2), f64(0.5, 2, 1, 0)
    options: dict[str, Any] = {"clip_range": 0.2, "dual_clip": 1.25}
    plain, before = ppo_policy(ratios, torch.zeros(4).double(), advantages, **options)
    loss, stats = ppo_policy(
        ratios, torch.zeros(4).double(), advantages, importance=weights, **options
    )
    close(plain, -2.4, 2.5, -1.0, 1.6)
    close(loss, -1.2, 5.0, -1.0, 0.0)
    assert all(torch.equal(stats[name], before[name]) for name in before)


def test_weights_of_one_change_no_bit() -> None:
    drawn = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(500, generator=drawn) for _ in range(3))
    ones = truncated_importance(old, old, cap=2.0)
    assert torch.equal(ones, torch.ones(500))
    found = []
    for weights in (None, ones):
        logps = new.clone().requires_grad_()
        loss, _ = ppo_policy(logps, old, advantages, clip_range=0.2, importance=weights)
        loss.sum().backward()
        found.append((loss.detach(), logps.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_are_constants_of_the_gradient() -> None:
    drawn = torch.Generator().manual_seed(1)
    old, sampler, advantages = (torch.randn(6, generator=drawn).double() for _ in range(3))
    new = (old + f64(0.1, -0.1, 0.6, 0.7, -0.6, -0.7)).requires_grad_()
    trained = old.clone().requires_grad_()
    weights = truncated_importance(trained, sampler, cap=1.5)
    assert not weights.requires_grad

    def loss(x: torch.Tensor) -> torch.Tensor:
        return ppo_policy(x, old, advantages, clip_range=0.2, importance=weights)[0]

    assert torch.autograd.gradcheck(loss, (new,))
    learned = weights.clone().requires_grad_()
    ppo_policy(new, old, advantages, clip_range=0.2, importance=learned)[0].sum().backward()
    assert learned.grad is None


def test_the_corrected_gradient_is_the_on_policy_one_in_expectation() -> None:
    close(gradient(POLICY, weighted=False), *ON_POLICY)
    close(gradient(SAMPLER, weighted=True), *ON_POLICY)  # the largest weight, 2, is the cap
    close(gradient(SAMPLER, weighted=False), *UNCORRECTED)


def test_a_low_cap_leaves_a_part_of_the_bias() -> None:
    # Weights 1.5 1 ½ ½. Action 0: −¼·1.5 + ½·mean w·A, which is (1.5 − 1 + 1)/4.
    found = gradient(SAMPLER, weighted=True, cap=1.5)
    assert found[0].item() == pytest.approx(-0.375 + 0.5 * 0.375)
    wrong = (found - f64(*ON_POLICY)).norm()
    assert 0.05 < wrong < (f64(*UNCORRECTED) - f64(*ON_POLICY)).norm()


def test_the_corrected_gradient_of_drawn_actions_is_the_on_policy_one() -> None:
    """Of 40,000 draws: within 0.015, five standard errors; uncorrected 0.25 away."""
    drawn = torch.Generator().manual_seed(2)
    actions = torch.multinomial(SAMPLER, 40_000, replacement=True, generator=drawn)
    shares = torch.bincount(actions, minlength=4) / 40_000
    assert (gradient(shares, weighted=True) - f64(*ON_POLICY)).abs().max() < 0.015
    assert (gradient(shares, weighted=False) - f64(*ON_POLICY)).abs().max() > 0.2
