"""Reward models from annotation exports: votes in, trained targets and a scored text out.

Importing this package imports neither torch nor transformers; ``reward_models.scorer`` does when a
model is loaded.
"""
