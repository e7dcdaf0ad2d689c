"""Rewards whose model is sharded: every rank asks every term, whatever another term said."""

from __future__ import annotations

import pytest

from align.records import Message
from align.rewards.base import RewardError, WeightedSum


class Term:
    def __init__(self, name: str, asked: list, error: str | None = None, in_parts: bool = False):
        self.name, self.asked, self.error, self.in_parts = name, asked, error, in_parts

    def __call__(self, prompts, completions, finished):
        self.asked.append((self.name, len(completions)))
        if self.error:
            raise RewardError(self.error)
        return [1.0] * len(completions)


PROMPTS = [[Message("user", "你好")], [Message("user", "Hi")]]


def test_a_term_that_fails_does_not_keep_the_others_from_being_asked():
    asked: list = []
    terms = [Term("a", asked, "first"), Term("b", asked, in_parts=True), Term("c", asked, "last")]
    with pytest.raises(RewardError, match="first"):
        WeightedSum(terms, [1, 1, 1])(PROMPTS, ["好", "good"], [True, True])
    assert asked == [("a", 2), ("b", 2), ("c", 2)]


def test_without_completions_only_a_sharded_model_is_asked():
    asked: list = []
    terms = [Term("a", asked), Term("b", asked, in_parts=True)]
    assert WeightedSum(terms, [1, 1])([], [], []) == []
    assert asked == [("b", 0)]
