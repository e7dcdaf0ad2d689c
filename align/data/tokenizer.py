"""Training a tokenizer: BPE over characters with a byte fallback, exact on every string.

Chinese needs some three thousand characters, which a byte-level BPE rebuilds from two merges each;
here a character is one symbol from the start and the merges are left for words. A character outside
the vocabulary becomes its UTF-8 bytes (``<0xE4>`` …), so decode(encode(text)) == text always. The
result is a fast tokenizer that ``AutoTokenizer`` and every server of the ecosystem read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (EOS, PAD, TURN_START, TURN_END)
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
FIXED = len(SPECIALS) + len(BYTES)

# Merges never cross a boundary of these pieces: a run of Han, a word of another script with the
# space before it, ONE digit, a run of punctuation, a run of white space.
PIECES = r"\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
# At most this share of the vocabulary goes to single characters; the rest is left for merges.
ALPHABET_SHARE = 0.75


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
        raise UserError(
            "tokenizer.vocab_size", vocab_size,
            f"{len(SPECIALS)} special tokens and 256 bytes alone take {FIXED}",
            f"Use more than {FIXED}.",
        )  # fmt: skip
    room = vocab_size - FIXED
    vocab, merges = _learn(list(texts), room, min_frequency, max_token_length)
    if len(vocab) < room:
        raise UserError(
            "tokenizer.vocab_size", vocab_size,
            f"the texts give at most {len(vocab) + FIXED} entries at min_frequency={min_frequency}",
            f"Use {len(vocab) + FIXED} or less, or give more text.",
        )  # fmt: skip
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
        raise UserError(
            "input", "the texts", "there is no text in them", "Give text to learn from."
        )
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

    return pre_tokenizers.Split(Regex(PIECES), behavior="isolated")


def _assemble(
    vocab: list[str], merges: list[tuple[str, str]], model_max_length: int
) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate((*SPECIALS, *BYTES, *vocab))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True))
    tokenizer.pre_tokenizer = _pieces()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[TURN_START, TURN_END],
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def compression(tokenizer: Any, texts: Iterable[str]) -> dict[str, float]:
    """How well a tokenizer fits texts: characters and bytes per token, share of byte tokens.

    Raises ValueError when a text does not survive decode(encode(text)): that is never acceptable.
    """
    chars = size = tokens = fallback = 0
    byte_ids = set(tokenizer.convert_tokens_to_ids(list(BYTES)))
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.decode(ids, skip_special_tokens=False) != text:
            raise ValueError(f"the tokenizer changes {text[:80]!r}")
        chars, size, tokens = chars + len(text), size + len(text.encode()), tokens + len(ids)
        fallback += sum(i in byte_ids for i in ids)
    tokens = max(tokens, 1)
    return {
        "chars_per_token": chars / tokens,
        "bytes_per_token": size / tokens,
        "byte_fallback_share": fallback / tokens,
        "tokens": float(tokens),
    }


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a tokenizer folder that ``AutoTokenizer.from_pretrained`` reads."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
