"""A step sees the same examples however it is cut into micro-batches, ranks and accumulation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.groups import TokenGroup, collate
from align.records import PairTarget
from align.train.batches import (
    FILLER,
    GroupDataset,
    StepBatches,
    eval_parts,
    filler,
    pieces,
    train_loader,
)

SHAPES = [(8, 1, 1), (1, 1, 8), (4, 2, 1), (2, 2, 2)]  # micro, world, accumulation: 8 a step


def steps(items: int, micro: int, world: int, accumulation: int, epoch: int = 0, **how):
    """The indices of every optimiser step over all ranks, in the order of the micro-batches."""
    how = {"seed": 3, "shuffle": True, **how}
    ranks = [
        StepBatches(items, micro, accumulation, rank=r, world=world, **how) for r in range(world)
    ]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    lists = [list(sampler) for sampler in ranks]
    assert len({len(x) for x in lists}) == 1  # as many micro-batches on every rank
    assert all(len(x) == len(s) for x, s in zip(lists, ranks, strict=True))
    assert all(len(part) == micro for x in lists for part in x)
    found = []
    for start in range(0, len(lists[0]), accumulation):
        found.append(
            [i for j in range(start, start + accumulation) for x in lists for i in x[j]]
        )  # fmt: skip
    return found


@pytest.mark.parametrize("items", [1, 7, 8, 9, 21, 24])
def test_a_step_sees_the_same_items_in_the_same_order_however_it_is_cut(items):
    cut = [steps(items, *shape) for shape in SHAPES]
    assert cut[0] == cut[1] == cut[2] == cut[3]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_item_once_an_epoch_and_fillers_only_at_the_end(shape):
    flat = [i for step in steps(21, *shape) for i in step]
    assert flat[21:] == [FILLER] * 3  # 21 items make three steps of 8
    assert sorted(flat[:21]) == list(range(21))


def test_without_shuffling_the_order_is_the_file_s():
    assert steps(5, 1, 2, 2, shuffle=False) == [[0, 1, 2, 3], [4, -1, -1, -1]]


def test_epochs_and_seeds_are_shuffled_differently_and_the_same_ones_alike():
    first, second = steps(21, 2, 2, 2), steps(21, 2, 2, 2, epoch=1)
    assert first != second
    assert first == steps(21, 2, 2, 2)
    assert first != steps(21, 2, 2, 2, seed=4)


@given(
    items=st.integers(1, 40), micro=st.integers(1, 5), world=st.integers(1, 4),
    accumulation=st.integers(1, 4), epoch=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_shape_equals_one_rank_with_one_micro_batch(items, micro, world, accumulation, epoch):
    whole = steps(items, micro * world * accumulation, 1, 1, epoch)
    assert steps(items, micro, world, accumulation, epoch) == whole
    real = [i for step in whole for i in step if i != FILLER]
    assert sorted(real) == list(range(items))


def test_the_loader_gives_what_the_sampler_names():
    groups = [TokenGroup([1], [[10 + i]]) for i in range(3)]
    sampler = StepBatches(3, 2, 1, rank=0, world=1, seed=0, shuffle=False)
    loader = train_loader(groups, sampler, lambda taken: [g.completions[0][0] for g in taken])
    assert list(loader) == [[10, 11], [12, 0]]  # the filler's token is 0


# The filler


def test_a_filler_has_no_loss_no_pairs_and_the_others_extras():
    data = GroupDataset(
        [
            TokenGroup(
                [1, 2], [[3, 4], [5]], pairs=[PairTarget(0, 1, 1.0)],
                extras={"ref_logps": [-1.0, -2.0], "old": [[0.1, 0.2], [0.3]]},
            )
        ]
    )  # fmt: skip
    empty = data[FILLER]
    assert sum(empty.mask_of(0)) == 0
    assert empty.pairs == []
    assert empty.extras == {"ref_logps": [0.0], "old": [[]]}
    batch = collate([data[0], empty], pad_id=0)
    assert batch.num_tokens == 3
    assert batch.candidate_lengths().tolist() == [2, 1, 0]
    assert batch.extras["old"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert collate([filler()], pad_id=0).num_tokens == 0


# Evaluation


@pytest.mark.parametrize(("items", "micro", "world"), [(7, 2, 2), (8, 2, 2), (1, 4, 3), (9, 1, 1)])
def test_an_evaluation_reads_every_item_once_in_equally_many_parts(items, micro, world):
    ranks = [eval_parts(items, micro, rank=r, world=world) for r in range(world)]
    assert len({len(parts) for parts in ranks}) == 1
    read = [i for parts in ranks for part in parts for i in part if i != FILLER]
    assert sorted(read) == list(range(items))
    assert all(1 <= len(part) <= micro for parts in ranks for part in parts)


def test_a_rank_without_items_reads_a_filler():
    assert eval_parts(5, 2, rank=0, world=2) == [[0, 1], [4]]
    assert eval_parts(5, 2, rank=1, world=2) == [[2, 3], [FILLER]]


# Token budget


def group(prompt: int, *completions: int) -> TokenGroup:
    return TokenGroup([1] * prompt, [[2] * n for n in completions])


def test_without_a_budget_a_micro_batch_is_one_piece():
    groups = [group(1, 1), group(50, 50)]
    assert pieces(groups, None, "grouped") == [groups]


def test_pieces_by_hand():
    # Rows of 6, 4, 3 and 2 tokens. Budget 8: 6 alone (with 4 it would be 2 × 6); 4 + 3 are 2 × 4;
    # 2 does not fit there (3 × 4).
    a, b, c, d = group(2, 4), group(2, 2), group(1, 2), group(1, 1)
    assert pieces([d, b, a, c], 8, "plain") == [[a], [b, c], [d]]


def test_the_two_layouts_cost_differently():
    # Grouped: one row of 2 + 3 + 3 = 8. Plain: two rows of 5.
    pair = group(2, 3, 3)
    assert len(pieces([pair, pair], 16, "grouped")) == 1
    assert len(pieces([pair, pair], 16, "plain")) == 2
    assert len(pieces([pair, pair], 20, "plain")) == 1


def test_a_group_over_the_budget_is_a_piece_of_its_own():
    big, small = group(30, 30), group(1, 1)
    assert pieces([small, big], 10, "grouped") == [[big], [small]]


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=3)),
        min_size=1, max_size=12,
    ),
    budget=st.integers(1, 200),
    layout=st.sampled_from(["grouped", "plain"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_pieces_hold_every_group_once_within_the_budget(shapes, budget, layout):
    groups = [group(prompt, *lengths) for prompt, lengths in shapes]
    cut = pieces(groups, budget, layout)
    assert sorted(id(g) for piece in cut for g in piece) == sorted(map(id, groups))
    for piece in cut:
        # What the budget is about: the cells of the batch that the model gets.
        cells = collate(piece, pad_id=0, layout=layout).input_ids.numel()
        assert cells <= budget or len(piece) == 1
