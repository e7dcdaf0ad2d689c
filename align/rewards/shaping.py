"""From raw scores to PPO's rewards: normalise, clip, missing-EOS rule, length penalty, placement.

In this order. The value of the missing-EOS rule and the length penalty are therefore in the unit of
normalised scores, and do not fade when the running deviation grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from align.advantages import Reduce, RunningMoments, token_rewards
from align.config_errors import UserError

EOS_MODES = ("none", "set", "subtract")
SCORE_NORMS = ("none", "std", "mean_std")


def missing_eos(
    scores: Tensor, finished: Tensor | Sequence[bool], mode: str = "none", value: float = 0.0
) -> Tensor:
    """Scores after the rule for completions that did not end with a stop token.

    scores: (C,). finished: (C,) bool. mode 'none' leaves them; 'set' replaces the score by value
    (the N+ code: value −1); 'subtract' takes value ≥ 0 off the score (trl: missing_eos_penalty).
    Returns (C,). Huang et al. 2024 (arXiv:2403.17031), detail on EOS.
    """
    done = torch.as_tensor(finished, dtype=torch.bool, device=scores.device)
    if mode == "none":
        return scores
    if mode == "set":
        return torch.where(done, scores, torch.full_like(scores, value))
    if mode == "subtract":
        return torch.where(done, scores, scores - value)
    raise ValueError(f"missing_eos mode={mode!r} is none of {', '.join(EOS_MODES)}")


def _eos_value(rule: Any) -> float:
    """The value of `ppo.missing_eos`, or its mode's default: N+'s score of −1, a penalty of 1."""
    if rule.value is not None:
        return rule.value
    return -1.0 if rule.mode == "set" else 1.0


def length_penalty(scores: Tensor, lengths: Tensor | Sequence[int], per_token: float) -> Tensor:
    """Scores minus per_token for each completion token. scores, lengths: (C,). Returns (C,)."""
    return scores - per_token * torch.as_tensor(lengths, device=scores.device).to(scores)


class ScoreNormaliser:
    """Scales scores by their running deviation over all ranks, then clips.

    mode 'none': no scaling; 'std': scores/σ, which keeps zero where it was and so the sign of what
    the reward model meant; 'mean_std': (scores − μ)/σ. clip: ± bound after scaling, None for none.
    The statistics take in a batch before it is scaled, so the first batch is scaled too.
    Zheng et al. 2023 (arXiv:2307.04964), section 5.2.
    """

    def __init__(self, mode: str = "none", clip: float | None = None) -> None:
        if mode not in SCORE_NORMS:
            raise UserError(
                "ppo.score_norm", mode, "is unknown", f"One of: {', '.join(SCORE_NORMS)}"
            )
        if clip is not None and not clip > 0:
            raise UserError("ppo.score_clip", clip, "is not above 0", "Use null for no clip")
        self.mode, self.clip = mode, clip
        self.moments = RunningMoments()

    def __call__(
        self, scores: Tensor, *, reduce: Reduce | None = None, update: bool = True
    ) -> Tensor:
        """Return (C,) normalised scores. scores: this rank's (C,). update=False: evaluation.

        reduce: sums a tensor over ranks; every rank must call, also one without scores.
        """
        if update and self.mode != "none":
            self.moments.update(scores, reduce=reduce)
        if self.mode == "mean_std":
            scores = scores - self.moments.mean
        if self.mode != "none":
            scores = scores / self.moments.std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs; plain floats."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.moments.load_state_dict(state)


class ScoreShaper:
    """From raw scores to those that PPO places: the rules of the `ppo` section in order."""

    def __init__(
        self,
        *,
        score_norm: str = "none",
        score_clip: float | None = 10.0,
        eos_mode: str = "none",
        eos_value: float = 0.0,
        per_token: float = 0.0,
    ) -> None:
        self.normaliser = ScoreNormaliser(score_norm, score_clip)
        if eos_mode not in EOS_MODES:
            known = f"One of: {', '.join(EOS_MODES)}"
            raise UserError("ppo.missing_eos.mode", eos_mode, "is unknown", known)
        if eos_mode == "subtract" and eos_value < 0:
            reason = "would reward completions that never end"
            raise UserError("ppo.missing_eos.value", eos_value, reason, "Use a value of 0 or more")
        self.eos_mode, self.eos_value, self.per_token = eos_mode, eos_value, per_token

    @classmethod
    def from_config(cls, ppo: Any) -> ScoreShaper:
        """From the `ppo` section of a configuration."""
        return cls(
            score_norm=ppo.score_norm,
            score_clip=ppo.score_clip,
            eos_mode=ppo.missing_eos.mode,
            eos_value=_eos_value(ppo.missing_eos),
            per_token=ppo.length_penalty,
        )

    def __call__(
        self,
        scores: Tensor,
        finished: Tensor | Sequence[bool],
        lengths: Tensor | Sequence[int],
        *,
        reduce: Reduce | None = None,
        update: bool = True,
    ) -> Tensor:
        """Return (C,) shaped scores. scores, finished, lengths (tokens): this rank's (C,)."""
        scores = self.normaliser(scores, reduce=reduce, update=update)
        scores = missing_eos(scores, finished, self.eos_mode, self.eos_value)
        return length_penalty(scores, lengths, self.per_token) if self.per_token else scores

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs; plain floats."""
        return self.normaliser.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`."""
        self.normaliser.load_state_dict(state)


def place_scores(rewards: Tensor, offsets: Tensor, scores: Tensor, at: str = "eos") -> Tensor:
    """Adds each completion's score to its per-token rewards.

    rewards: (N,), e.g. −kl_coef·kl of every token. offsets: (C+1,). scores: (C,). at='eos': on the
    last token, returns (N,); at='after_eos': on one more position after it, returns (N+C,), whose
    segments `extended_offsets` gives. The layouts are those of `align.advantages.gae`.
    """
    return token_rewards(rewards, scores, offsets, kl_coef=-1.0, score_at=at)


def extended_offsets(offsets: Tensor) -> Tensor:
    """Offsets (C+1,) of the layout with one more position at the end of each completion."""
    return offsets + torch.arange(offsets.numel(), device=offsets.device, dtype=offsets.dtype)
