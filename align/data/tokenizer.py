"""Training a tokenizer: one entry for every kind, and the folder that `AutoTokenizer` reads.

Whatever learned it, the result is a fast tokenizer with an EOS, a pad token that is not EOS, the
two marks of chat turns and a template; decode(encode(text)) == text for every Unicode string unless
byte_fallback is off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_tokenizer import EOS, PAD, SPECIALS, TURN_END, TURN_START, check_tokenizer
from align.data.tokenizer_char_bpe import FIXED, train_tokenizer
from align.data.tokenizer_parts import BYTES, Learned, counted, sampled
from align.data.tokenizer_statistics import compression

if TYPE_CHECKING:
    from align.config_schema import Tokenizer

__all__ = ["BYTES", "EOS", "FIXED", "PAD", "SPECIALS", "TURN_END", "TURN_START", "compression",
           "learn_tokenizer", "save_tokenizer", "train_tokenizer"]  # fmt: skip


def learn_tokenizer(
    texts: Iterable[str],
    settings: Tokenizer,
    *,
    seed: int = 42,
    model_max_length: int = 1024,
    chat_template: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Learned:
    """Train a tokenizer of settings.kind with exactly settings.vocab_size entries.

    texts are read once. chat_template: a named template of ``align.chat`` or a jinja file; None
    leaves it unset. say: is told of the progress. The same texts, settings and seed give the same
    files. Raises UserError for a size that the texts do not allow (it names the limit) and for no
    text.
    """
    check_tokenizer(settings)
    if settings.kind == "char_bpe":
        chosen = counted(sampled(texts, settings.sample_sentences, seed), say)
        learned = Learned(
            train_tokenizer(
                chosen,
                settings.vocab_size,
                min_frequency=settings.min_frequency,
                max_token_length=settings.max_token_length,
                model_max_length=model_max_length,
            )
        )
    else:
        if settings.kind == "byte_bpe":
            from align.data.tokenizer_byte_bpe import learn
        else:
            from align.data.tokenizer_sentencepiece import learn
        learned = learn(texts, settings, seed=seed, model_max_length=model_max_length, say=say)
    if chat_template is not None:
        from align.chat import prepare_tokenizer

        prepare_tokenizer(learned.tokenizer, chat_template)
    return learned


def save_tokenizer(learned: Any, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer folder that ``AutoTokenizer.from_pretrained`` reads.

    learned: a tokenizer, or `Learned` with the files that lie beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(learned, Learned):
        learned = Learned(learned)
    learned.tokenizer.save_pretrained(folder)
    for name, content in learned.files.items():
        (folder / name).write_bytes(content)
