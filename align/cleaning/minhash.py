"""MinHash signatures and their bands, over all texts of a batch at once.

Broder 1997: two sets agree in a share of their signature's places that estimates their Jaccard
similarity, with a standard error of at most 1/(2·√128). Bands (Leskovec et al., Mining of Massive
Datasets, 3.4) propose pairs; signatures decide.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from align.cleaning.tokens import STEP, Batch, mix

PERMUTATIONS = 128
# Five Han characters say about as much as three words.
CHARACTERS, WORDS = 5, 3


@cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(20171107)
    odd = random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    return odd, random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)


def shingles(batch: Batch, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hashes (S,) uint32, first shingle of each text (D,)).

    A shingle is five characters in a row of a text that is mostly Chinese, Japanese or Thai, three
    words in a row of another; of a shorter text the whole (keys: (D, 2), see Batch.keys).
    """
    words = batch.words
    dense = words.share_alone() > 0.5
    by_char, whole_char = words.ngrams(CHARACTERS)
    by_word, whole_word = words.ngrams(WORDS)
    is_dense = dense[words.doc]
    used = np.where(is_dense, whole_char, whole_word)
    hashes = np.where(is_dense, by_char, by_word)[used]
    counts = np.bincount(words.doc[used], minlength=len(batch))
    bare = np.flatnonzero(counts == 0)
    firsts = np.concatenate(([0], np.cumsum(counts)))[:-1]
    hashes = np.insert(hashes, firsts[bare], keys[bare, 0])
    counts[bare] = 1
    high = (mix(hashes) >> np.uint64(32)).astype(np.uint32)
    return high, np.concatenate(([0], np.cumsum(counts)))[:-1]


def signatures(batch: Batch, keys: np.ndarray) -> np.ndarray:
    """(D, PERMUTATIONS) uint32: the least value of each permutation over a text's shingles."""
    hashes, firsts = shingles(batch, keys)
    out = np.empty((len(batch), PERMUTATIONS), np.uint32)
    values = np.empty_like(hashes)
    odd, shift = _permutations()
    for i in range(PERMUTATIONS):
        np.multiply(hashes, odd[i], out=values)
        values += shift[i]
        # A product's low bits depend on few of the factor's: fold the high ones down.
        values ^= values >> np.uint32(15)
        out[:, i] = np.minimum.reduceat(values, firsts)
    return out


@cache
def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, rows) whose curve 1 − (1 − s^rows)^bands lies best around the threshold.

    A pair missed above the threshold weighs 0.7, one proposed below it 0.3: proposals are checked.
    """
    s = (np.arange(1000) + 0.5) / 1000
    best, shape = np.inf, (1, PERMUTATIONS)
    for rows in range(1, PERMUTATIONS + 1):
        for bands in range(1, PERMUTATIONS // rows + 1):
            proposed = 1 - (1 - s**rows) ** bands
            below = proposed[s < threshold].sum()
            above = (1 - proposed[s >= threshold]).sum()
            if 0.3 * below + 0.7 * above < best:
                best, shape = 0.3 * below + 0.7 * above, (bands, rows)
    return shape


def bands(signature: np.ndarray, threshold: float) -> np.ndarray:
    """(D, bands) uint64: equal where all rows of a band agree."""
    count, rows = band_shape(threshold)
    out = np.empty((len(signature), count), np.uint64)
    for band in range(count):
        key = np.full(len(signature), np.uint64(band))
        for row in range(rows):
            key = key * STEP + signature[:, band * rows + row]
        out[:, band] = mix(key)
    return out


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P,) estimated Jaccard similarity of pairs of signatures, each (P, PERMUTATIONS)."""
    return (one == other).mean(axis=1)
