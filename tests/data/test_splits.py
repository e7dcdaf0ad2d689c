"""Splits are a function of key, fractions and seed alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.splits import assign, split_by_key

THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


@given(st.lists(st.text(max_size=5)), st.randoms(), st.integers(0, 5))
def test_disjoint_complete_and_order_independent(keys, random, seed):
    parts = split_by_key(keys, THREE, seed)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(keys)))
    by_key = {keys[i]: name for name, part in parts.items() for i in part}
    assert all(by_key[keys[i]] == name for name, part in parts.items() for i in part)
    shuffled = list(keys)
    random.shuffle(shuffled)
    again = split_by_key(shuffled, THREE, seed)
    assert {shuffled[i]: n for n, part in again.items() for i in part} == by_key


def test_fractions_are_met_and_seeds_differ():
    keys = [f"提示{i}" for i in range(10_000)]
    parts = split_by_key(keys, THREE, seed=1)
    # Three standard deviations of a binomial with n = 10,000 are 120 (p = 0.8) and 90 (p = 0.1).
    assert len(parts["train"]) == pytest.approx(8000, abs=120)
    assert len(parts["validation"]) == pytest.approx(1000, abs=90)
    other = set(split_by_key(keys, THREE, seed=2)["test"])
    assert len(other & set(parts["test"])) == pytest.approx(100, abs=30)


def test_first_split_does_not_move_when_the_rest_is_divided():
    keys = [str(i) for i in range(500)]
    assert (
        split_by_key(keys, THREE)["train"] == split_by_key(keys, {"train": 0.8, "x": 0.2})["train"]
    )


def test_known_answers_never_change():
    # Recorded: a change would move prompts between splits of existing runs.
    names = [assign(f"key-{i}", {"train": 0.5, "test": 0.5}, 0) for i in range(8)]
    assert names == ["test", "test", "test", "train", "train", "test", "test", "train"]


def test_zero_fraction_gets_nothing():
    fractions = {"train": 1.0, "test": 0.0}
    assert split_by_key([str(i) for i in range(200)], fractions)["test"] == []


@pytest.mark.parametrize("bad", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_bad_fractions(bad):
    with pytest.raises(ValueError, match="add up to 1"):
        assign("k", bad)
