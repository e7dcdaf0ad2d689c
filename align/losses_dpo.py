"""The DPO family: losses over the log-probs of a chosen and a rejected completion.

Every loss of this file is one small function of two implicit rewards without their beta,

    chosen   = log π(y_w|x) − log π_ref(y_w|x)        (reference-free losses: log π alone)
    rejected = log π(y_l|x) − log π_ref(y_l|x)

and `dpo` below does what they share: it subtracts the reference, divides by the length where the
loss wants it, and turns a soft target into the expected loss under that target. Conventions are
those of trl's `DPOTrainer` and `CPOTrainer` wherever those have the loss; docs/losses.md lists the
equations and every place where a paper and a code base disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALIASES = {"exo_pair": "exo", "sppo_hard": "sppo", "aot_pair": "aot"}
REFERENCE_FREE = frozenset({"simpo", "cpo"})
LENGTH_AVERAGED = frozenset({"ipo", "simpo"})
BATCH_COUPLED = frozenset({"aot", "aot_unpaired"})
LABEL_SMOOTHED = frozenset({"sigmoid", "robust", "exo", "aot", "aot_unpaired", "simpo", "cpo"})


class _Side(NamedTuple):
    """One completion of each pair, (B,) each."""

    reward: Tensor  # log π − log π_ref; a per-token mean for LENGTH_AVERAGED losses
    policy: Tensor  # log π, summed
    ref: Tensor  # log π_ref, summed
    nll: Tensor  # −log π, per-token mean (summed where no lengths were given)


class _Options(NamedTuple):
    """What a loss may look at besides the two sides."""

    beta: float
    smoothing: float
    gamma: float
    tau: float
    cpo_alpha: float
    target: Tensor  # (B,), P(chosen wins), before label smoothing


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
    *,
    beta: float,
    loss_type: str,
    label_smoothing: float = 0.0,
    target: Tensor | None = None,
    lengths_chosen: Tensor | None = None,
    lengths_rejected: Tensor | None = None,
    gamma: float = 0.5,
    discopop_tau: float = 0.05,
    cpo_alpha: float = 1.0,
) -> Tensor:
    """Preference loss of one (chosen, rejected) pair per row, by name.

    policy_*, ref_*: (B,) float, log-probs SUMMED over the completion's tokens, nats. ref_* may be
    None for `simpo` and `cpo`, which use no reference. lengths_*: (B,), tokens in each completion;
    needed by `ipo`, `simpo` and (for its NLL term) `cpo`. target: (B,) in [0, 1], probability that
    chosen wins, default 1; the loss is then target·L(chosen, rejected) + (1−target)·L(rejected,
    chosen), except `exo` and `sppo`, whose papers define a soft form of their own. gamma: SimPO's
    target margin. cpo_alpha: weight of CPO's NLL term. Returns (B,), differentiable, not averaged.

    `aot` and `aot_unpaired` sort over the batch: their rows are not the loss of one pair, and the
    result depends on how a batch is split. They therefore take no soft target.

    Raises ValueError for an unknown loss_type, a missing input, or an option the loss would ignore.
    Sources: docs/losses.md, section "DPO family".
    """
    name = ALIASES.get(loss_type, loss_type)
    _check(name, beta, label_smoothing, target, ref_chosen, ref_rejected)
    probability = torch.ones_like(policy_chosen) if target is None else target.to(policy_chosen)
    options = _Options(beta, label_smoothing, gamma, discopop_tau, cpo_alpha, probability)
    need_lengths = name in LENGTH_AVERAGED or (name == "cpo" and cpo_alpha != 0)
    if need_lengths and (lengths_chosen is None or lengths_rejected is None):
        raise ValueError(f"loss_type={loss_type!r} needs lengths_chosen and lengths_rejected")
    chosen = _side(name, policy_chosen, ref_chosen, lengths_chosen)
    rejected = _side(name, policy_rejected, ref_rejected, lengths_rejected)
    if name in _SOFT:
        return _SOFT[name](chosen, rejected, options)
    loss = _HARD[name](chosen, rejected, options)
    if target is None:
        return loss
    return probability * loss + (1 - probability) * _HARD[name](rejected, chosen, options)


def _side(name: str, policy: Tensor, ref: Tensor | None, lengths: Tensor | None) -> _Side:
    """What a loss sees of one completion; the reference is 0 for reference-free losses."""
    if ref is None or name in REFERENCE_FREE:
        ref = torch.zeros_like(policy)
    # An empty completion has log-prob 0, so a divisor of 1 is right for it.
    mean = policy if lengths is None else policy / lengths.clamp(min=1)
    reward = policy - ref
    if name in LENGTH_AVERAGED and lengths is not None:
        reward = reward / lengths.clamp(min=1)
    return _Side(reward, policy, ref, -mean)


def _check(
    name: str,
    beta: float,
    smoothing: float,
    target: Tensor | None,
    ref_chosen: Tensor | None,
    ref_rejected: Tensor | None,
) -> None:
    """Refuses what the loss could not use; a silent no-op would look like a trained option."""
    if name not in LOSS_TYPES:
        known = ", ".join(sorted([*LOSS_TYPES, *ALIASES]))
        raise ValueError(f"unknown loss_type {name!r}; known: {known}")
    if not beta > 0:
        raise ValueError(f"beta={beta} must be > 0")
    if name not in REFERENCE_FREE and (ref_chosen is None or ref_rejected is None):
        raise ValueError(f"loss_type={name!r} needs reference log-probs; only simpo and cpo do not")
    if smoothing and name not in LABEL_SMOOTHED:
        allowed = ", ".join(sorted(LABEL_SMOOTHED))
        raise ValueError(
            f"label_smoothing={smoothing} has no effect on loss_type={name!r}; set it to 0 or use "
            f"one of: {allowed}"
        )
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"label_smoothing={smoothing} must be in [0, 0.5)")
    if name == "exo" and smoothing == 0:
        raise ValueError(
            "loss_type='exo' needs label_smoothing > 0 (its KL to a hard label is infinite); "
            "the paper uses 1e-3"
        )
    if name in BATCH_COUPLED and target is not None and bool((target != 1).any()):
        raise ValueError(
            f"loss_type={name!r} sorts over the batch and cannot take soft targets; drop ties and "
            "use hard labels"
        )


def _log_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of σ(logits) against 1 − smoothing; logsigmoid keeps it finite at any size."""
    positive = F.logsigmoid(logits)
    if smoothing == 0:
        return -positive
    return -(1 - smoothing) * positive - smoothing * F.logsigmoid(-logits)


def _sigmoid(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Rafailov et al. 2023 (arXiv:2305.18290) eq. 7; smoothing as in Mitchell's cDPO note."""
    return _log_loss(o.beta * (win.reward - lose.reward), o.smoothing)


def _hinge(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """SLiC's hinge on DPO's implicit reward: Zhao et al. 2023 (arXiv:2305.10425)."""
    return torch.relu(1 - o.beta * (win.reward - lose.reward))


def _ipo(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Azar et al. 2023 (arXiv:2310.12036) eq. 17; beta is their τ, inputs are per-token means."""
    return (win.reward - lose.reward - 1 / (2 * o.beta)) ** 2


def _robust(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Chowdhury et al. 2024 (arXiv:2403.00409): unbiased when labels flip with that probability."""
    logits = o.beta * (win.reward - lose.reward)
    clean = (1 - o.smoothing) * F.logsigmoid(logits)
    flipped = o.smoothing * F.logsigmoid(-logits)
    return (flipped - clean) / (1 - 2 * o.smoothing)


def _apo_zero(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """D'Oosterlinck et al. 2024 (arXiv:2408.06266) eq. 7: chosen up, rejected down."""
    return torch.sigmoid(-o.beta * win.reward) + torch.sigmoid(o.beta * lose.reward)


def _apo_down(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Eq. 8 of the same paper: both down, the gap up, for a policy better than its chosen side."""
    return torch.sigmoid(o.beta * win.reward) + torch.sigmoid(-o.beta * (win.reward - lose.reward))


def _discopop(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Lu et al. 2024 (arXiv:2406.08414) eq. 5: logistic and exponential loss, gated by the gap."""
    logits = o.beta * (win.reward - lose.reward)
    gate = logits / o.tau
    # exp(−logits) overflows before its gate σ(logits/τ) has removed it; their product does not.
    exponential = torch.exp(F.logsigmoid(gate) - logits)
    return torch.sigmoid(-gate) * -F.logsigmoid(logits) + exponential


def _simpo(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Meng et al. 2024 (arXiv:2405.14734) eq. 6, over per-token mean log-probs."""
    return _log_loss(o.beta * (win.reward - lose.reward) - o.gamma, o.smoothing)


def _cpo(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Xu et al. 2024 (arXiv:2401.08417) eq. 3 plus cpo_alpha times the NLL of the chosen side."""
    loss = _log_loss(o.beta * (win.reward - lose.reward), o.smoothing)
    return loss + o.cpo_alpha * win.nll


def _aot(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Melnyk et al. 2024 (arXiv:2406.05882), paired: sorted policy gaps over reference gaps."""
    delta = (win.policy - lose.policy).sort().values - (win.ref - lose.ref).sort().values
    return _log_loss(o.beta * delta, o.smoothing)


def _aot_unpaired(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """The same paper, unpaired: sorted chosen rewards over sorted rejected rewards."""
    return _log_loss(o.beta * (win.reward.sort().values - lose.reward.sort().values), o.smoothing)


def _exo(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Ji et al. 2024 (arXiv:2402.00856) eq. 16, KL(p_θ ‖ p), p = the smoothed target."""
    logits = o.beta * (win.reward - lose.reward)
    wins = o.target * (1 - o.smoothing) + (1 - o.target) * o.smoothing
    loses = o.target * o.smoothing + (1 - o.target) * (1 - o.smoothing)
    log_q, log_not_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    return log_q.exp() * (log_q - wins.log()) + log_not_q.exp() * (log_not_q - loses.log())


def _sppo(win: _Side, lose: _Side, o: _Options) -> Tensor:
    """Wu et al. 2024 (arXiv:2405.00675) eq. 4.7; beta is 1/η and P(y ≻ π) is the target."""
    edge = (o.target - 0.5) / o.beta
    return (win.reward - edge) ** 2 + (lose.reward + edge) ** 2


_Loss = Callable[[_Side, _Side, _Options], Tensor]
_HARD: dict[str, _Loss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "simpo": _simpo,
    "cpo": _cpo,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
}
_SOFT: dict[str, _Loss] = {"exo": _exo, "sppo": _sppo}
LOSS_TYPES = (*_HARD, *_SOFT)
