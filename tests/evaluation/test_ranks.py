"""Shared work: every row once, in order; what a rank cannot do is raised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.config_errors import UserError
from align.evaluation import ranks
from align.evaluation.sampling import prompt_seed
from align.rollout.hf import uniform_rows


class Group:
    """Ranks one after the other in this process, meeting in `gather_objects`."""

    def __init__(self, monkeypatch, world):
        self.world, self.at, self.held = world, 0, []
        monkeypatch.setattr(ranks, "world_size", lambda: world)
        monkeypatch.setattr(ranks, "rank", lambda: self.at)
        monkeypatch.setattr(ranks, "gather_objects", self.gather)

    def gather(self, value):
        self.held.append(value)
        if len(self.held) < self.world:
            raise StopIteration  # this rank waits: the next one runs
        return self.held

    def run(self, work):
        for place in range(self.world):
            self.at = place
            try:
                found = work()
            except StopIteration:
                continue
        return found


@given(st.integers(1, 5), st.integers(1, 7), st.lists(st.integers(0, 9), max_size=23))
def test_rows_come_back_once_and_in_order(world, size, lengths):
    with pytest.MonkeyPatch.context() as patch:
        group, seen = Group(patch, world), []

        def work(chunk):
            seen.extend(chunk)
            return [i * 10 for i in chunk]

        assert group.run(lambda: ranks.in_chunks(lengths, size, work)) == [
            i * 10 for i in range(len(lengths))
        ]
        assert sorted(seen) == list(range(len(lengths)))


def test_chunks_do_not_depend_on_the_number_of_ranks():
    def chunks(world):
        with pytest.MonkeyPatch.context() as patch:
            group, seen = Group(patch, world), []
            group.run(lambda: ranks.in_chunks(list(range(11)), 4, lambda c: seen.append(c) or c))
            return sorted(map(tuple, seen))

    assert chunks(1) == chunks(2) == chunks(3)


@pytest.mark.parametrize("error", [UserError("a", 1, "is wrong"), OSError("disk")])
def test_an_error_of_one_rank_is_raised_on_all(monkeypatch, error):
    group = Group(monkeypatch, 2)

    def work(chunk):
        if 3 in chunk:
            raise error
        return chunk

    with pytest.raises((UserError, RuntimeError, OSError), match=r"wrong|disk"):
        group.run(lambda: ranks.over_ranks(range(4), 2, work))
    # The other rank, which did its share, hears of it too.
    assert group.held[0][2] is None
    assert str(error) in group.held[1][2]


def test_each_row_draws_from_its_own_seed():
    seeds = [prompt_seed(0, i) for i in range(4)]
    assert len({*seeds, *(prompt_seed(1, i) for i in range(4))}) == 8
    rows = uniform_rows(4, 6, seeds)
    assert torch.equal(rows[2:], uniform_rows(2, 6, seeds[2:]))
    assert torch.equal(rows[:, :3], uniform_rows(4, 3, seeds))
    assert torch.equal(uniform_rows(2, 3, 7), uniform_rows(2, 3, 7))
    assert prompt_seed(-1, 0) >= 0
    with pytest.raises(ValueError, match="3 seeds for 4 completions"):
        uniform_rows(4, 6, seeds[:3])
