"""What the kinds of tokenizers share: the order of the texts, special tokens, errors, wrapping."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from align.config_tokenizer import EOS, NOT_TRAINABLE, PAD, SPECIALS, TURN_END, TURN_START

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
# At most this share of what is learned goes to single characters; the rest is left for merges.
ALPHABET_SHARE = 0.75
_WORD = r"\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+|%s| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
_SECONDS = 5.0


@dataclass
class Learned:
    """A trained tokenizer and the files that lie beside it in its folder, by name."""

    tokenizer: Any
    files: dict[str, bytes] = field(default_factory=dict)


def word_pattern(split_digits: bool = True) -> str:
    """Return the regular expression of the pieces that merges never leave.

    A run of Han, a word of another script with the space before it, one digit (or a run of them),
    a run of punctuation, a run of white space.
    """
    return _WORD % (r"\p{N}" if split_digits else r"\p{N}+")


def sampled(texts: Iterable[str], number: int | None, seed: int) -> Iterable[str]:
    """Return `number` of the texts in their order, each as likely as the others; null: all.

    Holds the sample alone in memory. The same texts and seed give the same sample.
    """
    if number is None:
        return texts
    # Reservoir sampling, algorithm R (Vitter 1985).
    draw, kept = random.Random(seed), []
    for i, text in enumerate(texts):
        if i < number:
            kept.append((i, text))
        elif (place := draw.randrange(i + 1)) < number:
            kept[place] = (i, text)
    return [text for _, text in sorted(kept)]


def counted(texts: Iterable[str], say: Callable[[str], None] | None) -> Iterator[str]:
    """Yield the texts, telling now and then how far it is; UserError when there is no text."""
    number = characters = 0
    start = last = time.monotonic()
    for text in texts:
        if not text:
            continue
        number, characters = number + 1, characters + len(text)
        if say and number % 256 == 0 and time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            say(f"{number:,} texts, {characters / 1e6:,.1f} M characters in {last - start:.0f} s")
        yield text
    if not number:
        raise no_text()
    if say:
        say(f"{number:,} texts, {characters / 1e6:,.1f} M characters read; learning")


def trainable(text: str, limit: int) -> Iterator[str]:
    """Yield a text in parts of at most `limit` bytes without what sentencepiece refuses.

    Longer ones it would drop without a word; U+2581, U+2585 and NUL are borders. A part ends after
    white space where there is some in its second half.
    """
    for char in NOT_TRAINABLE:
        text = text.replace(char, "\0")
    for part in text.split("\0"):
        rest = part
        while len(rest) * 4 > limit and len(rest.encode()) > limit:
            cut = len(rest.encode()[:limit].decode(errors="ignore"))
            spaces = (i + 1 for i in range(cut - 1, cut // 2, -1) if rest[i].isspace())
            cut = next(spaces, cut)
            yield rest[:cut]
            rest = rest[cut:]
        if rest:
            yield rest


def no_text() -> UserError:
    """Return the error of an empty corpus."""
    return UserError(
        "data.text", "the texts", "there is no text in them", "Give text to learn from"
    )


def too_large(asked: int, most: int, note: str = "") -> UserError:
    """Return the error of a vocabulary that the texts cannot fill; it names the maximum."""
    return UserError(
        "tokenizer.vocab_size", asked, f"the texts give at most {most} entries{note}",
        f"Use {most} or less, or give more text",
    )  # fmt: skip


def too_small(asked: int, least: int, what: str) -> UserError:
    """Return the error of a vocabulary without room for what must be in it; least: what works."""
    fix = f"Use {least} or more"
    return UserError("tokenizer.vocab_size", asked, f"leaves no room: {what}", fix)


def wrap(
    backend: Any, model_max_length: int, control: Sequence[str] = (), unknown: str | None = None
) -> Any:
    """Return the transformers tokenizer around a backend that has the special tokens."""
    from transformers import PreTrainedTokenizerFast

    names = {} if unknown is None else {"unk_token": unknown}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=[TURN_START, TURN_END, *control],
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        **names,
    )


def add_symbols(backend: Any, settings: Tokenizer, unknown: str | None = None) -> None:
    """Make the special, control and user-defined symbols tokens that no text is split inside."""
    from tokenizers import AddedToken

    special = (*SPECIALS, *settings.control_symbols, *([unknown] if unknown else []))
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    own = settings.user_defined_symbols
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in own])
