"""Which tokenizer a file of token ids belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what decides a text's ids: the backend's JSON, or the vocabulary of a slow tokenizer.

    Settings of padding and truncation are left out: they are set for a call and change no id.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tree: Any = sorted(tokenizer.get_vocab().items())
    else:
        tree = {k: v for k, v in json.loads(backend.to_str()).items()
                if k not in ("padding", "truncation")}  # fmt: skip
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
