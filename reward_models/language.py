"""Which script a text is written in: enough to tell Chinese, English and mixtures apart."""

from __future__ import annotations

import re

LANGUAGES = ("zh", "en", "mixed", "other")

# Han characters: the unified ideographs with their extensions, the compatibility block, 々 and 〇.
_HAN = re.compile(r"[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+")
_LETTER = re.compile(r"[^\W\d_]")
_KANA = re.compile(r"[\u3040-\u30ff]")
MIXED = 0.1


def language(text: str) -> str:
    """The language of a text by its script: "zh", "en", "mixed" or "other".

    A Han character counts as much as a Latin word. "mixed": both make up at least a tenth of their
    sum. "en": Latin letters, whatever the language. "other": neither, letters of other scripts are
    the majority, or at least a tenth of what would be "zh" is kana (Japanese).
    """
    han, words = len(_HAN.findall(text)), _LATIN.findall(text)
    latin = sum(map(len, words))
    foreign = len(_LETTER.findall(text)) - han - latin
    known = han + len(words)
    if not known or foreign > han + latin:
        return "other"
    if min(han, len(words)) >= MIXED * known:
        return "mixed"
    if han > len(words):
        return "other" if len(_KANA.findall(text)) >= MIXED * han else "zh"
    return "en"
