"""A reward for the smoke configuration: answers of about twenty characters are best."""

from __future__ import annotations


def near_twenty(prompts: list[list[dict]], completions: list[str], **kwargs: object) -> list[float]:
    """Return 1 for twenty characters, less the further from it."""
    return [1.0 - abs(len(text) - 20) / 20 for text in completions]
