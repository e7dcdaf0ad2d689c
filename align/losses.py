"""The objectives, as pure functions of log-probs, values, rewards and masks.

No model, no config object and no distributed call: each function returns one number per element
(token or row), and the caller divides by the global count, so that no micro-batch size, packing or
world size changes a gradient. Equations, sources and the places where papers and code bases
disagree are in docs/losses.md. The DPO family lives next door in losses_dpo.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.losses_dpo import ALIASES, LOSS_TYPES, REFERENCE_FREE, dpo

__all__ = [
    "ALIASES",
    "LOG_RATIO_LIMIT",
    "LOSS_TYPES",
    "REFERENCE_FREE",
    "attribute_error",
    "bradley_terry",
    "center",
    "dpo",
    "length_bonus",
    "log1mexp",
    "orpo_odds",
    "ppo_policy",
    "ppo_value",
    "sft",
    "truncated_importance",
    "z_loss",
]

LOG_RATIO_LIMIT = 20.0
"""exp(±20) is 5e8 and 2e-9: far past any useful ratio, and its square still fits in float32."""


def sft(logps: Tensor, weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood per token, −weight·log π(token).

    logps: (N,) float, nats. weights: (N,) float, 0 removes a token from the loss; default 1.
    Returns (N,). Divide the sum by the global sum of weights to get the usual mean over tokens.
    """
    return -logps if weights is None else -logps * weights


def z_loss(lse: Tensor, coef: float) -> Tensor:
    """Pull of the softmax' normaliser towards 1, coef·(log Z)², so that logits do not drift.

    lse: (N,) float, logsumexp of the logits. Returns (N,), nats; divide the sum by the global
    number of tokens. Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), section 5, with coef 1e-4.
    """
    return coef * lse**2


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    target: Tensor | None = None,
    margin: Tensor | float | None = None,
) -> Tensor:
    """Bradley–Terry ranking loss, −log σ(r_chosen − r_rejected − margin).

    chosen, rejected: (B,) float, rewards. target: (B,) in [0, 1], probability that chosen wins; the
    loss is the expectation over who wins, each winner having to lead by the margin:
    target·(−log σ(Δ − m)) + (1−target)·(−log σ(−Δ − m)). margin: (B,) or scalar, in reward units.
    Returns (B,), nats. Ouyang et al. 2022 (arXiv:2203.02155) eq. 1; margin as in Llama 2
    (arXiv:2307.09288) eq. 2.
    """
    gap = chosen - rejected
    lead = gap if margin is None else gap - margin
    if target is None:
        return -F.logsigmoid(lead)
    behind = -gap if margin is None else -gap - margin
    return -target * F.logsigmoid(lead) - (1 - target) * F.logsigmoid(behind)


def center(scores: Tensor) -> Tensor:
    """Squared scores, the regulariser that keeps rewards around zero.

    scores: (B,). For pairs pass r_chosen + r_rejected: Bradley–Terry fixes only their difference,
    so it is their sum that drifts. Returns (B,). Eisenstein et al. 2023 (arXiv:2312.09244) eq. 2.
    """
    return scores**2


def length_bonus(lengths: Tensor, coef: float) -> Tensor:
    """What an answer is granted for its length alone, coef·log₂(tokens).

    lengths: (C,) tokens, 0 counts as 1. coef: nats per doubling of the length. Returns (C,) float.
    Added to both scores in ``bradley_terry`` and left out when scoring it makes a product of two
    experts, P(a beats b) = σ(r_a − r_b + coef·log₂(|a|/|b|)): what the second one, which knows
    nothing but length, explains is not learned by the score. Shen et al. 2023 (arXiv:2310.05199);
    their second expert is a small network.
    """
    return coef * lengths.clamp(min=1).log2()


def attribute_error(predicted: Tensor, target: Tensor, rated: Tensor) -> Tensor:
    """Squared error of rated attributes, (predicted − target)² where rated, else 0.

    predicted, target: one shape, in one unit. rated: the same shape, 1 or 0; what stands in target
    where it is 0 is not looked at. Returns that shape; divide the sum by the global number of
    ratings. Wang et al. 2023 (HelpSteer, arXiv:2311.09528).
    """
    return torch.where(rated > 0, predicted - target, torch.zeros_like(predicted)) ** 2


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x ≤ 0, accurate at both ends, with a gradient that is never NaN.

    x: any shape. Values above −ε (ε of the dtype) are read as −ε: a probability that rounds to 1
    has no finite log-odds. Returns the shape of x.
    Mächler 2012, "Accurately computing log(1−exp(−|a|))".
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near_zero = x > -0.6931471805599453
    # Both branches of a `where` are differentiated: an infinite slope times a zero is NaN, so each
    # branch must see an argument it can handle.
    small = torch.where(near_zero, x, -1.0)
    large = torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def orpo_odds(chosen_mean_logp: Tensor, rejected_mean_logp: Tensor) -> tuple[Tensor, Tensor]:
    """ORPO's odds-ratio term, −log σ(log odds(chosen) − log odds(rejected)).

    chosen_mean_logp, rejected_mean_logp: (B,) float ≤ 0, log-probs AVERAGED over the completion's
    tokens; odds(p) = p/(1−p) with p the geometric mean probability of a token. Returns the loss
    (B,) and the log odds ratio (B,), nats. Finite also when a mean log-prob reaches 0. The whole
    ORPO loss is NLL(chosen) + beta·this. Hong et al. 2024 (arXiv:2403.07691) eqs. 4, 6, 7.
    """
    log_odds = (chosen_mean_logp - log1mexp(chosen_mean_logp)) - (
        rejected_mean_logp - log1mexp(rejected_mean_logp)
    )
    return -F.logsigmoid(log_odds), log_odds


def ppo_policy(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate per token, max(−A·r, −A·clip(r, 1−lo, 1+hi)) with r = π/π_old.

    logps, old_logps, advantages: (N,) float; gradients flow through logps alone. The log-ratio is
    clamped to ±20. clip_range is lo, and hi too unless clip_range_high is given (DAPO's
    clip-higher, arXiv:2503.14476). dual_clip: c > 1 caps the loss at −c·A where A < 0 (Ye et al.
    2020, arXiv:1912.09729 eq. 3). importance: (N,) constant weights of the tokens, those of
    `truncated_importance` where another policy than π_old drew them; they multiply the loss after
    all clipping and leave the statistics alone. Returns the loss (N,) and detached per-token (N,)
    statistics, to be averaged (ratio: maximised) over all ranks by the caller:

        ratio            r
        approx_kl        (r − 1) − log r, the non-negative k3 estimate of KL(π_old ‖ π), nats
        clip_frac        1 where clipping replaced the loss; = clip_frac_low + clip_frac_high
        clip_frac_low    1 where r < 1−lo and A < 0
        clip_frac_high   1 where r > 1+hi and A > 0
        clip_frac_dual   1 where the dual clip replaced the loss

    Raises ValueError for clip ranges outside (0, 1) / (0, ∞) and dual_clip ≤ 1.
    Schulman et al. 2017 (arXiv:1707.06347) eq. 7.
    """
    low = clip_range
    high = clip_range if clip_range_high is None else clip_range_high
    if not 0 < low < 1 or not high > 0:
        raise ValueError(f"clip_range={low} must be in (0, 1) and clip_range_high={high} > 0")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip={dual_clip} must be > 1: at 1 it would hide unclipped tokens")
    old_logps, advantages = old_logps.detach(), advantages.detach()
    log_ratio = (logps - old_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    dual = torch.zeros_like(loss, dtype=torch.bool)
    if dual_clip is not None:
        cap = -dual_clip * advantages
        dual = (advantages < 0) & (loss > cap)
        loss = torch.where(dual, cap, loss)
    with torch.no_grad():
        too_low = (ratio < 1 - low) & (advantages < 0)
        too_high = (ratio > 1 + high) & (advantages > 0)
        stats = {
            "ratio": ratio.detach(),
            "approx_kl": torch.expm1(log_ratio) - log_ratio,
            "clip_frac": (too_low | too_high).to(ratio),
            "clip_frac_low": too_low.to(ratio),
            "clip_frac_high": too_high.to(ratio),
            "clip_frac_dual": dual.to(ratio),
        }
    return loss if importance is None else loss * importance.detach(), stats


def truncated_importance(logps: Tensor, sampler_logps: Tensor, *, cap: float) -> Tensor:
    """Weights of tokens that another policy drew, min(π_old/μ, cap), constant.

    logps: (N,) float, nats, log π_old: the trainer's policy that the update starts from.
    sampler_logps: (N,), log μ of the same tokens: what the sampler drew them from. Their difference
    is clamped to ±20. cap ≥ 1 bounds the variance, at the price of a bias where it is reached.
    Returns (N,) without gradient. With them Σ w·∇ of PPO's objective over tokens of μ estimates the
    one over tokens of π_old, each token given the ones before it. Yao, Liu et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training" (TIS). That μ is one policy
    and the one that ratios are clipped around another is the decoupled objective of Hilton et al.
    2021 (arXiv:2110.00641), used for stale samples in AReaL (arXiv:2505.24298). Raises ValueError
    for a cap below 1.
    """
    if not cap >= 1:
        raise ValueError(f"cap={cap} must be at least 1: below it every token would be scaled down")
    log_ratio = (logps - sampler_logps).detach()
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap)


def ppo_value(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped value loss per token, 0.5·max((v−R)², (clip(v, v_old±clip)−R)²).

    values, old_values, returns: (N,) float, reward units; gradients flow through values alone.
    clip: reward units, None for the plain squared error. Returns the loss (N,) and detached (N,)
    statistics: value_clip_frac, 1 where the clipped branch is the larger one.
    Huang et al. 2024 (arXiv:2403.17031), detail "value function clipping"; trl and OpenAI baselines
    carry the same 0.5.
    """
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns) ** 2
    if clip is None:
        return 0.5 * error, {"value_clip_frac": torch.zeros_like(error).detach()}
    if not clip > 0:
        raise ValueError(f"clip={clip} must be > 0, or None for no clipping")
    kept = old_values + (values - old_values).clamp(-clip, clip)
    clipped_error = (kept - returns) ** 2
    replaced = (clipped_error > error).to(error).detach()
    return 0.5 * torch.maximum(error, clipped_error), {"value_clip_frac": replaced}
