"""Further merges over the tokens that a base tokenizer gives.

The base's tokens of each word are written as one private character each, so that the trainer of
`tokenizers` learns merges of tokens as it otherwise learns merges of letters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

# Characters above the surrogates, a million of them.
_FIRST = 0x10000
_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


@dataclass
class Piece:
    """A new token: its name, the tokens before all new merges, and how often it stands."""

    name: str
    parts: list[int]
    count: int = 0


@dataclass
class More:
    """New tokens in the order of merges; total: all tokens of the texts."""

    pieces: list[Piece] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    total: int = 1


def learn_merges(backend: Any, words: Counter[str], room: int, settings: Tokenizer) -> More:
    """Up to `room` new tokens for words (pre-tokens and their counts).

    Fewer where no pair occurs settings.min_frequency times any more. Byte tokens and unknown ones
    are borders; no token is longer than settings.max_token_length.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    names = {i: name for name, i in vocab.items()}
    tree = json.loads(backend.to_str())["model"]
    borders = {i for name, i in vocab.items() if _BYTE_NAME.fullmatch(name)}
    if tree["type"] == "Unigram":
        borders.add(tree.get("unk_id"))
    elif tree.get("unk_token"):
        borders.add(vocab.get(tree["unk_token"]))
    written = _written(backend, words, borders)
    wanted = room + room // 4
    while True:
        learner, complete = _train(written, wanted, settings.min_frequency)
        more = _kept(learner, names, set(vocab), room, settings.max_token_length)
        if len(more.pieces) == room or complete:
            break
        wanted *= 2
    if tree["type"] == "Unigram":
        _count(learner, written, more)
    return more


def _written(backend: Any, words: Counter[str], borders: set[int]) -> Counter[str]:
    """Runs of tokens between borders, a character a token; single tokens teach nothing."""
    runs: Counter[str] = Counter()
    for word, times in words.items():
        run: list[str] = []
        for token in backend.model.tokenize(word):
            if token.id in borders:
                runs["".join(run)] += times
                run = []
            else:
                run.append(chr(_FIRST + token.id))
        runs["".join(run)] += times
    return Counter({run: n for run, n in sorted(runs.items()) if run})


def _train(written: Counter[str], wanted: int, min_frequency: int) -> tuple[Any, bool]:
    """(learner, whether there is no further merge)."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    letters = len({c for run in written for c in run})
    learner = Backend(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=letters + wanted, min_frequency=min_frequency, show_progress=False
    )
    # Without a pre-tokeniser every run is a word.
    learner.train_from_iterator(written.elements(), trainer)
    return learner, learner.get_vocab_size() < letters + wanted


def _kept(learner: Any, names: dict[int, str], taken: set[str], room: int, longest: int) -> More:
    """The first merges that give tokens which are new and not too long, built of such tokens."""
    more, place, spelled = More(), {}, {chr(_FIRST + i): name for i, name in names.items()}
    for merge in json.loads(learner.to_str())["model"]["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left not in spelled or right not in spelled:
            continue  # built of one that was left out
        name = spelled[left] + spelled[right]
        if name in taken or len(name) > longest:
            continue
        if name not in place:
            if len(more.pieces) == room:
                break
            place[name] = len(more.pieces)
            more.pieces.append(Piece(name, [ord(c) - _FIRST for c in left + right]))
        more.merges.append((spelled[left], spelled[right]))
        spelled[left + right] = name
    return more


def _count(learner: Any, written: Counter[str], more: More) -> None:
    """Fill in how often every new token stands in the texts when all merges are applied."""
    place = {"".join(chr(_FIRST + i) for i in p.parts): p for p in more.pieces}
    more.total = 0
    for run, times in written.items():
        for token in learner.model.tokenize(run):
            more.total += times
            if piece := place.get(token.value):
                piece.count += times
    more.total = max(more.total, 1)
