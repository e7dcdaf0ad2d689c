"""Rewards to advantages: KL estimators and controllers, GAE, whitening, running moments.

Tokens of all completions lie end to end in flat (N,) tensors; `offsets` (C+1,) says where each
completion starts and ends, so there is no padding and no mask. Whatever must be the same on all
ranks takes `reduce`: a callable that returns the sum of a tensor over the ranks (None = one rank).
Every rank must make the same calls, also a rank that holds no token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]

_LOG_RATIO_LIMIT = 20.0


def kl_k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL estimate log π − log π_ref: unbiased, high variance, negative half of the time.

    logps, ref_logps: any equal shape, of tokens sampled from π, nats. Returns that shape.
    Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html).
    """
    return logps - ref_logps


def kl_k2(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL estimate ½(log π − log π_ref)²: biased, low variance, never negative. See `kl_k1`."""
    return 0.5 * (logps - ref_logps) ** 2


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL estimate e^d − 1 − d with d = log π_ref − log π: unbiased and never negative.

    Shapes as in `kl_k1`. d is clamped to ±20, past which one token would outweigh every other.
    """
    d = (ref_logps - logps).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return torch.expm1(d) - d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def token_rewards(
    kl: Tensor, scores: Tensor, offsets: Tensor, *, kl_coef: float, score_at: str = "eos"
) -> Tensor:
    """Per-token reward: −kl_coef·kl on every token, plus the score where the completion ends.

    kl: (N,) nats. scores: (C,) reward units. score_at='eos' adds the score to the last token:
    returns (N,). score_at='after_eos' gives each completion one more position, which holds the
    score alone: returns (N+C,), a layout that `gae` understands. The score of an empty completion
    has no token to sit on and is dropped under 'eos'.
    """
    offsets = offsets.to(kl.device)
    penalty = -kl_coef * kl
    if score_at == "eos":
        filled = offsets[1:] > offsets[:-1]
        return penalty.index_add(0, offsets[1:][filled] - 1, scores.to(kl)[filled])
    if score_at != "after_eos":
        raise ValueError(f"score_at={score_at!r} must be 'eos' or 'after_eos'")
    rewards = kl.new_empty(kl.numel() + scores.numel())
    ends = offsets[1:] + torch.arange(scores.numel(), device=kl.device)
    is_token = torch.ones_like(rewards, dtype=torch.bool)
    is_token[ends] = False
    rewards[is_token] = penalty
    rewards[ends] = scores.to(kl)
    return rewards


def gae(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over flat segments, in log₂(longest) steps.

        δ_t = r_t + γ·V_{t+1} − V_t,   A_t = δ_t + γλ·A_{t+1},   R_t = A_t + V_t

    with V and A equal to 0 beyond a segment's end. values: (N,). offsets: (C+1,) int, segment c is
    [offsets[c], offsets[c+1]). rewards: (N,), or (N+C,) with one more position at the end of each
    segment, for a score that comes after the last token. No critic reads that position, and its
    value is the score itself, so the extra reward is folded into the last token as γ·r. (A caller
    whose critic *does* read it passes values of that length too, with offsets counting the extra
    position.) Returns advantages and returns, (N,) each, float, without gradient.

    A_t = Σ_k (γλ)^k δ_{t+k} is summed by doubling: after step s every A_t covers 2^s terms. A token
    adds only terms of its own segment, so the result does not depend on the neighbours.
    Raises ValueError when the lengths fit neither layout.
    Schulman et al. 2015 (arXiv:1506.02438) eq. 16.
    """
    rewards, values = _layout(rewards, values, offsets, gamma)
    offsets = offsets.to(values.device)
    lengths = offsets[1:] - offsets[:-1]
    end = torch.repeat_interleave(offsets[1:], lengths)
    position = torch.arange(values.numel(), device=values.device)
    advantages = rewards + gamma * _ahead(values, position, end, 1) - values
    longest = int(lengths.max()) if lengths.numel() else 0
    step, decay = 1, gamma * lam
    while step < longest:
        advantages = advantages + decay * _ahead(advantages, position, end, step)
        step, decay = step * 2, decay * decay
    return advantages, advantages + values


def gae_loop(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """`gae` as the equation is read, token by token: slow, and the definition it is held to."""
    rewards, values = _layout(rewards, values, offsets, gamma)
    advantages = torch.zeros_like(values)
    bounds = offsets.tolist()
    for start, end in itertools.pairwise(bounds):
        next_value = next_advantage = 0.0
        for t in reversed(range(start, end)):
            delta = rewards[t] + gamma * next_value - values[t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[t]
            advantages[t] = next_advantage
    return advantages, advantages + values


def _layout(
    rewards: Tensor, values: Tensor, offsets: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Detaches, checks lengths, and folds a segment's extra last reward into its last token."""
    rewards, values, offsets = rewards.detach(), values.detach(), offsets.to(values.device)
    tokens, segments = values.numel(), offsets.numel() - 1
    if tokens != int(offsets[-1]) or rewards.numel() not in (tokens, tokens + segments):
        raise ValueError(
            f"gae: {segments} segments end at {int(offsets[-1])}, but there are {tokens} values "
            f"and {rewards.numel()} rewards (want as many as values, or one more per segment)"
        )
    if rewards.numel() == tokens:
        return rewards, values
    extra = offsets[1:] + torch.arange(segments, device=values.device)
    is_token = torch.ones_like(rewards, dtype=torch.bool)
    is_token[extra] = False
    filled = offsets[1:] > offsets[:-1]
    last = offsets[1:][filled] - 1
    return rewards[is_token].index_add(0, last, gamma * rewards[extra][filled]), values


def _ahead(x: Tensor, position: Tensor, end: Tensor, step: int) -> Tensor:
    """x[t + step] where that is still in t's segment, else 0. x: (N,)."""
    inside = position + step < end
    return torch.where(inside, x.roll(-step), torch.zeros_like(x))


def whiten(x: Tensor, *, shift_mean: bool = True, reduce: Reduce | None = None) -> Tensor:
    """Scales x to unit standard deviation over all ranks, and (shift_mean) to zero mean.

    x: (N,), this rank's share; may be empty. shift_mean=False keeps the mean (what rewards need:
    their sign has a meaning). Unbiased variance, as trl and the N+ code; (x−μ)/√(σ²+1e-8).
    Returns (N,) in x's dtype.
    """
    count, mean, m2 = _moments(x, reduce)
    if count == 0:
        return x
    variance = m2 / max(count - 1, 1)
    scaled = (_wide(x) - mean) / math.sqrt(variance + 1e-8)
    return (scaled if shift_mean else scaled + mean).to(x.dtype)


def explained_variance(returns: Tensor, values: Tensor, *, reduce: Reduce | None = None) -> float:
    """1 − Var(returns − values)/Var(returns): 1 perfect, 0 as good as a constant, below 0 worse.

    returns, values: (N,), this rank's share. 0.0 when the returns do not vary, for then there is
    nothing to explain (and NaN is not JSON).
    """
    _, _, total = _moments(returns, reduce)
    _, _, residual = _moments(returns - values, reduce)
    return 1.0 - residual / total if total > 0 else 0.0


def _wide(x: Tensor) -> Tensor:
    """float64 for sums over millions of tokens; float32 where the device has no float64 (MPS)."""
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)


def _moments(x: Tensor, reduce: Reduce | None) -> tuple[float, float, float]:
    """Count, mean and sum of squared deviations over all ranks, in two passes.

    Two passes, because E[x²] − E[x]² loses every digit when the mean is large against the spread.
    """
    wide = _wide(x)
    first = torch.stack([wide.new_tensor(float(x.numel())), wide.sum()])
    count, total = (reduce(first) if reduce else first).tolist()
    mean = total / count if count else 0.0
    second = (wide - mean).square().sum().reshape(1)
    (m2,) = (reduce(second) if reduce else second).tolist()
    return count, mean, m2


class RunningMoments:
    """Mean and standard deviation of everything seen so far, over all ranks.

    Batches are merged with Chan's parallel formula, so the result equals that of one pass over all
    data. `mean`, `std` (unbiased) and `count` are floats; std is 1 until there are two values and
    where all values are equal, so that dividing by it is always safe.
    Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
    """

    def __init__(self) -> None:
        self.count, self.mean, self._m2 = 0.0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation, or 1.0 where there is none to divide by."""
        return math.sqrt(self._m2 / (self.count - 1)) if self.count > 1 and self._m2 > 0 else 1.0

    def update(self, x: Tensor, *, reduce: Reduce | None = None) -> None:
        """Adds this rank's share x (any shape) of a batch. Raises ValueError if not finite."""
        count, mean, m2 = _moments(x, reduce)
        if not (math.isfinite(mean) and math.isfinite(m2)):
            raise ValueError("RunningMoments.update got a value that is not finite")
        if count == 0:
            return
        total, delta = self.count + count, mean - self.mean
        self._m2 += m2 + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs; plain floats."""
        return {"count": self.count, "mean": self.mean, "m2": self._m2}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.count, self.mean = float(state["count"]), float(state["mean"])
        self._m2 = float(state["m2"])


class FixedKL:
    """A KL coefficient that never changes; `value` is what multiplies the per-token KL."""

    def __init__(self, value: float) -> None:
        self.value = float(value)

    def update(self, kl_sum_mean: float, n: int) -> None:
        """Does nothing; the same call as `AdaptiveKL.update`."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.value = float(state["value"])


class AdaptiveKL(FixedKL):
    """A KL coefficient steered towards a target: value ×= 1 + clip(KL/target − 1, ±0.2)·n/horizon.

    The unit of KL and target is nats per *sequence*: the log-ratio summed over a completion's
    tokens, averaged over completions. A target of 6 is a sum; for completions of 60 tokens it is
    0.1 per token. n: completions in the update over all ranks; horizon: completions.
    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.
    """

    def __init__(self, value: float, target: float, horizon: float) -> None:
        if not (value > 0 and target > 0 and horizon > 0):
            raise ValueError(
                f"AdaptiveKL: value={value}, target={target} and horizon={horizon} must be > 0"
            )
        super().__init__(value)
        self.target, self.horizon = float(target), float(horizon)

    def update(self, kl_sum_mean: float, n: int) -> None:
        """Moves the coefficient after n completions of mean summed KL kl_sum_mean, nats."""
        if math.isnan(kl_sum_mean):
            raise ValueError("AdaptiveKL.update got NaN; the coefficient would stay NaN for ever")
        error = min(max(kl_sum_mean / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n / self.horizon
