"""The language of each text: by script where one script has one language, else by its words.

English is told by its commonest words before a classifier (py3langid, Lui and Baldwin 2012) is
asked, which looks at the first characters of what is left.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from align.cleaning.chars import SCRIPTS
from align.cleaning.optional import package
from align.cleaning.tokens import Batch

_SAMPLE = 600
# Languages that have their script for themselves, or nearly.
_BY_SCRIPT = {
    "han": "zh", "kana": "ja", "hangul": "ko", "thai": "th", "hebrew": "he", "greek": "el",
    "tamil": "ta", "georgian": "ka", "armenian": "hy", "khmer": "km", "lao": "lo", "burmese": "my",
    "ethiopic": "am",
}  # fmt: skip
_ENGLISH = (
    "the of and to in is that it was for on with as be at by this are from or have an not but "
    "they his her you which were we all their has been would there what so if more when my me "
    "your i he she him them do can about like just how who will get no know think people good "
    "make really out up its than then some any other only into time could our did these because "
    "want way very one"
)
UNKNOWN = "und"
# Fewer letters than this tell a classifier nothing.
_LETTERS = 20


def languages(batch: Batch) -> list[str]:
    """An ISO 639-1 code for each text; "und" where there are too few letters to tell."""
    counts = batch.census.sum(axis=1)
    counts[:, 0] = 0
    # A Latin word is as much text as one or two Han characters.
    weights = np.ones(len(SCRIPTS))
    weights[[SCRIPTS.index(name) for name in ("han", "kana", "hangul")]] = 3
    best = (counts * weights).argmax(axis=1)
    kana, han = counts[:, SCRIPTS.index("kana")], counts[:, SCRIPTS.index("han")]
    best = np.where((kana > 0.1 * (kana + han)) & (kana > 2), SCRIPTS.index("kana"), best)
    english = _english(batch)
    found = []
    for i, script in enumerate(best.tolist()):
        name = SCRIPTS[script]
        if counts[i, script] == 0:
            found.append(UNKNOWN)
        elif name in _BY_SCRIPT:
            found.append(_BY_SCRIPT[name])
        elif name == "latin" and english[i]:
            found.append("en")
        else:
            enough = counts[i, script] >= _LETTERS
            found.append(_classify(batch.texts[i]) if enough else UNKNOWN)
    return found


def _english(batch: Batch) -> np.ndarray:
    """(D,) bool: a fifth of the words are among the commonest English ones, at least two."""
    words = batch.words
    common, likely = _english_hashes()
    place = np.flatnonzero(likely[words.hashes >> np.uint64(48)])
    place = place[np.isin(words.hashes[place], common)]
    hits = np.bincount(words.doc[place], minlength=len(batch))
    return (hits >= 2) & (hits >= 0.2 * words.counts)


@cache
def _english_hashes() -> tuple[np.ndarray, np.ndarray]:
    """(the words' hashes, for all values of a hash's first 16 bits whether one of them has it)."""
    hashes = Batch([_ENGLISH]).words.hashes
    likely = np.zeros(1 << 16, bool)
    likely[hashes >> np.uint64(48)] = True
    return hashes, likely


def _classify(text: str) -> str:
    found = str(package("py3langid", "languages", "auto").classify(text[:_SAMPLE])[0])
    return "zh" if found in ("wuu", "yue") else found
