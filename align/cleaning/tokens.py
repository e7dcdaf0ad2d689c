"""Words of a batch as hashes: one of spaced scripts, one character of Chinese, Japanese or Thai.

Everything that compares texts (repetition, near duplicates, contamination, word lists) works on
these, over all texts of a batch at once. Letter case, width and punctuation do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from align.cleaning.chars import (
    CLASSES,
    DIGIT,
    HAN,
    KANA,
    LETTER,
    SCRIPTS,
    UNSPACED,
    census_table,
    class_table,
    code_points,
    fold_table,
    utf8_sizes,
)

_ODD = np.uint64(0x9E3779B97F4A7C15)
STEP = np.uint64(0xD6E8FEB86659FD93)
_LONGEST = 256


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every bit of the result depends on every bit of x (uint64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# Powers of an odd number: a character's place in its word. Longer words wrap around.
_PLACE = np.concatenate(([np.uint64(1)], np.cumprod(np.full(_LONGEST - 1, STEP))))


def _powers(base: np.uint64, place: np.ndarray) -> np.ndarray:
    """Return base ** place, modulo 2^64; the table grows with the longest text seen."""
    needed = int(place.max(initial=0)) + 1
    table = _TABLES.get(int(base))
    if table is None or len(table) < needed:
        size = max(1 << 12, 2 * needed)
        table = np.concatenate(([np.uint64(1)], np.cumprod(np.full(size - 1, base))))
        _TABLES[int(base)] = table
    return table[place]


_TABLES: dict[int, np.ndarray] = {}


@dataclass
class Batch:
    """Texts side by side, and what is known of every character.

    codes: (C,) uint32, each text followed by a NUL. starts: (D,) of each text. sizes: (D,)
    characters of each text, the NUL left out.
    """

    texts: list[str]

    def __post_init__(self) -> None:
        self.codes = code_points("\0".join(self.texts) + "\0")
        self.sizes = np.fromiter(map(len, self.texts), np.int64, len(self.texts))
        self.starts = np.concatenate(([0], np.cumsum(self.sizes + 1)[:-1]))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    @cached_property
    def classes(self) -> np.ndarray:
        """(C,) uint8, the class of every character."""
        return class_table()[self.codes]

    @cached_property
    def doc(self) -> np.ndarray:
        """(C,) the text of every character."""
        return np.repeat(np.arange(len(self)), self.sizes + 1)

    @cached_property
    def census(self) -> np.ndarray:
        """(D, CLASSES, scripts): characters of each text by class and script, its NUL included."""
        kinds = CLASSES * len(SCRIPTS)
        found = self.doc * kinds
        found += census_table()[self.codes]
        counts = np.bincount(found, minlength=len(self) * kinds)
        return counts.reshape(len(self), CLASSES, len(SCRIPTS))

    @cached_property
    def folded(self) -> np.ndarray:
        """(C,) uint32, lower case and half width."""
        return fold_table()[self.codes]

    @cached_property
    def bytes(self) -> np.ndarray:
        """(D,) UTF-8 bytes of each text."""
        return self.sum_of(utf8_sizes(self.codes)) - 1

    def sum_of(self, values: np.ndarray) -> np.ndarray:
        """(D,) int64: the sum over each text (and its NUL) of a value a character."""
        return np.add.reduceat(values, self.starts, dtype=np.int64)

    @cached_property
    def words(self) -> Words:
        """The words of all texts."""
        return Words.of(self)

    def keys(self) -> np.ndarray:
        """(D, 2) uint64: equal for texts that read the same, case, width and spaces aside."""
        solid = self.classes > 2
        solid |= self.classes == 0
        where = np.flatnonzero(solid)
        doc = self.doc[where]
        counts = np.bincount(doc, minlength=len(self))
        firsts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        place = np.arange(len(where)) - firsts[doc]
        letters = mix(self.folded[where].astype(np.uint64) + _ODD)
        out = np.zeros((len(self), 2), np.uint64)
        for column, base in enumerate((_ODD, STEP)):
            total = np.concatenate(([np.uint64(0)], np.cumsum(letters * _powers(base, place))))
            out[:, column] = mix(total[firsts + counts] - total[firsts] + counts.astype(np.uint64))
        return out


@dataclass
class Words:
    """hashes: (W,) uint64. doc: (W,) its text. start, size: (W,) its characters in the batch.

    first: (D + 1,) the first word of each text. alone: (W,) bool, a word of one character that
    needs no space.
    """

    hashes: np.ndarray
    doc: np.ndarray
    start: np.ndarray
    size: np.ndarray
    alone: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, batch: Batch) -> Words:
        """Cut a batch into words."""
        classes = batch.classes
        alone = (classes >= HAN) & (classes <= UNSPACED)
        joined = (classes == LETTER) | (classes == DIGIT)
        begins = alone | joined
        begins[1:] &= ~(joined[1:] & joined[:-1])
        start = np.flatnonzero(begins)
        if not len(start):
            empty = np.zeros(0, np.int64)
            return cls(empty.astype(np.uint64), empty, empty, empty, empty.astype(bool),
                       np.zeros(len(batch) + 1, np.int64))  # fmt: skip
        ends = np.flatnonzero(alone | (joined & ~np.append(joined[1:], False))) + 1
        size = ends - start
        inside = np.flatnonzero(alone | joined)
        firsts = np.concatenate(([0], np.cumsum(size)[:-1]))
        place = (np.arange(len(inside)) - np.repeat(firsts, size)) % _LONGEST
        letters = mix(batch.folded[inside].astype(np.uint64) + _ODD)
        hashes = mix(np.add.reduceat(letters * _PLACE[place], firsts))
        first = np.searchsorted(start, np.append(batch.starts, len(classes)))
        doc = np.repeat(np.arange(len(batch)), np.diff(first))
        return cls(hashes, doc, start, size, alone[start], first)

    @property
    def counts(self) -> np.ndarray:
        """(D,) words of each text."""
        return np.diff(self.first)

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(hashes, whether all n words are in one text) of the n words from each word on."""
        hashes = self.hashes.copy()
        total = len(hashes)
        for step in range(1, min(n, total)):
            hashes[: total - step] = hashes[: total - step] * STEP + self.hashes[step:]
        whole = np.zeros(total, bool)
        if total >= n:
            whole[: total - n + 1] = self.doc[: total - n + 1] == self.doc[n - 1 :]
        return mix(hashes), whole

    def share_alone(self) -> np.ndarray:
        """(D,) the share of words that are single characters of unspaced scripts."""
        alone = np.bincount(self.doc, self.alone, len(self.first) - 1)
        return alone / np.maximum(1, self.counts)


assert KANA == HAN + 1
assert UNSPACED == HAN + 2
