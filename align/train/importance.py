"""Samples of other weights than the policy's: whether they are corrected, and what is logged.

Where a server samples, or the policy has moved on since, a token was drawn from μ and not from the
π_old that PPO's ratios start from. Small differences need nothing but the right denominator: the
ratio is taken to μ itself. Large ones would be clipped for what the optimiser has not done yet; so
ratios start from the trainer's own log-probs, and `align.losses.truncated_importance` gives each
token the weight that its draw calls for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.losses import truncated_importance

if TYPE_CHECKING:
    from align.config_schema import Rollout


@dataclass
class Correction:
    """What a rollout's ratios start from.

    old_logps: (N,). weights: (N,) of the tokens, or None. figures: (sum, count) by name, to log.
    largest: ratio π_old/μ, uncapped; 0 without weights.
    """

    old_logps: Tensor
    weights: Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    largest: float = 0.0


def correct(
    rollout: Rollout,
    logps: Tensor,
    sampled: Tensor,
    *,
    staleness: int,
    elsewhere: bool,
    reduce: Callable[[Tensor], Tensor],
) -> Correction:
    """Decide over all ranks together by rollout.importance; see the module's text.

    logps, sampled: (N,) of the trainer at the start of the update and of the sampler, nats.
    staleness: updates between the two. elsewhere: whether the sampler may differ from the trainer's
    model; where it is that model the ratios start from the trainer's log-probs, as they always did.
    """
    if not elsewhere and rollout.importance != "truncated":
        return Correction(logps)
    apart = torch.stack([(sampled - logps).abs().double().sum(), torch.tensor(float(len(logps)))])
    total, tokens = reduce(apart).tolist()
    # Written so that a gap which is not a number counts as large.
    close = staleness == 0 and total <= rollout.importance_gap * tokens
    figures: dict[str, Any] = {"staleness": (float(staleness), 1.0)}
    if close and rollout.importance != "truncated":
        return Correction(sampled, figures=figures)
    if rollout.importance == "off":
        return Correction(logps, figures=figures)
    weights = truncated_importance(logps, sampled, cap=rollout.importance_cap)
    ratio = truncated_importance(logps, sampled, cap=float("inf"))
    count = float(len(logps))
    figures |= {
        "importance/mean": (weights.sum(), count),
        "importance/clipped": ((ratio > rollout.importance_cap).sum(), count),
    }
    largest = float(ratio.max()) if len(ratio) else 0.0
    return Correction(logps, weights, figures, largest)
