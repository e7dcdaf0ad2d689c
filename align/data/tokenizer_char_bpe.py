"""BPE over characters with a byte fallback, learned by `tokenizers` (kind char_bpe).

Chinese needs some three thousand characters, which a byte-level BPE rebuilds from two merges each;
here a character is one symbol from the start and the merges are left for words. A character outside
the vocabulary becomes its UTF-8 bytes (``<0xE4>`` …), so decode(encode(text)) == text always. The
demo's shipped base was made with it; sentencepiece's own BPE does the same at any size of corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from align.config_tokenizer import SPECIALS
from align.data.tokenizer_parts import (
    ALPHABET_SHARE,
    BYTES,
    no_text,
    too_large,
    too_small,
    word_pattern,
    wrap,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIXED = len(SPECIALS) + len(BYTES)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 6000,
    *,
    min_frequency: int = 2,
    max_token_length: int = 16,
    model_max_length: int = 1024,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Learns a vocabulary of exactly ``vocab_size`` entries from texts.

    The entries: 4 special tokens (``<|endoftext|>`` is EOS, ``<|pad|>`` is not), 256 bytes, the
    characters seen at least min_frequency times, merges. max_token_length: characters.
    chat_template: a named template of ``align.chat`` or a jinja file; None leaves it unset.
    Raises UserError when the texts are empty, or cannot fill vocab_size (it names the maximum).
    """
    if vocab_size <= FIXED:
        what = f"{len(SPECIALS)} special tokens and 256 bytes alone take {FIXED}"
        raise too_small(vocab_size, FIXED + 1, what)
    room = vocab_size - FIXED
    vocab, merges = _learn(list(texts), room, min_frequency, max_token_length)
    if len(vocab) < room:
        raise too_large(vocab_size, len(vocab) + FIXED, f" at min_frequency={min_frequency}")
    tokenizer = _assemble(vocab, merges, model_max_length)
    if chat_template is not None:
        from align.chat import prepare_tokenizer

        tokenizer = prepare_tokenizer(tokenizer, chat_template)
    return tokenizer


def _learn(
    texts: list[str], room: int, min_frequency: int, max_token_length: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Symbols in id order and merges in rank order, at most ``room`` symbols."""
    from tokenizers import Tokenizer, models, trainers

    counts = Counter(char for text in texts for char in text)
    if not counts:
        raise no_text()
    # Ties by code point, so that the same texts in another order give the same vocabulary.
    ranked = sorted(
        (c for c in counts if counts[c] >= min_frequency), key=lambda c: (-counts[c], c)
    )
    alphabet = ranked[: max(1, int(room * ALPHABET_SHARE))]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pieces()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=min_frequency,
        # The trainer's own limit counts ties in hash order: give it the alphabet and nothing else.
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=max_token_length,
        show_progress=False,
    )
    keep = set(alphabet)
    learner.train_from_iterator(_known_runs(texts, keep), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    taken = set(BYTES) | set(SPECIALS)
    # A merge that spells a byte or special token literally would make two strings one token.
    merges = [m for m in merges if "".join(m) not in taken]
    return [token for token in vocab if token not in taken], merges


def _known_runs(texts: list[str], keep: set[str]) -> Iterator[str]:
    """The texts cut at characters outside the alphabet, so that no merge spans one."""
    for text in texts:
        run: list[str] = []
        for char in text:
            if char in keep:
                run.append(char)
            elif run:
                yield "".join(run)
                run = []
        if run:
            yield "".join(run)


def _pieces() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(word_pattern()), behavior="isolated")


def _assemble(
    vocab: list[str], merges: list[tuple[str, str]], model_max_length: int
) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    ids = {token: i for i, token in enumerate((*SPECIALS, *BYTES, *vocab))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True))
    tokenizer.pre_tokenizer = _pieces()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return wrap(tokenizer, model_max_length)
