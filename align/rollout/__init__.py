"""Sampling: prompts as token ids in, completions with their log-probs out."""

from align.rollout.base import (
    Sampler as Sampler,
    Samples as Samples,
    StopRule as StopRule,
    cut_at_stop as cut_at_stop,
    make_sampler as make_sampler,
    rank_seed as rank_seed,
)
