"""Sampling: prompts as token ids in, completions with their log-probs out."""

from align.rollout.base import (
    Interrupted,
    Sampler,
    Samples,
    StopRule,
    cut_at_stop,
    make_sampler,
    rank_seed,
)

__all__ = ["Interrupted", "Sampler", "Samples", "StopRule", "cut_at_stop", "make_sampler",
           "rank_seed"]  # fmt: skip
