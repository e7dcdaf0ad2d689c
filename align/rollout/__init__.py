"""Sampling: prompts as token ids in, completions with their log-probs out."""

from align.rollout.base import (
    Sampler,
    Samples,
    StopRule,
    cut_at_stop,
    make_sampler,
    rank_seed,
)

__all__ = ["Sampler", "Samples", "StopRule", "cut_at_stop", "make_sampler", "rank_seed"]
