"""Rows of pre-training: every token once a pass, from its own context, in a fixed order."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.token_rows import (
    CorpusRows,
    HeldOutRows,
    Row,
    StreamRows,
    TokenView,
    mixed,
    row_groups,
)
from align.train.pretrain_data import Mixture, MixtureBatches

EOS = 0


class Ring:
    """n tokens of which each is its own place + 1, but for texts' ends, which are EOS."""

    def __init__(self, n, ends):
        self.tokens = np.arange(1, n + 1)
        self.places = np.array(sorted(ends), dtype=np.int64)

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return self.tokens[start:stop]

    def ends(self, start, stop):
        return self.places[(self.places >= start) & (self.places < stop)]


@st.composite
def rings(draw):
    n = draw(st.integers(4, 60))
    return Ring(n, draw(st.sets(st.integers(0, n - 1))) | {n - 1})


def rows_of(ring, block, number, **options):
    rows = CorpusRows(TokenView(ring), block, eos=EOS, seed=3, **options)
    return [rows.row(number * rows.per_pass + i) for i in range(rows.per_pass)]


@given(rings(), st.integers(2, 12), st.integers(0, 3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_token_is_predicted_once_a_pass_from_the_one_before_it(ring, block, number, shuffle):
    block = min(block, len(ring))
    predicted = Counter()
    for row in rows_of(ring, block, number, shuffle=shuffle):
        assert 2 <= len(row.ids) <= block
        predicted.update(row.ids[1:])
        for context, token in zip(row.ids, row.ids[1:], strict=False):
            before = token - 1 if token > 1 else len(ring)
            assert context in (before, EOS if token == 1 else before)
    assert predicted == Counter(range(1, len(ring) + 1))


@given(rings(), st.integers(2, 12), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_with_the_mask_too_and_no_group_holds_two_texts(ring, block, number):
    block = min(block, len(ring))
    predicted = Counter()
    ends = {int(e) + 1 for e in ring.places}
    for row in rows_of(ring, block, number):
        for group in row_groups(row, EOS, True):
            tokens = group.completions[0]
            predicted.update(tokens)
            assert not ends & set(tokens[:-1])  # a text ends nowhere but at a group's end
            starts = tokens[0] - 1 in ends or tokens[0] == 1
            assert (group.prompt_ids == [EOS]) is starts
    assert predicted == Counter(range(1, len(ring) + 1))


def test_a_row_by_hand():
    """Tokens 1 2 3 | 4 5 | 6 7 (texts end at 3, 5, 7), rows of three predicted tokens."""
    ring = Ring(7, {2, 4, 6})
    rows = rows_of(ring, 4, 0, shuffle=False)
    assert [r.ids for r in rows] == [[EOS, 1, 2, 3], [3, 4, 5, 6], [6, 7]]
    assert [r.breaks for r in rows] == [[0, 3], [0, 2], [1]]
    groups = [[(g.prompt_ids, g.completions[0]) for g in row_groups(r, EOS, True)] for r in rows]
    assert groups == [
        [([EOS], [1, 2, 3])],
        [([EOS], [4, 5]), ([EOS], [6])],
        [([6], [7])],
    ]
    plain = [row_groups(r, EOS, False) for r in rows]
    assert [(g.prompt_ids, g.completions) for [g] in plain] == [
        ([EOS], [[1, 2, 3]]), ([3], [[4, 5, 6]]), ([6], [[7]]),
    ]  # fmt: skip


def test_each_pass_has_its_own_cut_and_order_and_seeds_decide():
    ring = Ring(200, {199})
    passes = [[r.ids for r in rows_of(ring, 11, p)] for p in range(3)]
    assert passes[0] != passes[1] != passes[2]
    assert {r[-1] % 10 for r in passes[0]} != {r[-1] % 10 for r in passes[1]}
    assert passes[0] == [r.ids for r in rows_of(ring, 11, 0)]
    other = CorpusRows(TokenView(ring), 11, eos=EOS, seed=4)
    assert [other.row(i).ids for i in range(20)] != passes[0]
    second = CorpusRows(TokenView(ring), 11, eos=EOS, seed=3, source=1)
    assert [second.row(i).ids for i in range(20)] != passes[0]


@given(rings(), st.integers(2, 12))
@settings(max_examples=80, deadline=None)
def test_held_out_tokens_are_predicted_once_but_the_first(ring, block):
    for masked in (False, True):
        rows = HeldOutRows(TokenView(ring), block, eos=EOS, masked=masked)
        predicted = Counter(t for g in rows for t in g.completions[0])
        assert predicted == Counter(range(2, len(ring) + 1))


# Mixtures


class Numbered:
    """A corpus of `per_pass` rows that say their number."""

    def __init__(self, per_pass):
        self.per_pass = per_pass

    def row(self, k):
        return Row([EOS, k], [])


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    st.lists(st.integers(1, 20), min_size=4, max_size=4),
    st.integers(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_shares_are_the_weights_and_no_row_is_left_out(weights, sizes, epoch):
    sources = [Numbered(n) for n in sizes[: len(weights)]]
    rows = sum(s.per_pass for s in sources)
    mixture = Mixture(sources, weights, rows, eos=EOS, masked=False)
    keys = list(mixture.keys(epoch))
    assert len(keys) == rows
    total = sum(weights)
    for done in range(1, rows + 1):
        for source, weight in enumerate(weights):
            have = sum(s == source for s, _ in keys[:done])
            assert abs(have - weight / total * done) < len(weights)
    after = list(mixture.keys(epoch + 1))
    for source in range(len(weights)):  # counted on without a gap, over epochs too
        numbers = [k for s, k in [*keys, *after] if s == source]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def test_three_to_one_by_hand():
    mixture = Mixture([Numbered(4), Numbered(4)], [3, 1], 8, eos=EOS, masked=False)
    assert [s for s, _ in mixture.keys(0)] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert [k for s, k in mixture.keys(1) if s == 1] == [2, 3]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_has_the_same_rows_on_any_number_of_ranks(world):
    mixture = Mixture([Numbered(5), Numbered(6)], [1, 2], 11, eos=EOS, masked=False)
    micro = 4 // world
    ranks = [list(MixtureBatches(mixture, micro, 1, rank=r, world=world)) for r in range(world)]
    steps = [[key for parts in step for key in parts] for step in zip(*ranks, strict=True)]
    keys = list(mixture.keys(0))
    assert [key for step in steps for key in step] == [*keys, -1]
    assert all(len(step) == 4 for step in steps)


# Streams


class Letters:
    """Every character is a token; EOS is 0."""

    eos_token_id = EOS

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[*map(ord, text)] for text in texts]}


TEXTS = ["春天有樱花", "abc", "水烧到八十度", "defgh", "i"]


def streamed(**options):
    return StreamRows(lambda: TEXTS, Letters(), 5, seed=1, **options)


def stream_of(rows, count):
    """The predicted tokens of the first rows as text, a bar for EOS."""
    tokens = [t for i in range(count) for t in rows.row(i).ids[1:]]
    return "".join("|" if t == EOS else chr(t) for t in tokens)


def test_a_stream_is_the_texts_pass_after_pass():
    text = stream_of(streamed(shuffle=False), 12)
    assert text == ("|".join(TEXTS) + "|" + "|".join(TEXTS) + "|")[:48]
    shuffled = stream_of(streamed(buffer=2), 25).split("|")
    assert Counter(shuffled[:5]) == Counter(TEXTS) == Counter(shuffled[5:10])
    assert shuffled[:5] != shuffled[5:10]


def test_a_stream_rows_know_their_texts_and_their_context():
    rows = streamed()
    found = [rows.row(i) for i in range(15)]
    assert found[0].ids[0] == EOS
    assert found[0].breaks[:1] == [0]
    for row, after in pairwise(found):
        assert row.ids[-1] == after.ids[0]
        assert row.breaks == [i for i, t in enumerate(row.ids) if t == EOS]


def test_rows_that_are_passed_over_change_nothing():
    rows, late = streamed(), streamed()
    whole = [rows.row(i) for i in range(20)]
    assert [late.row(i) for i in (7, 8, 15, 19)] == [whole[i] for i in (7, 8, 15, 19)]
    with pytest.raises(ValueError, match="row 3 was asked for after row 19"):
        late.row(3)


@given(st.lists(st.text("春a", max_size=9), max_size=30), st.integers(1, 8), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_mixing_loses_nothing(texts, size, chars):
    drawn = np.random.default_rng(0)
    assert Counter(mixed(texts, drawn, size, chars)) == Counter(texts)


def test_mixing_holds_no_more_than_its_buffer():
    taken = []

    def texts():
        for i in range(100):
            taken.append(i)
            yield str(i)

    found = mixed(texts(), np.random.default_rng(0), 5)
    assert len(list(islice(found, 10))) == 10
    assert len(taken) <= 16
