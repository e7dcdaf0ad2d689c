"""Which tokenizer something was made with: the one fingerprint that data and adapters record."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# What a call such as tokenizer(text, truncation=True) leaves behind; it changes no id.
_PASSING = ("truncation", "padding")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of everything that turns text into ids, 16 hexadecimal digits.

    Vocabulary, merges, normaliser, pre-tokeniser, added and special tokens count; the chat
    template, the padding side and model_max_length do not: other texts, but the same ids for them.
    tokenizer: as transformers loads it. One without a fast backend is known by its vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tree: dict[str, Any] = {"vocab": tokenizer.get_vocab()}
    if backend is not None:
        tree = json.loads(backend.to_str())
        for name in _PASSING:
            tree.pop(name, None)
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # A vocabulary may hold lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
