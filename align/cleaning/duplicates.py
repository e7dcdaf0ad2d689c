"""Which documents and lines repeat others, over all units: arrays on disk, sorted, joined.

Exact copies have equal keys. Near copies share a band and then agree in enough of their signature;
what is joined is one cluster (union–find), of which the best copy stays: the highest quality
score, then the longest, then the earliest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from align.cleaning.minhash import PERMUTATIONS, band_shape, similarity
from align.cleaning.settings import Settings
from align.cleaning.store import LINE, Stored

_PAIRS_AT_ONCE = 1 << 16
# Every pair of a band's group is compared up to this size; larger ones along two chains.
_SMALL_GROUP = 12


@dataclass
class Verdicts:
    """first: (U + 1,) number of the first document of each unit.

    copy_of: (N,) int64, the document that stays for each, itself where it stays. near: (N,) bool,
    whether a dropped one is a near copy. lines: (L, 2) uint64, key of each repeated line, sorted,
    and the document that keeps it.
    """

    first: np.ndarray
    copy_of: np.ndarray
    near: np.ndarray
    lines: np.ndarray


def find_duplicates(units: list[Stored], settings: Settings) -> Verdicts:
    """Look at all units' figures."""
    counts = [len(unit.rows()) for unit in units]
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    total = int(first[-1])
    copy_of, near = np.arange(total), np.zeros(total, bool)
    rank = _rank(units, total)
    if settings.exact_duplicates or settings.near_duplicates:
        _exact(units, copy_of, rank)
    if settings.near_duplicates:
        alone = copy_of == np.arange(total)
        _near(units, first, copy_of, rank, settings.near_duplicates)
        near = alone & (copy_of != np.arange(total))
        # A copy of a copy is a copy of what stays.
        copy_of = copy_of[copy_of]
    lines = np.zeros((0, 2), np.uint64)
    if settings.repeated_lines:
        lines = _lines(units, first, copy_of, settings.repeated_lines)
    return Verdicts(first, copy_of, near, lines)


def _column(units: list[Stored], name: str) -> np.ndarray:
    parts = [unit.rows()[name] for unit in units]
    return np.concatenate(parts) if parts else np.zeros(0)


def _rank(units: list[Stored], total: int) -> np.ndarray:
    """(N,) place of each document from best to worst."""
    if not total:
        return np.zeros(0, np.int64)
    order = np.lexsort((np.arange(total), -_column(units, "chars").astype(np.int64),
                        -_column(units, "score")))  # fmt: skip
    rank = np.empty(total, np.int64)
    rank[order] = np.arange(total)
    return rank


def _exact(units: list[Stored], copy_of: np.ndarray, rank: np.ndarray) -> None:
    keys = _column(units, "key")
    if not len(keys):
        return
    order = np.lexsort((rank, keys[:, 1], keys[:, 0]))
    new = np.append(True, (keys[order][1:] != keys[order][:-1]).any(axis=1))
    copy_of[order] = order[new][np.cumsum(new) - 1]


def _near(
    units: list[Stored], first: np.ndarray, copy_of: np.ndarray, rank: np.ndarray, threshold: float
) -> None:
    """Join what is alike among the documents that stay so far."""
    stays = np.flatnonzero(copy_of == np.arange(len(copy_of)))
    parent = np.arange(len(copy_of))
    count = band_shape(threshold)[0]
    parts = [unit.array("bands", "<u8", count) for unit in units]
    for band in range(count):
        column = np.concatenate([np.asarray(part[:, band]) for part in parts])[stays]
        for pairs in _proposed(column, stays):
            one, other = _roots(parent, pairs[:, 0]), _roots(parent, pairs[:, 1])
            pairs = pairs[one != other]
            alike = similarity(_signatures(units, first, pairs[:, 0]),
                               _signatures(units, first, pairs[:, 1])) >= threshold  # fmt: skip
            for a, b in pairs[alike].tolist():
                _join(parent, a, b, rank)
    copy_of[stays] = _roots(parent, stays)


def _proposed(column: np.ndarray, stays: np.ndarray) -> Iterator[np.ndarray]:
    """(P, 2) documents that share a band, in portions."""
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(begins, len(ordered)))
    kept: list[np.ndarray] = []
    waiting = 0
    for size in np.unique(sizes[sizes > 1]).tolist():
        groups = begins[sizes == size]
        if size <= _SMALL_GROUP:
            low, high = np.triu_indices(size, 1)
        else:  # each with the one before it, and with the first
            low = np.concatenate((np.arange(size - 1), np.zeros(size - 2, np.int64)))
            high = np.concatenate((np.arange(1, size), np.arange(2, size)))
        for group in np.array_split(groups, max(1, len(groups) * len(low) // _PAIRS_AT_ONCE)):
            pairs = np.stack(((group[:, None] + low).ravel(), (group[:, None] + high).ravel()), 1)
            kept.append(stays[order[pairs]])
            waiting += len(pairs)
            if waiting >= _PAIRS_AT_ONCE:
                yield np.concatenate(kept)
                kept, waiting = [], 0
    if kept:
        yield np.concatenate(kept)


def _signatures(units: list[Stored], first: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(P, PERMUTATIONS) of documents of any unit."""
    out = np.empty((len(documents), PERMUTATIONS), np.uint32)
    of = np.searchsorted(first, documents, side="right") - 1
    for unit in np.unique(of).tolist():
        mine = of == unit
        array = units[unit].array("signatures", "<u4", PERMUTATIONS)
        out[mine] = array[documents[mine] - first[unit]]
    return out


def _roots(parent: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The best document of each one's cluster; the ways there become short."""
    found = parent[documents]
    while True:
        above = parent[found]
        if (above == found).all():
            break
        found = above
    parent[documents] = found
    return found


def _join(parent: np.ndarray, a: int, b: int, rank: np.ndarray) -> None:
    while parent[a] != a:
        a = int(parent[a])
    while parent[b] != b:
        b = int(parent[b])
    if a != b:
        better, worse = (a, b) if rank[a] < rank[b] else (b, a)
        parent[worse] = better


def _lines(
    units: list[Stored], first: np.ndarray, copy_of: np.ndarray, documents: int
) -> np.ndarray:
    """(L, 2): key and first document of the lines that stand in at least `documents` that stay."""
    parts = []
    for unit, start in zip(units, first, strict=False):
        lines = unit.array("lines", LINE)
        of = lines["row"].astype(np.int64) + start
        stays = copy_of[of] == of
        parts.append(np.stack((lines["key"][stays], of[stays].astype(np.uint64)), 1))
    both = np.unique(np.concatenate(parts), axis=0)  # a line twice in one document counts once
    begins = np.flatnonzero(np.append(True, both[1:, 0] != both[:-1, 0]))
    sizes = np.diff(np.append(begins, len(both)))
    return both[begins[sizes >= max(2, documents)]]
