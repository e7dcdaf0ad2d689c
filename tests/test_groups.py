"""The one batch: every index by hand, and what order, padding and layout must not change."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.groups import GroupBatch, TokenGroup, collate
from align.records import PairTarget

PAD = 99
# Prompt 1 2 3 with the candidates 4 5, 6 and 7 8 9; prompt 10 with the candidate 11 12.
FIRST = {"prompt_ids": [1, 2, 3], "completions": [[4, 5], [6], [7, 8, 9]]}
SECOND = {"prompt_ids": [10], "completions": [[11, 12]]}


def two_groups(**more) -> list[TokenGroup]:
    return [TokenGroup(**FIRST, **more), TokenGroup(**SECOND)]


def lists(batch: GroupBatch, *names: str) -> list[list]:
    return [getattr(batch, name).tolist() for name in names]


def test_grouped_rows_share_the_prompt_and_restart_positions():
    batch = collate(two_groups(), PAD, "grouped")
    assert batch.input_ids.tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
        [10, 11, 12, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5], [0, 1, 2, 0, 0, 0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [
        [0, 0, 0, 1, 1, 2, 3, 3, 3],
        [0, 1, 1, -1, -1, -1, -1, -1, -1],
    ]
    # The first token of every candidate is predicted by the prompt's last, in column 2.
    assert batch.pred_row.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert batch.pred_col.tolist() == [2, 3, 2, 2, 6, 7, 0, 1]
    assert batch.labels.tolist() == [4, 5, 6, 7, 8, 9, 11, 12]
    assert batch.candidate.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert batch.offsets.tolist() == [0, 2, 3, 6, 8]
    assert lists(batch, "end_row", "end_col") == [[0, 0, 0, 1], [4, 5, 8, 2]]
    assert batch.group_of.tolist() == [0, 0, 0, 1]
    assert (len(batch), batch.num_groups, batch.num_candidates, batch.num_tokens) == (2, 2, 4, 8)
    assert batch.candidate_lengths().tolist() == [2, 1, 3, 2]


def test_plain_rows_repeat_the_prompt():
    batch = collate(two_groups(), PAD, "plain")
    assert batch.input_ids.tolist() == [
        [1, 2, 3, 4, 5, PAD],
        [1, 2, 3, 6, PAD, PAD],
        [1, 2, 3, 7, 8, 9],
        [10, 11, 12, PAD, PAD, PAD],
    ]
    assert batch.position_ids[2].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.segment_ids[1].tolist() == [0, 0, 0, 1, -1, -1]
    assert batch.pred_row.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert batch.pred_col.tolist() == [2, 3, 2, 2, 3, 4, 0, 1]
    assert lists(batch, "end_row", "end_col") == [[0, 1, 2, 3], [4, 3, 5, 2]]
    # What does not name a place in a row is the same in both layouts.
    grouped = collate(two_groups(), PAD, "grouped")
    names = ("labels", "candidate", "offsets", "group_of")
    assert lists(batch, *names) == lists(grouped, *names)


def test_packed_rows_are_filled_longest_first_and_keep_the_order_of_the_groups():
    groups = [TokenGroup([1], [[2]]), TokenGroup([3, 4], [[5, 6]]), TokenGroup([7], [[8, 9]])]
    batch = collate(groups, PAD, "packed", row_length=6)
    # Lengths 2, 4, 3: the second opens a row, the third needs a new one, the first fits the first.
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 1, 2], [7, 8, 9, PAD, PAD, PAD]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, -1, -1, -1]]
    assert batch.labels.tolist() == [2, 5, 6, 8, 9]
    assert lists(batch, "pred_row", "pred_col") == [[0, 0, 0, 1, 1], [4, 1, 2, 0, 1]]
    assert lists(batch, "end_row", "end_col") == [[0, 0, 1], [5, 3, 2]]
    assert batch.group_of.tolist() == [0, 1, 2]


def test_a_document_longer_than_a_packed_row_has_a_row_of_its_own():
    groups = [TokenGroup([1, 2, 3], [[4, 5]]), TokenGroup([6], [[7]])]
    batch = collate(groups, PAD, "packed", row_length=3)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, PAD, PAD, PAD]]


def test_the_mask_of_a_shared_row_by_hand():
    group = TokenGroup([1, 2], [[3, 4], [5]])
    batch = collate([group, TokenGroup([6], [[7]])], PAD, "grouped")
    mask = batch.attention_mask()
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second candidate sees the prompt and itself, not the first
    ]
    assert mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],  # padding sees itself, so that its row of the softmax is not empty
        [1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_packed_documents_do_not_see_each_other():
    groups = [TokenGroup([1], [[2]]), TokenGroup([3], [[4]])]
    mask = collate(groups, PAD, "packed", row_length=4).attention_mask()
    assert mask is not None
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]
    ]  # fmt: skip


def test_an_additive_mask_is_zero_where_the_boolean_one_is_true():
    batch = collate([TokenGroup([1, 2], [[3, 4], [5]])], PAD, "grouped")
    added = batch.attention_mask(additive_dtype=torch.float32)
    assert added is not None
    assert added.dtype == torch.float32
    assert added[0, 0, 4].tolist() == [0.0, 0.0, *[torch.finfo(torch.float32).min] * 2, 0.0]


@pytest.mark.parametrize("layout", ["grouped", "plain", "packed"])
def test_rows_that_share_nothing_take_the_models_own_mask(layout):
    alone = [TokenGroup([1, 2], [[3]]), TokenGroup([4], [[5, 6]])]
    assert collate(alone, PAD, layout).attention_mask() is None
    padded = collate([*alone, TokenGroup([7], [[8]])], PAD, layout).attention_mask()
    assert padded is not None
    assert sorted(padded.tolist()) == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_tokens_without_loss_are_read_but_not_predicted():
    batch = collate(two_groups(masks=[[0, 1], [0], [1, 0, 1]]), PAD, "grouped")
    assert batch.labels.tolist() == [5, 7, 9, 11, 12]
    assert batch.pred_col.tolist() == [3, 2, 7, 0, 1]
    assert batch.offsets.tolist() == [0, 1, 1, 3, 5]
    assert batch.end_col.tolist() == [4, 5, 8, 2]  # the last token, with or without loss
    assert batch.candidate_lengths().tolist() == [1, 0, 2, 2]
    assert batch.candidate_sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).tolist() == [1, 0, 6, 24]


def test_pairs_point_at_candidates_of_the_batch():
    pairs = [PairTarget(2, 0, 0.75, 0.5, margin=1.5), PairTarget(1, 2, 1.0, 0.5)]
    more = TokenGroup([10], [[11], [12]], pairs=[PairTarget(1, 0, 1.0, 1.0)])
    batch = collate([TokenGroup(**FIRST, pairs=pairs), more], PAD, "plain")
    assert lists(batch, "pair_a", "pair_b") == [[2, 1, 4], [0, 2, 3]]
    assert lists(batch, "pair_target", "pair_weight") == [[0.75, 1.0, 1.0], [0.5, 0.5, 1.0]]
    assert lists(batch, "pair_margin", "pair_group") == [[1.5, 0.0, 0.0], [0, 0, 1]]
    assert batch.pair_a.dtype == torch.int64
    assert batch.pair_target.dtype == torch.float32


def test_extras_become_flat_in_the_order_of_the_candidates():
    masks = [[1, 1], [0], [1, 0, 1]]
    first = TokenGroup(
        **FIRST, masks=masks, extras={"old": [[0.5, 1.5], [], [2.5, 3.5]], "score": [1, 2.0, 3]}
    )
    second = TokenGroup(**SECOND, extras={"old": [[4.5, 5.5]], "score": [4.0]})
    for layout in ("grouped", "plain"):
        batch = collate([first, second], PAD, layout)
        assert batch.extras["old"].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
        assert batch.extras["score"].tolist() == [1.0, 2.0, 3.0, 4.0]
        assert batch.extras["old"].dtype == torch.float32


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"old": [[1.0], [2.0], [3.0, 4.0, 5.0]]}, "candidate 0: one number per loss token"),
        ({"old": [[1.0, 2.0], [3.0]]}, "one entry per candidate"),
        ({"old": [1.0, 2.0]}, "one entry per candidate"),
        ({"old": [[1.0, 2.0], 3.0, [4.0, 5.0, 6.0]]}, "some entries are numbers, some are lists"),
    ],
)
def test_extras_that_do_not_fit_the_candidates_are_refused(extras, message):
    with pytest.raises(ValueError, match=message):
        collate([TokenGroup(**FIRST, extras=extras)], PAD)


def test_groups_with_different_extras_are_refused():
    with pytest.raises(ValueError, match="different extras"):
        collate([TokenGroup(**FIRST), TokenGroup(**SECOND, extras={"score": [1.0]})], PAD)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_ids": [], "completions": [[1]]}, "at least one prompt token"),
        ({"prompt_ids": [1], "completions": []}, "at least one completion"),
        ({"prompt_ids": [1], "completions": [[2], []]}, "none of them empty"),
        ({"prompt_ids": [1], "completions": [[2, 3]], "masks": [[1]]}, "one entry per token"),
        ({"prompt_ids": [1], "completions": [[2]], "masks": []}, "one entry per token"),
    ],
)
def test_a_group_that_cannot_be_read_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TokenGroup(**given)


def test_unknown_layouts_and_packs_of_several_candidates_are_refused():
    with pytest.raises(ValueError, match="layout='rows' is not one of"):
        collate(two_groups(), PAD, "rows")
    with pytest.raises(ValueError, match="groups of one completion"):
        collate(two_groups(), PAD, "packed", row_length=8)


def test_row_tokens_is_the_width_of_the_longest_row():
    group = TokenGroup(**FIRST)
    assert (group.row_tokens("grouped"), group.row_tokens("plain")) == (9, 6)


def test_a_batch_moves_with_its_second_batch():
    batch = collate([TokenGroup(**SECOND, extras={"score": [1.0]})], PAD)
    batch.also = collate([TokenGroup(**SECOND)], PAD)
    moved = batch.to("meta")
    assert moved.also is not None
    assert {t.device.type for t in (moved.input_ids, moved.extras["score"], moved.also.labels)} == {
        "meta"
    }
    assert (moved.layout, moved.num_groups) == ("grouped", 1)


tokens = st.lists(st.integers(0, 50), min_size=1, max_size=6)


@st.composite
def token_groups(draw, candidates: int = 4):
    completions = draw(st.lists(tokens, min_size=1, max_size=candidates))
    masks = [
        draw(st.lists(st.integers(0, 1), min_size=len(c), max_size=len(c))) for c in completions
    ]
    return TokenGroup(draw(tokens), completions, masks=masks if draw(st.booleans()) else None)


def predicted(groups: list[TokenGroup]) -> list[list[int]]:
    """Masked tokens of each candidate, read from the groups and not from a batch."""
    return [
        [t for t, m in zip(c, g.masks[k] if g.masks else [1] * len(c), strict=True) if m]
        for g in groups
        for k, c in enumerate(g.completions)
    ]


def contexts(batch: GroupBatch) -> list[tuple]:
    """Tokens and positions that each predicting position sees, itself included, from the mask."""
    mask = batch.attention_mask()
    if mask is None or mask.dim() == 2:
        width = batch.input_ids.shape[1]
        seen = torch.ones(width, width).tril().bool().expand(len(batch.input_ids), -1, -1)
        mask = (seen if mask is None else seen & mask[:, None, :].bool())[:, None]
    out = []
    for row, col in zip(batch.pred_row.tolist(), batch.pred_col.tolist(), strict=True):
        keys = mask[row, 0, col].nonzero()[:, 0]
        out.append(
            (tuple(batch.input_ids[row, keys].tolist()),
             tuple(batch.position_ids[row, keys].tolist()))
        )  # fmt: skip
    return out


@given(st.lists(token_groups(), min_size=1, max_size=4), st.sampled_from(["grouped", "plain"]))
@settings(max_examples=60, deadline=None)
def test_every_masked_token_is_predicted_once_from_the_right_place(groups, layout):
    batch = collate(groups, PAD, layout)
    bounds = batch.offsets.tolist()
    parts = [batch.labels[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert parts == predicted(groups)
    # Each label stands in the rows, and no column is a target twice.
    seen = Counter()
    for n, (row, col) in enumerate(zip(batch.pred_row, batch.pred_col, strict=True)):
        segment = batch.segment_ids[row, col]
        candidate = batch.candidate[n] - (batch.group_of < batch.group_of[batch.candidate[n]]).sum()
        own = candidate + 1 if layout == "grouped" else 1
        target = (batch.segment_ids[row] == own).nonzero()[0, 0] if segment == 0 else col + 1
        assert batch.input_ids[row, target] == batch.labels[n]
        assert batch.position_ids[row, target] == batch.position_ids[row, col] + 1
        seen[int(row), int(target)] += 1
    assert set(seen.values()) <= {1}


@given(st.lists(token_groups(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_token_is_predicted_from_its_prompt_and_its_own_candidate_in_every_layout(groups):
    expected = []
    for g in groups:
        for k, c in enumerate(g.completions):
            for i, m in enumerate(g.masks[k] if g.masks else [1] * len(c)):
                if m:
                    read = (*g.prompt_ids, *c[:i])
                    expected.append((read, tuple(range(len(read)))))
    assert contexts(collate(groups, PAD, "plain")) == expected
    assert contexts(collate(groups, PAD, "grouped")) == expected


@given(st.lists(token_groups(candidates=1), min_size=1, max_size=6), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_packing_changes_neither_labels_nor_what_is_seen(groups, row_length):
    packed, plain = collate(groups, PAD, "packed", row_length), collate(groups, PAD, "plain")
    names = ("labels", "candidate", "offsets", "group_of")
    assert lists(packed, *names) == lists(plain, *names)
    assert contexts(packed) == contexts(plain)
    rows = (packed.segment_ids >= 0).sum(1).tolist()
    longest = max(g.row_tokens("plain") for g in groups)
    assert max(rows) <= max(row_length, longest)
    assert sum(rows) == sum(len(g.prompt_ids) + len(g.completions[0]) for g in groups)


@given(token_groups(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_candidates_changes_nothing_but_the_order(group, random):
    order = list(range(len(group.completions)))
    random.shuffle(order)
    masks = [group.masks[k] for k in order] if group.masks else None
    shuffled = TokenGroup(group.prompt_ids, [group.completions[k] for k in order], masks=masks)

    def by_candidate(batch: GroupBatch) -> list[list[tuple]]:
        found = list(zip(contexts(batch), batch.labels.tolist(), strict=True))
        bounds = batch.offsets.tolist()
        return [found[a:b] for a, b in itertools.pairwise(bounds)]

    before = by_candidate(collate([group], PAD))
    assert by_candidate(collate([shuffled], PAD)) == [before[k] for k in order]


@given(token_groups(), token_groups())
@settings(max_examples=40, deadline=None)
def test_a_longer_neighbour_and_another_pad_token_change_nothing(group, other):
    alone = collate([group], PAD)
    together = collate([group, other], 0)
    count = alone.num_tokens
    names = ("labels", "pred_row", "pred_col", "candidate")
    assert lists(alone, *names) == [x[:count] for x in lists(together, *names)]
    assert contexts(alone) == contexts(together)[:count]
