"""Rewards: texts in, floats out; and what happens to the floats before PPO sees them (shaping)."""

from align.rewards.base import (
    Reward as Reward,
    RewardError as RewardError,
    Scores as Scores,
    WeightedSum as WeightedSum,
    make_reward as make_reward,
)
