"""Rows of pre-training: every token of a corpus is predicted once in a pass.

A corpus is a ring of n token ids, each predicted from those before it in its row; the first follows
an EOS, as every text does. A pass cuts the ring at a place of its own into rows of block − 1
predicted tokens (the last has what is left), and takes the rows in an order of its own: both follow
from seed, source and number of the pass alone, so a run can go on anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from align.data.token_pieces import encode, pieces, portions
from align.data.token_shards import TokenShards
from align.groups import TokenGroup

_BUFFER_CHARS = 1 << 26
_STREAM_CHARS = 1 << 15  # smaller portions than a build's: the first row should not wait


@dataclass(frozen=True)
class Row:
    """A context token and the tokens that are predicted; breaks: places after which a text begins.

    ids: at least two. breaks: rising, places in ids of the tokens that end a text (or the ring).
    """

    ids: list[int]
    breaks: list[int]


def row_groups(row: Row, eos: int, masked: bool) -> list[TokenGroup]:
    """The row as one group, or with masked as one for each text in it, which sees itself alone.

    The context of a text that begins in the row is EOS, whatever stood before it.
    """
    if not masked:
        return [TokenGroup(row.ids[:1], [row.ids[1:]])]
    groups, context, start = [], row.ids[0], 1
    for place in [*row.breaks, len(row.ids) - 1]:
        if place == 0:
            context = eos
        elif place >= start:
            groups.append(TokenGroup([context], [row.ids[start : place + 1]]))
            context, start = eos, place + 1
    return groups


class MemoryTokens:
    """Token ids in memory, read as those of `TokenShards` are."""

    def __init__(self, texts: Iterable[str], tokenizer: Any) -> None:
        found = encode(tokenizer, list(pieces(texts)))
        self._ids, self._ends = found.ids, found.ends

    def __len__(self) -> int:
        """Number of token ids, EOS included."""
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop)."""
        return self._ids[start:stop]

    def ends(self, start: int, stop: int) -> np.ndarray:
        """Places in [start, stop) of the EOS that end texts."""
        return self._ends[(self._ends >= start) & (self._ends < stop)]

    def lengths(self) -> np.ndarray:
        """Tokens of each text, EOS not counted."""
        return np.diff(self._ends, prepend=-1) - 1


Tokens = TokenShards | MemoryTokens


class TokenView:
    """Ids [start, stop) of a corpus."""

    def __init__(self, shards: Tokens, start: int = 0, stop: int | None = None) -> None:
        self.shards, self.start = shards, start
        self.stop = len(shards) if stop is None else stop

    def __len__(self) -> int:
        """Number of ids."""
        return self.stop - self.start

    def row(self, first: int, last: int) -> Row:
        """Ids [first, last), counted from the view's start, and the texts' ends in them."""
        low, high = self.start + first, self.start + last
        ends = self.shards.ends(low, high) - low
        return Row(self.shards.read(low, high).tolist(), ends.tolist())


class CorpusRows:
    """Rows of one corpus, pass after pass; row k is the (k mod per_pass)-th of its pass.

    source: number of the corpus among several. shuffle False takes the rows in order, cut at the
    start of the corpus.
    """

    def __init__(
        self, view: TokenView, block: int, *, eos: int, seed: int, source: int = 0,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.view, self.stride, self.eos = view, block - 1, eos
        self.seed, self.source, self.shuffle = seed, source, shuffle
        self.per_pass = -(-len(view) // self.stride)
        self._pass, self._cut = -1, 0
        self._order: Any = range(0)

    def row(self, k: int) -> Row:
        """Row k, k ≥ 0."""
        number, place = divmod(k, self.per_pass)
        if number != self._pass:
            self._begin(number)
        at = int(self._order[place]) * self.stride
        length = min(self.stride, len(self.view) - at)
        return self._ring(self._cut + at, length)

    def _begin(self, number: int) -> None:
        self._pass, self._cut, self._order = number, 0, range(self.per_pass)
        if self.shuffle:
            drawn = np.random.default_rng([self.seed, self.source, number])
            self._cut = int(drawn.integers(len(self.view)))
            self._order = drawn.permutation(self.per_pass)

    def _ring(self, start: int, length: int) -> Row:
        """The row that predicts `length` tokens from `start` on."""
        n = len(self.view)
        start %= n
        head = self.view.row(max(start - 1, 0), min(start + length, n))
        if start == 0:  # the ring closes here, where an EOS stands unless the view was cut out
            head = Row([self.eos, *head.ids], [0, *(b + 1 for b in head.breaks)])
        over = start + length - n
        if over <= 0:
            return head
        rest = self.view.row(0, over)
        closed = len(head.ids) - 1
        breaks = head.breaks if head.breaks[-1:] == [closed] else [*head.breaks, closed]
        return Row(head.ids + rest.ids, breaks + [closed + 1 + b for b in rest.breaks])


class HeldOutRows(Sequence[TokenGroup]):
    """Rows of a view in order: each of its tokens but the first is predicted once.

    Rows overlap by one token. masked: one group a text, see `row_groups`.
    """

    def __init__(self, view: TokenView, block: int, *, eos: int, masked: bool = False) -> None:
        self.view, self.stride = view, block - 1
        self._rows = max(0, -(-(len(view) - 1) // self.stride))
        self._texts: list[TokenGroup] | None = None
        if masked:
            rows = map(self._row, range(self._rows))
            self._texts = list(chain.from_iterable(row_groups(row, eos, True) for row in rows))

    def __len__(self) -> int:
        """Number of groups."""
        return self._rows if self._texts is None else len(self._texts)

    def _row(self, index: int) -> Row:
        start = index * self.stride
        return self.view.row(start, min(start + self.stride + 1, len(self.view)))

    def __getitem__(self, index: Any) -> Any:
        """Group `index`, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._texts is not None:
            return self._texts[index]
        place = range(self._rows)[index]
        return row_groups(self._row(place), 0, False)[0]


class StreamRows:
    """Rows of texts that are read and tokenised as they are needed, pass after pass.

    texts: gives the texts of a pass anew. buffer: texts that are held to be mixed, fewer where they
    are long. Rows must be asked for in rising order; those left out are read over. Each pass is
    another order, from seed, source and number of the pass. Nothing is kept between processes: a
    resumed run reads over what it has seen, which costs the tokenising of it.
    """

    def __init__(
        self, texts: Callable[[], Iterable[str]], tokenizer: Any, block: int, *, seed: int,
        source: int = 0, shuffle: bool = True, buffer: int = 10_000,
    ) -> None:  # fmt: skip
        self.texts, self.tokenizer, self.stride = texts, tokenizer, block - 1
        self.seed, self.source, self.shuffle, self.buffer = seed, source, shuffle, buffer
        self._rows = self._cut()
        self._next = 0
        self._last: Row | None = None

    def row(self, k: int) -> Row:
        """Row k; k not below that of the last call."""
        if k == self._next - 1 and self._last is not None:
            return self._last
        if k < self._next:
            raise ValueError(f"row {k} was asked for after row {self._next - 1}")
        while self._next <= k:
            self._last = next(self._rows)
            self._next += 1
        assert self._last is not None
        return self._last

    def _cut(self) -> Iterator[Row]:
        """Rows of the endless stream; the first follows an EOS."""
        ids: list[int] = [self.tokenizer.eos_token_id]
        breaks = [0]
        for more, ends in self._encoded():
            breaks += [len(ids) + e for e in ends]
            ids += more
            start = 0
            while len(ids) - start > self.stride:
                stop = start + self.stride + 1
                inside = [b - start for b in breaks if start <= b < stop]
                yield Row(ids[start:stop], inside)
                start = stop - 1
                breaks = [b for b in breaks if b >= start]
            ids, breaks = ids[start:], [b - start for b in breaks]

    def _encoded(self) -> Iterator[tuple[list[int], list[int]]]:
        number = 0
        while True:
            texts: Iterable[str] = self.texts()
            if self.shuffle:
                drawn = np.random.default_rng([self.seed, self.source, number])
                texts = mixed(texts, drawn, self.buffer)
            empty = True
            for portion in portions(pieces(texts), _STREAM_CHARS):
                found, empty = encode(self.tokenizer, portion), False
                yield found.ids.tolist(), found.ends.tolist()
            if empty:
                raise ValueError("a pass over the corpus gave no text")
            number += 1


def mixed(
    texts: Iterable[str], drawn: np.random.Generator, size: int, chars: int = _BUFFER_CHARS
) -> Iterator[str]:
    """The texts in a random order, as far as a buffer of so many texts and characters goes."""
    held: list[str] = []
    total = 0
    for text in texts:
        held.append(text)
        total += len(text)
        while len(held) > size or (total > chars and len(held) > 1):
            i = int(drawn.integers(len(held)))
            held[i], held[-1] = held[-1], held[i]
            total -= len(held[-1])
            yield held.pop()
    for i in drawn.permutation(len(held)):
        yield held[i]
