"""Which tokenizer something was made with: the one fingerprint that data and adapters record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.files import write_atomic

# Beside weights that were trained with a tokenizer: which.
FILE = "tokenizer_identity.json"
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


def record_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write into a folder which tokenizer its weights were trained with."""
    said = {"fingerprint": tokenizer_fingerprint(tokenizer), "entries": len(tokenizer)}
    write_atomic(folder / FILE, json.dumps(said) + "\n")


def check_trained_with(folder: str | Path, tokenizer: Any, field: str) -> None:
    """Raise UserError if the weights in a folder were trained with another tokenizer than this.

    field: the configuration's key that names the folder. Weights without a record, which were made
    elsewhere, are refused where the tokenizer beside them has another number of entries.
    """
    folder = Path(folder)
    found, entries = tokenizer_fingerprint(tokenizer), len(tokenizer)
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        theirs, size = str(said["fingerprint"]), int(said["entries"])
    except FileNotFoundError:
        if _entries_beside(folder) in (None, entries):
            return
        theirs, size = "not recorded", _entries_beside(folder) or 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"has a {FILE} that cannot be read ({error})"
        raise UserError(field, str(folder), reason, "Remove that file to go without it") from error
    if theirs != found:
        raise UserError(
            field, str(folder),
            f"was trained with another tokenizer (fingerprint {theirs}, {size} entries) than the "
            f"model's ({found}, {entries} entries): its token ids mean other texts",
            "Use the model that it was trained on, or train it again",
        )  # fmt: skip


def _entries_beside(folder: Path) -> int | None:
    """Entries of the fast tokenizer in a folder; None where there is none that can be read."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(file)).get_vocab_size()
    except Exception:  # what `tokenizers` raises for a file that it does not understand
        return None
