"""Byte-level BPE by `tokenizers`: every text is bytes, so nothing is unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from align.config_tokenizer import SPECIALS
from align.data.tokenizer_parts import (
    Learned,
    add_symbols,
    counted,
    sampled,
    too_large,
    too_small,
    word_pattern,
    wrap,
)

if TYPE_CHECKING:
    from align.config_schema import Tokenizer


def learn(
    texts: Iterable[str],
    settings: Tokenizer,
    *,
    seed: int,
    model_max_length: int,
    say: Callable[[str], None] | None = None,
) -> Learned:
    """Learn merges over bytes; the order of ids is symbols, 256 bytes, merges.

    Raises UserError for texts that are empty or do not fit vocab_size.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    names = [*SPECIALS, *settings.control_symbols, *settings.user_defined_symbols]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = len(names) + len(alphabet)
    if settings.vocab_size <= fixed:
        what = f"{len(names)} special and own tokens and 256 bytes alone take {fixed}"
        raise too_small(settings.vocab_size, fixed + 1, what)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer(settings.split_digits)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,  # some to spare for the line about symbols below
        min_frequency=settings.min_frequency,
        initial_alphabet=alphabet,
        max_token_length=settings.max_token_length,
        show_progress=False,
    )
    chosen = sampled(texts, settings.sample_sentences, seed)
    backend.train_from_iterator(counted(chosen, say), trainer)
    model = json.loads(backend.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].__getitem__)
    # A merge that spells a symbol would make two strings one token.
    vocab = [*names, *(token for token in learned if token not in names)][: settings.vocab_size]
    if len(vocab) < settings.vocab_size:
        note = f" at tokenizer.min_frequency={settings.min_frequency}"
        raise too_large(settings.vocab_size, len(vocab), note)
    ids = {token: i for i, token in enumerate(vocab)}
    merges = [m for m in map(tuple, model["merges"]) if ids.get("".join(m), -1) >= fixed]
    return Learned(_assemble(ids, merges, settings, model_max_length))


def _pre_tokenizer(split_digits: bool) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(word_pattern(split_digits)), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, to_bytes])


def _assemble(
    ids: dict[str, int], merges: list[tuple[str, str]], settings: Tokenizer, model_max_length: int
) -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = _pre_tokenizer(settings.split_digits)
    backend.decoder = decoders.ByteLevel()
    add_symbols(backend, settings)
    return wrap(backend, model_max_length, settings.control_symbols)
