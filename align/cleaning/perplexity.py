"""How surprising a text is to a small model: characters' perplexity, exp of the mean −log p.

Either an interpolated character 5-gram model with Witten–Bell smoothing (Chen and Goodman 1998,
equation 15), counted from a reference text, or a causal language model folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from align.cleaning.tokens import STEP, Batch, mix
from align.config_errors import UserError, missing_file

ORDER = 5
_CHARACTERS = 20_000_000


class Scorer(Protocol):
    """What gives each text of a batch its perplexity."""

    def score(self, batch: Batch) -> np.ndarray:
        """(D,) perplexity a character."""
        ...


class CharacterModel:
    """Counts of n-grams up to ORDER, hashed; white space is one character like any other."""

    def __init__(self, texts: Iterable[str]) -> None:
        batch = Batch(list(texts))
        self.size = len(np.unique(batch.folded)) + 1
        self.tables = [_Table(*_ngrams(batch, n)) for n in range(1, ORDER + 1)]

    def score(self, batch: Batch) -> np.ndarray:
        """(D,) perplexity a character, the end of a text being one."""
        p = np.full(len(batch.codes), 1 / self.size)
        for n, table in enumerate(self.tables, 1):
            grams, contexts = _ngrams(batch, n)
            count, total, kinds = table.look_up(grams, contexts)
            p = np.where(total > 0, (count + kinds * p) / np.maximum(total + kinds, 1), p)
        nats = np.add.reduceat(-np.log(p), batch.starts)
        return np.exp(nats / (batch.sizes + 1))


def _ngrams(batch: Batch, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the n characters that end at each place, and of the n − 1 before the last.

    Places before a text's beginning count as NUL.
    """
    letters = batch.folded.astype(np.uint64) + np.uint64(1)
    offset = np.arange(len(letters)) - np.repeat(batch.starts, batch.sizes + 1)
    context = np.full(len(letters), np.uint64(n))
    for back in range(n - 1, 0, -1):
        before = np.where(offset >= back, np.roll(letters, back), np.uint64(1))
        context = context * STEP + before
    return mix(context * STEP + letters), mix(context)


class _Table:
    """Counts of n-grams, and of their contexts: occurrences and distinct continuations."""

    def __init__(self, grams: np.ndarray, contexts: np.ndarray) -> None:
        self.grams, first, self.counts = np.unique(grams, return_index=True, return_counts=True)
        self.contexts, back = np.unique(contexts[first], return_inverse=True)
        self.totals = np.bincount(back, self.counts)
        self.kinds = np.bincount(back)

    def look_up(self, grams: np.ndarray, contexts: np.ndarray) -> tuple[Any, Any, Any]:
        """(count of each n-gram, count of its context, distinct continuations of the context)."""
        at, known = _find(self.grams, grams)
        place, seen = _find(self.contexts, contexts)
        return (np.where(known, self.counts[at], 0), np.where(seen, self.totals[place], 0),
                np.where(seen, self.kinds[place], 0))  # fmt: skip


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


class LanguageModel:
    """A causal language model; the first `tokens` of each text are looked at."""

    def __init__(self, folder: str, tokens: int = 512) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from align.model_safety import code_options, weight_options

        code, options = code_options(folder, "perplexity"), weight_options(folder, "perplexity")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **code)
            self.model: Any = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                "perplexity",
                folder,
                f"is no language model ({error})",
                "Give a model folder, or a .txt or .jsonl file to count.",
            ) from None
        self.tokens = tokens

    def score(self, batch: Batch) -> np.ndarray:
        """(D,) perplexity a character of the part looked at."""
        import torch

        out = np.ones(len(batch))
        for i, text in enumerate(batch.texts):
            ids = self.tokenizer(text, add_special_tokens=False, truncation=True,
                                 max_length=self.tokens)["input_ids"]  # fmt: skip
            if len(ids) < 2:
                continue
            row = torch.tensor([ids])
            with torch.no_grad():
                loss = self.model(row, labels=row).loss
            # The first token is given, not predicted.
            chars = max(1, len(self.tokenizer.decode(ids[1:])))
            out[i] = float(np.exp(float(loss) * (len(ids) - 1) / chars))
        return out


def load_scorer(path: str) -> Scorer:
    """The model that `perplexity` names."""
    from align.data.corpus import iter_texts

    if not Path(path).exists():
        raise missing_file("perplexity", path)
    if Path(path, "config.json").is_file():
        return LanguageModel(path)
    texts, size = [], 0
    for text in iter_texts(path):
        texts.append(text)
        size += len(text)
        if size > _CHARACTERS:
            break
    if not texts:
        raise UserError("perplexity", path, "holds no text", "Give a file to count.")
    return CharacterModel(texts)
