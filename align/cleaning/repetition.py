"""Text that repeats itself: Gopher's measures, over all texts of a batch at once.

Rae et al. 2021 (arXiv:2112.11446), table A1, on words; a Han character is a word. An n-gram that
occurs twice has an (n−1)-gram that does, so that each length looks at what the one before left.
"""

from __future__ import annotations

import numpy as np

from align.cleaning.chars import NEWLINE, PUNCT, STOP, SYMBOL
from align.cleaning.tokens import STEP, Batch, mix

_TOP = (2, 3, 4)
_TWICE = range(5, 11)
_POSITION_BITS = np.uint64(24)
_POSITION = (np.uint64(1) << _POSITION_BITS) - np.uint64(1)


def repetition(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(share in repeated 5- to 10-grams, share of the commonest 2- to 4-gram), both (D,) in [0, 1].

    The commonest is looked for among those that occur three times.
    Shares of the characters in words. An occurrence overlapping the one before it is counted once.
    """
    words, texts = batch.words, len(batch)
    letters = np.maximum(np.bincount(words.doc, words.size, texts), 1)
    count = len(words.hashes)
    if count > _POSITION:
        raise ValueError("a batch has too many words")  # readers keep batches far below
    twice, top = np.zeros(count, bool), np.zeros(texts)
    lengths = np.append(0, np.cumsum(words.size))
    doc = np.append(words.doc, np.full(_TWICE[-1], -1))
    # The text is in the hash, so that n-grams of two texts are never the same.
    running = words.hashes ^ mix(words.doc.astype(np.uint64) + np.uint64(1))
    places = np.arange(count)
    for n in range(2, _TWICE[-1] + 1):
        places = places[doc[places + n - 1] == doc[places]]
        running[places] = running[places] * STEP + words.hashes[places + n - 1]
        if not len(places):
            break
        groups, members = _groups(mix(running[places]), places)
        if not len(members):
            break
        if n in _TOP:
            _most(top, groups, members, lengths, words.doc, n)
        if n in _TWICE:
            # From the second occurrence on: the first had to be written.
            again = members[np.append(False, groups[1:] == groups[:-1])]
            for step in range(n):
                twice[again + step] = True
        repeated = np.zeros(count + 1, bool)
        repeated[members] = True
        places = np.sort(members)
        places = places[repeated[places + 1]]
    share = np.bincount(words.doc, words.size * twice, texts) / letters
    return share, np.minimum(top / letters, 1.0)


def _groups(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(group of each member, places) of the keys that occur more than once, in order of place.

    Keys are cut to 40 bits beside the place: one sort finds both.
    """
    packed = np.sort((keys & ~_POSITION) | places.astype(np.uint64))
    high = packed & ~_POSITION
    same = high[1:] == high[:-1]
    member = np.append(same, False) | np.append(False, same)
    group = np.cumsum(np.append(True, ~same))[member]
    return group, (packed[member] & _POSITION).astype(np.int64)


def _most(
    top: np.ndarray, groups: np.ndarray, members: np.ndarray, lengths: np.ndarray,
    doc: np.ndarray, n: int,
) -> None:  # fmt: skip
    """Raise `top` to the characters that the commonest n-gram of each text takes."""
    if not len(groups):
        return
    # An n-gram that overlaps its last occurrence ("ha ha ha") takes only what is new.
    begin = np.append(True, groups[1:] != groups[:-1])
    gap = np.where(begin, n, np.append(n, np.diff(members)))
    fresh = np.minimum(gap, n)
    taken = lengths[members + n] - lengths[members + n - fresh]
    firsts = np.flatnonzero(begin)
    often = np.diff(np.append(firsts, len(begin))) > 2  # a short text may say a thing twice
    firsts, taken = firsts[often], np.add.reduceat(taken, firsts)[often]
    np.maximum.at(top, doc[members[firsts]], taken.astype(float))


def line_measures(batch: Batch) -> dict[str, np.ndarray]:
    """Shares of the non-empty lines of each text: repeated, ending in a mark, bullets, ellipses."""
    classes, codes, texts = batch.classes, batch.codes, len(batch)
    keys, doc, starts, ends = line_keys(batch, 1)
    count = np.maximum(np.bincount(doc, minlength=texts), 1)
    last, first = classes[ends - 1], codes[starts]
    # A closing quote or bracket may follow the mark.
    before = classes[np.maximum(ends - 2, 0)]
    stop = (last == STOP) | ((last == PUNCT) & (before == STOP)) | (codes[ends - 1] == 0x2E)
    bullet = (np.isin(first, _codes("•‣▪▫■□●○◆◇★☆*-–·>")) & (ends - starts > 1)) | (
        (classes[starts] == SYMBOL) & (ends - starts > 1)
    )
    dots = np.isin(codes[ends - 1], _codes("…⋯")) | (
        (codes[ends - 1] == 0x2E) & (codes[np.maximum(ends - 2, 0)] == 0x2E)
    )
    keys = keys ^ mix(doc.astype(np.uint64) + np.uint64(7))
    order = np.argsort(keys, kind="stable")
    same = np.append(False, keys[order][1:] == keys[order][:-1])
    again = np.zeros(len(keys), bool)
    again[order] = same
    return {
        "repeated": np.bincount(doc, again, texts) / count,
        "stops": np.bincount(doc, stop, texts) / count,
        "bullets": np.bincount(doc, bullet, texts) / count,
        "ellipses": np.bincount(doc, dots, texts) / count,
    }


def line_keys(batch: Batch, shortest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(key, text, start, end) of every line of at least `shortest` characters."""
    feeds = np.flatnonzero(batch.classes == NEWLINE)
    starts = np.append(0, feeds[:-1] + 1)
    long = feeds - starts >= shortest
    starts, ends = starts[long], feeds[long]
    doc = np.searchsorted(batch.starts, starts, side="right") - 1
    return _keys_between(batch, starts, ends), doc, starts, ends


def _keys_between(batch: Batch, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(L,) uint64, equal for equal lines."""
    place = np.arange(len(batch.codes), dtype=np.uint64)
    line_start = np.zeros(len(batch.codes), np.int64)
    line_start[starts] = starts
    line_start = np.maximum.accumulate(line_start).astype(np.uint64)
    values = mix(mix(batch.codes.astype(np.uint64) + STEP) + (place - line_start) * STEP)
    total = np.append(np.uint64(0), np.cumsum(values))
    return mix(total[ends] - total[starts])


def _codes(text: str) -> np.ndarray:
    return np.fromiter(map(ord, text), np.uint32, len(text))
