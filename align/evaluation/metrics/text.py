"""Numbers about generated text: units, n-grams, diversity, repetition; no model, no torch.

Texts are read as units: a CJK character is one unit, any other run of letters or digits is one
unit, other visible characters are units of their own. `我爱 NLP!` is 我 | 爱 | nlp | !. So
distinct-n and repetition mean the same thing for Chinese and English.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

# Han (with extensions and compatibility forms), kana, and Hangul syllables.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[^\s]", re.UNICODE)


def units(text: str) -> list[str]:
    """Split a text into CJK characters, lower-cased words, and single other symbols."""
    return _UNIT.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of a sequence, in order; empty when the sequence is shorter than n."""
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Iterable[str], n: int = 2) -> float:
    """Distinct n-grams divided by all n-grams over a corpus, in [0, 1]; 0 when there are none.

    Li et al. 2016 (arXiv:1510.03055). It falls as a corpus grows: compare equal sample counts.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = ngrams(units(text), n)
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams that already occurred earlier in it, in [0, 1).

    1 − distinct n-grams / n-grams (rep-n of Welleck et al. 2020, arXiv:1908.04319); 0 for texts
    shorter than n units.
    """
    grams = ngrams(units(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], max_n: int = 4, limit: int = 200) -> float:
    """Mean BLEU of each text against all others, in [0, 1]; high means the texts are alike.

    Zhu et al. 2018 (arXiv:1802.01886), with one added to numerator and denominator of the orders
    above 1 so that short texts do not give 0 (Lin & Och 2004). The first `limit` texts are used;
    scores are only comparable at equal counts.
    """
    rows = [units(text) for text in texts[:limit]]
    if len(rows) < 2:
        return 0.0
    counts = [[Counter(ngrams(row, n)) for n in range(1, max_n + 1)] for row in rows]
    best = [_two_largest([c[n] for c in counts]) for n in range(max_n)]
    scores = [_bleu_against_rest(i, rows, counts[i], best) for i in range(len(rows))]
    return sum(scores) / len(scores)


def _two_largest(counts: list[Counter]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """For each n-gram: the largest count, which text holds it, and the largest among the rest."""
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, counter in enumerate(counts):
        for gram, c in counter.items():
            top, owner, second = best.get(gram, (0, -1, 0))
            if c > top:
                best[gram] = (c, i, top)
            else:
                best[gram] = (top, owner, max(second, c))
    return best


def _bleu_against_rest(
    i: int, rows: list[list[str]], own: list[Counter], best: list[dict]
) -> float:
    length = len(rows[i])
    if not length:
        return 0.0
    log_precision = 0.0
    for n, counter in enumerate(own):
        matched = total = 0
        for gram, c in counter.items():
            top, owner, second = best[n][gram]
            matched += min(c, second if owner == i else top)
            total += c
        smooth = 1 if n else 0
        if matched + smooth == 0:
            return 0.0
        log_precision += math.log((matched + smooth) / (total + smooth)) / len(own)
    others = [len(row) for j, row in enumerate(rows) if j != i]
    closest = min(others, key=lambda r: (abs(r - length), r))
    brevity = min(0.0, 1.0 - closest / length)
    return math.exp(brevity + log_precision)


def text_metrics(texts: Sequence[str], finished: Sequence[bool] | None = None) -> dict[str, float]:
    """Length, diversity and repetition of a list of completions.

    `length_units` counts CJK characters and words (see `units`), `length_chars` code points.
    `empty_rate` is the share without a visible character.
    """
    if not texts:
        raise ValueError("no texts to measure")
    sizes = [len(units(t)) for t in texts]
    out = {
        "length_units": float(np.mean(sizes)),
        "length_chars": float(np.mean([len(t) for t in texts])),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "repetition_4": float(np.mean([repetition(t, 4) for t in texts])),
        "self_bleu": self_bleu(texts),
        "unique_rate": len(set(texts)) / len(texts),
        "empty_rate": float(np.mean([s == 0 for s in sizes])),
    }
    if finished is not None:
        out["eos_rate"] = float(np.mean([bool(f) for f in finished]))
    return out
