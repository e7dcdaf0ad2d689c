"""How much a text agrees with references: ROUGE, BLEU, chrF, exact match, F1; Chinese and English.

ROUGE is rouge-score's, BLEU and chrF are sacrebleu's; what is ours is which tokens they see.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from align.config_errors import UserError
from align.evaluation.metrics.text import units

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Tokenizer = Literal["auto", "default", "char", "jieba"]
_LETTER = re.compile(r"[^\W\d_]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether at least half of the letters of some texts are Chinese characters."""
    letters = sum(len(_LETTER.findall(t)) for t in texts)
    return letters > 0 and 2 * sum(len(_HAN.findall(t)) for t in texts) >= letters


def as_references(references: Sequence[Any]) -> list[list[str]]:
    """One list of references for each text, which may be given as a single string."""
    return [[r] if isinstance(r, str) else list(r) for r in references]


def rouge(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenizer: Tokenizer = "default",
    stemmer: bool = False,
    types: Sequence[str] = ROUGE_TYPES,
) -> dict[str, list[float]]:
    """F-measures of each text by type, in [0, 1]; of several references the best one counts.

    tokenizer: default is rouge-score's own, which sees only a-z and 0-9: Chinese text scores 0.
    char: a CJK character, or a word of another script. jieba: words (extra `zh`). auto: char where
    the references are Chinese. Lin 2004; the arithmetic is rouge-score's.
    """
    from rouge_score.rouge_scorer import RougeScorer

    refs = as_references(references)
    if tokenizer == "auto":
        tokenizer = "char" if is_chinese([r for row in refs for r in row]) else "default"
    own = None if tokenizer == "default" else _Split(splitter(tokenizer))
    scorer = RougeScorer(list(types), use_stemmer=stemmer, tokenizer=own)
    rows = [scorer.score_multi(r, p) for p, r in zip(predictions, refs, strict=True)]
    return {name: [row[name].fmeasure for row in rows] for name in types}


class _Split:
    """A tokenizer as rouge-score wants one."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.split = split

    def tokenize(self, text: str) -> list[str]:
        return self.split(text)


def splitter(name: str) -> Callable[[str], list[str]]:
    """The function behind `char` or `jieba`; UserError where jieba is not installed."""
    if name == "char":
        return lambda text: [u for u in units(text) if not _is_punctuation(u)]
    try:
        import jieba
    except ImportError:
        raise UserError(
            "tokenizer", name, "needs jieba, which is not installed",
            "pip install 'align[eval]', or use char",
        ) from None  # fmt: skip
    import logging

    jieba.setLogLevel(logging.WARNING)
    return lambda text: [w for w in jieba.lcut(text.lower()) if w.strip() and not _blank(w)]


def bleu(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    tokenize: str = "auto",
) -> dict[str, Any]:
    """Corpus BLEU of sacrebleu, 0 to 100: {score, precisions, bp, tokenize, signature}.

    tokenize: a tokenizer of sacrebleu; auto: zh where the references are Chinese, else 13a.
    Papineni et al. 2002; Post 2018 (arXiv:1804.08771).
    """
    from sacrebleu.metrics.bleu import BLEU

    refs = as_references(references)
    if tokenize == "auto":
        tokenize = "zh" if is_chinese([r for row in refs for r in row]) else "13a"
    try:
        metric = BLEU(tokenize=tokenize)
    except (ValueError, ImportError, RuntimeError, AssertionError, KeyError) as error:
        fix = "One of sacrebleu's: zh, 13a, char, intl, ja-mecab, none …"
        raise UserError("tokenize", tokenize, f"is not usable: {error}", fix) from error
    result: Any = metric.corpus_score(list(predictions), _columns(refs))
    return {
        "score": result.score, "precisions": list(result.precisions), "bp": result.bp,
        "tokenize": tokenize, "signature": str(metric.get_signature()),
    }  # fmt: skip


def chrf(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    word_order: int = 0,
) -> dict[str, Any]:
    """Corpus chrF of sacrebleu, 0 to 100: {score, signature}; word_order 2 is chrF++.

    Character n-grams need no tokenizer, in any script. Popović 2015, 2017.
    """
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=word_order)
    result: Any = metric.corpus_score(list(predictions), _columns(as_references(references)))
    return {"score": result.score, "signature": str(metric.get_signature())}


def _columns(refs: list[list[str]]) -> Any:
    """Sacrebleu's way round: the i-th reference of every text; None where a text has fewer."""
    width = max((len(row) for row in refs), default=1)
    return [[row[i] if i < len(row) else None for row in refs] for i in range(width)]


def normalise(
    text: str,
    *,
    case: bool = True,
    punctuation: bool = True,
    space: bool = True,
    numbers: bool = False,
    articles: bool = False,
) -> str:
    """A text with what does not matter taken out; each option says what does not.

    Full-width forms are made narrow (NFKC). punctuation: every mark of any script. space: all of it
    between CJK characters, runs of it elsewhere. articles: a, an, the.
    """
    text = unicodedata.normalize("NFKC", text)
    text = text.lower() if case else text
    if punctuation:
        text = "".join(c for c in text if not _is_punctuation(c))
    if numbers:
        text = "".join(c for c in text if not c.isdigit())
    text = _ARTICLE.sub(" ", text) if articles else text
    if space:
        text = " ".join(text.split())
        text = re.sub(rf"(?<={_HAN.pattern}) | (?={_HAN.pattern})", "", text)
    return text


def exact_match(prediction: str, references: str | Sequence[str], **options: bool) -> float:
    """1 where a text equals one of its references after `normalise`, else 0."""
    refs = [references] if isinstance(references, str) else references
    ours = normalise(prediction, **options)
    return float(any(ours == normalise(r, **options) for r in refs))


def f1(prediction: str, references: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the units of a text, in [0, 1]; best reference.

    SQuAD's measure (Rajpurkar et al. 2016): lower-cased, without punctuation and articles, counted
    as a bag of words; of Chinese, of characters.
    """
    refs = [references] if isinstance(references, str) else references
    return max((_f1(_bag(prediction), _bag(r)) for r in refs), default=0.0)


def _bag(text: str) -> Counter[str]:
    return Counter(units(normalise(text, articles=True)))


def _f1(ours: Counter[str], theirs: Counter[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    same = (ours & theirs).total()
    if not same:
        return 0.0
    precision, recall = same / ours.total(), same / theirs.total()
    return 2 * precision * recall / (precision + recall)


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char[0])[0] in "PS"


def _blank(word: str) -> bool:
    return all(_is_punctuation(c) for c in word)
