"""Texts as token ids with EOS after each, a bounded number of characters at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

WORK_CHARS = 1 << 18
"""Characters that are tokenised at once: what decides the memory that building takes."""
PIECE_CHARS = 1 << 18
"""A longer text is tokenised in pieces, cut before white space where there is some."""
_LOOK_BACK = 1 << 12

Piece = tuple[str, bool]
"""A text or a part of one, and whether the text ends with it."""


@dataclass(frozen=True)
class Encoded:
    """Token ids (n,) uint32 and the places of the EOS that end texts (d,) int64; pieces read."""

    ids: np.ndarray
    ends: np.ndarray
    pieces: int


def pieces(texts: Iterable[str], limit: int = PIECE_CHARS) -> Iterator[Piece]:
    """Each text whole, or cut so that no piece has more than `limit` characters."""
    for text in texts:
        start = 0
        while len(text) - start > limit:
            end = start + limit
            # Most tokenizers begin a word with the space before it.
            places = range(end, max(start, end - _LOOK_BACK), -1)
            words = (i for i in places if text[i].isspace() and not text[i - 1].isspace())
            end = next(words, end)
            yield text[start:end], False
            start = end
        yield text[start:], True


def portions(found: Iterable[Piece], chars: int = WORK_CHARS) -> Iterator[list[Piece]]:
    """Pieces in lists of about `chars` characters."""
    held: list[Piece] = []
    size = 0
    for piece in found:
        held.append(piece)
        size += len(piece[0])
        if size >= chars:
            yield held
            held, size = [], 0
    if held:
        yield held


def encode(tokenizer: Any, portion: list[Piece]) -> Encoded:
    """Ids of a list of pieces, EOS after each text."""
    rows = tokenizer(
        [text for text, _ in portion], add_special_tokens=False, return_attention_mask=False,
        return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip
    ids: list[int] = []
    ends: list[int] = []
    for row, (_, last) in zip(rows, portion, strict=True):
        ids += row
        if last:
            ends.append(len(ids))
            ids.append(tokenizer.eos_token_id)
    return Encoded(np.array(ids, dtype=np.uint32), np.array(ends, dtype=np.int64), len(portion))


def encode_all(
    tokenizer: Any, found: Iterable[list[Piece]], processes: int = 1
) -> Iterator[Encoded]:
    """`encode` of every portion, in order, by so many processes; a few portions are in flight."""
    if processes <= 1:
        for portion in found:
            yield encode(tokenizer, portion)
        return
    waiting: deque[Future[Encoded]] = deque()
    with ProcessPoolExecutor(processes, initializer=_keep, initargs=(tokenizer,)) as pool:
        for portion in found:
            waiting.append(pool.submit(_encode_kept, portion))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_kept: Any = None


def _keep(tokenizer: Any) -> None:
    global _kept
    _kept = tokenizer


def _encode_kept(portion: list[Piece]) -> Encoded:
    return encode(_kept, portion)
