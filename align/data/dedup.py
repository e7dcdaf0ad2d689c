"""Exact and near duplicates: equal normalised text, or MinHash similarity of character shingles.

Near duplicates need ``datasketch`` (extra ``data``); exact ones need nothing. Lee et al. 2022
(arXiv:2107.06499) shows what duplicates do to a language model; Broder 1997 is MinHash.
"""

from __future__ import annotations

import hashlib
from typing import Any

from align.config import UserError
from align.records import normalise_text

EXACT, NEAR = "exact_duplicate", "near_duplicate"


def text_key(text: str) -> str:
    """SHA-256 of the text as it reads: NFKC, case-folded, white space as single spaces."""
    return hashlib.sha256(normalise_text(text).encode("utf-8", "surrogatepass")).hexdigest()


def shingles(text: str, size: int = 5) -> set[str]:
    """All runs of ``size`` letters and digits; a shorter text is one shingle.

    Characters, not words, because Chinese has no spaces. Punctuation is left out, so that a changed
    comma does not make five new shingles.
    """
    letters = "".join(c for c in normalise_text(text) if c.isalnum()) or text
    return {letters[i : i + size] for i in range(max(1, len(letters) - size + 1))}


class Deduplicator:
    """Remembers texts and tells whether a new one repeats an earlier one; the first stays.

    threshold: Jaccard similarity in (0, 1] of the shingle sets from which two texts are near
    duplicates, or None for exact ones only. permutations: length of a MinHash signature; the
    similarity it estimates has a standard error of at most 1/(2·√permutations). Raises UserError
    for a threshold outside the range or a missing datasketch.
    """

    def __init__(
        self, threshold: float | None = 0.8, *, permutations: int = 128, shingle: int = 5,
        seed: int = 1,
    ) -> None:  # fmt: skip
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(
                "near_duplicates", threshold, "is not a similarity in (0, 1]",
                "Use 0.8, or leave near duplicates in with 0 on the command line",
            )  # fmt: skip
        self.threshold, self.permutations = threshold, permutations
        self.shingle, self.seed = shingle, seed
        self._keys: set[str] = set()
        self._count = 0
        self._lsh: Any = _lsh(threshold, permutations) if threshold is not None else None
        self._signatures: dict[str, Any] = {}

    def seen(self, text: str) -> str | None:
        """None for a new text, which is remembered; else "exact_duplicate" or "near_duplicate"."""
        key = text_key(text)
        if key in self._keys:
            return EXACT
        self._keys.add(key)
        if self._lsh is None:
            return None
        signature = self._signature(text)
        for other in self._lsh.query(signature):
            # The index proposes, the signatures decide: banding alone lets through lower ones.
            if self._signatures[other].jaccard(signature) >= self.threshold:
                return NEAR
        name = str(self._count)
        self._count += 1
        self._signatures[name] = signature
        self._lsh.insert(name, signature)
        return None

    def _signature(self, text: str) -> Any:
        from datasketch import LeanMinHash, MinHash

        signature = MinHash(num_perm=self.permutations, seed=self.seed)
        signature.update_batch([s.encode("utf-8", "surrogatepass")
                                for s in sorted(shingles(text, self.shingle))])  # fmt: skip
        return LeanMinHash(signature)


def _lsh(threshold: float, permutations: int) -> Any:
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise UserError(
            "near_duplicates", threshold, "needs the package datasketch, which is not installed",
            "pip install 'align[data]', or set near_duplicates to 0.",
        ) from error  # fmt: skip
    # weights: missing a true near duplicate is worse than checking one candidate more.
    return MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.3, 0.7))
