"""Rewards: texts in, floats out; and what happens to the floats before PPO sees them (shaping)."""

from align.rewards.base import Reward, RewardError, Scores, WeightedSum, make_reward

__all__ = ["Reward", "RewardError", "Scores", "WeightedSum", "make_reward"]
