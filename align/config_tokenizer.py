"""Rules of the `tokenizer` section, and the names of the tokens that every tokenizer here has."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from align.config_errors import UserError

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

EOS, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (EOS, PAD, TURN_START, TURN_END)
UNKNOWN = "<unk>"
# The character by which sentencepiece means a space, and what it cannot train on.
SPACE_MARK, NOT_TRAINABLE = "\u2581", "\u2581\u2585\0"
SENTENCEPIECE = ("bpe", "unigram")


def check_tokenizer(settings: Tokenizer, *, fresh: bool = False) -> None:
    """Raise UserError for settings of a tokenizer that cannot be trained.

    fresh: for a random model of another method, which extends nothing.
    """
    if fresh and settings.extend is not None:
        reason = "is what recipes/train_tokenizer.py extends, not where a model starts"
        fix = "Give the extended folder as policy.path or pretrain.tokenizer"
        raise UserError("tokenizer.extend", settings.extend, reason, fix)
    if settings.extend is None:
        if settings.kind in SENTENCEPIECE and find_spec("sentencepiece") is None:
            raise UserError(
                "tokenizer.kind", settings.kind, "needs the package sentencepiece",
                "pip install 'align[data]', or use byte_bpe",
            )  # fmt: skip
        if settings.kind == "char_bpe":
            for name in ("user_defined_symbols", "control_symbols"):
                if value := getattr(settings, name):
                    reason = "cannot be used with tokenizer.kind='char_bpe'"
                    raise UserError(f"tokenizer.{name}", value, reason, "Use kind: bpe")
    _check_symbols(settings)


def _check_symbols(settings: Tokenizer) -> None:
    seen = {*SPECIALS, UNKNOWN}
    for name in ("control_symbols", "user_defined_symbols"):
        for i, symbol in enumerate(getattr(settings, name)):
            reason = ""
            if not symbol:
                reason = "is empty"
            elif symbol in seen:
                reason = "is there already"
            elif re.fullmatch("<0x[0-9A-F]{2}>", symbol):
                reason = "is the name of a byte"
            elif set(symbol) & {" ", *NOT_TRAINABLE}:
                reason = "has a character that stands for a border (space, U+2581, U+2585, NUL)"
            elif name == "control_symbols" and len(symbol) < 2:
                reason = "is one character, which then could not be written in a text"
            if reason:
                fix = "Remove it, or give another symbol"
                raise UserError(f"tokenizer.{name}.{i}", symbol, reason, fix)
            seen.add(symbol)
