"""The filters: a figure for every text of a batch, a limit, and the first that refuses a text.

What a rule's figure is stands in `RULES`; the limits are `Settings`. All figures of a batch are
computed at once, so that a short review costs no more a byte than a book.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from align.cleaning.chars import (
    BROKEN,
    DIGIT,
    HAN,
    KANA,
    LETTER,
    SPACE,
    SYMBOL,
    UNSPACED,
)
from align.cleaning.languages import UNKNOWN, languages
from align.cleaning.repetition import line_measures, repetition
from align.cleaning.settings import Settings
from align.cleaning.tokens import Batch

_URL = re.compile(r"(?:https?://|www\.)[^\s\x00<>\"'，。（）]+", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"lorem ipsum dolor|(?:please )?(?:enable|turn on) javascript|javascript (?:is disabled|must "
    r"be enabled)|请(?:启用|开启|打开)\s?javascript|浏览器不支持\s?javascript",
    re.IGNORECASE,
)
_HINTS = ("ipsum", "IPSUM", "avascript", "avaScript", "AVASCRIPT")
# Rules of form for prose; a program has its own.
_PROSE = (
    "min_letters", "max_symbols", "max_digits", "max_run", "max_repeated", "max_top_ngram",
    "max_repeated_lines", "min_stops", "max_bullets", "max_ellipses", "max_word_length",
    "languages",
)  # fmt: skip


@dataclass
class Figures:
    """Figures of a batch that several rules share, computed when first asked for."""

    batch: Batch
    settings: Settings
    _found: dict[str, np.ndarray] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> np.ndarray:
        """The figure `name`; `make` gives it and its relatives."""
        if name not in self._found:
            self._found |= make()
        return self._found[name]

    def count(self, *classes: int) -> np.ndarray:
        """(D,) characters of these classes."""
        return self.batch.census[:, list(classes)].sum(axis=(1, 2))

    def solid(self) -> np.ndarray:
        """(D,) characters that are no space or line end."""
        return np.maximum(self.batch.sizes + 1 - self.count(SPACE, SPACE + 1), 1)

    def share(self, *classes: int) -> np.ndarray:
        """(D,) share of these classes among the characters that are no space."""
        return self.count(*classes) / self.solid()

    def lines(self, name: str) -> np.ndarray:
        """(D,) a share of the lines."""
        return self.once(name, lambda: line_measures(self.batch))

    def repeated(self, name: str) -> np.ndarray:
        """(D,) shares of repeated words."""
        return self.once(
            name, lambda: dict(zip(("twice", "top"), repetition(self.batch), strict=True))
        )

    def run(self) -> np.ndarray:
        """(D,) longest run of one character that is no space; 0 where it is under a fiftieth of it.

        A book has a line of dashes somewhere.
        """
        codes, classes = self.batch.codes, self.batch.classes
        begins = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
        lengths = np.diff(np.append(begins, len(codes)))
        lengths[(classes[begins] == SPACE) | (classes[begins] == SPACE + 1)] = 0
        longest = np.zeros(len(self.batch), np.int64)
        few = lengths > 3
        doc = np.searchsorted(self.batch.starts, begins[few], side="right") - 1
        np.maximum.at(longest, doc, lengths[few])
        return np.where(longest > self.batch.sizes / 50, longest, 0)

    def urls(self) -> np.ndarray:
        """(D,) share of characters inside URLs."""
        out = np.zeros(len(self.batch))
        for i, text in enumerate(self.batch.texts):
            if "://" in text or "www." in text:
                out[i] = sum(len(m[0]) for m in _URL.finditer(text)) / max(1, len(text))
        return out

    def word_length(self) -> np.ndarray:
        """(D,) mean characters of the words of spaced scripts; 0 without any."""
        words = self.batch.words
        spaced = ~words.alone
        count = np.bincount(words.doc, spaced, len(self.batch))
        return np.bincount(words.doc, words.size * spaced, len(self.batch)) / np.maximum(count, 1)

    def placeholders(self) -> np.ndarray:
        """(D,) whether most of a text is filler, or a note about scripts in a short page."""
        return np.array([
            len(text) < 1000 and any(hint in text for hint in _HINTS)
            and _PLACEHOLDER.search(text) is not None
            for text in self.batch.texts
        ], bool)  # fmt: skip

    def languages(self) -> list[str]:
        """The language of each text."""
        name = "languages"
        if name not in self._found:
            self._found[name] = np.array(languages(self.batch), object)
        return self._found[name].tolist()


# A limit's name: the reason that people count by, and the figure of each text.
RULES: dict[str, tuple[str, Callable[[Figures], np.ndarray]]] = {
    "min_chars": ("too_short", lambda f: f.batch.sizes),
    "max_chars": ("too_long", lambda f: f.batch.sizes),
    "min_words": ("few_words", lambda f: f.batch.words.counts),
    "min_letters": ("few_letters", lambda f: f.share(LETTER, DIGIT, HAN, KANA, UNSPACED)),
    "max_symbols": ("symbols", lambda f: f.share(SYMBOL)),
    "max_digits": ("digits", lambda f: f.share(DIGIT)),
    "max_broken": ("broken_characters", lambda f: f.share(BROKEN)),
    "max_run": ("long_run", Figures.run),
    "max_urls": ("urls", Figures.urls),
    "max_word_length": ("long_words", Figures.word_length),
    "max_repeated": ("repetitive", lambda f: f.repeated("twice")),
    "max_top_ngram": ("one_phrase", lambda f: f.repeated("top")),
    "max_repeated_lines": ("repeated_lines", lambda f: f.lines("repeated")),
    "min_stops": ("no_sentences", lambda f: f.lines("stops")),
    "max_bullets": ("bullets", lambda f: f.lines("bullets")),
    "max_ellipses": ("ellipses", lambda f: f.lines("ellipses")),
}


def refused(figures: Figures, form: str = "text") -> list[str | None]:
    """For each text the first reason against it, or None.

    form: text, markdown or code; code is not judged by the rules of prose.
    """
    settings, size = figures.settings, len(figures.batch)
    reasons: list[str | None] = ["empty" if not t.strip() else None for t in figures.batch.texts]
    for name, (reason, make) in RULES.items():
        limit = settings.limit(name)
        if not limit or (form == "code" and name in _PROSE):
            continue
        values = make(figures)
        bad = values < limit if name.startswith("min_") else values > limit
        for i in np.flatnonzero(bad).tolist():
            reasons[i] = reasons[i] or reason
    if settings.languages and form != "code":
        found, wanted = figures.languages(), {*settings.languages, UNKNOWN}
        reasons = [r or (None if found[i] in wanted else "language") for i, r in enumerate(reasons)]
    if settings.placeholders:
        bad = figures.placeholders()
        reasons = [reasons[i] or ("placeholder" if bad[i] else None) for i in range(size)]
    return reasons
