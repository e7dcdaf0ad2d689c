"""What the answers' texts themselves give away: near-copies, refusals, escapes, languages.

Every check here runs for every group of an import and has a cheap way out for the usual text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from align.records import normalise_text
from reward_models.language import language

NEAR_IDENTICAL = 0.9
ESCAPED = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,5}|#x[0-9a-fA-F]{1,5});")
# How an answer begins that declines to give one.
REFUSALS = (
    "i'm sorry, but", "i am sorry, but", "i'm sorry, i", "sorry, but i", "i apologize, but",
    "i can't assist", "i cannot assist", "i can't help with", "i cannot help with",
    "i'm unable to", "i am unable to", "i cannot provide", "i can't provide", "i cannot fulfill",
    "i won't ", "as an ai", "as a language model", "as a large language model",
    "抱歉，", "抱歉,", "很抱歉", "非常抱歉", "对不起，", "对不起,", "我无法", "我不能",
    "作为一个ai", "作为一个人工智能", "作为人工智能", "作为一个语言模型", "作为ai",
)  # fmt: skip
_BEGIN = {c for r in REFUSALS for c in (r[0], r[0].upper())} | {" ", "\n", "\t", "\u3000", "\r"}
# How many times longer the longer answer is: upper ends of the bins.
LENGTH_EDGES = (1.1, 1.5, 2.0, 3.0)
LENGTH_BINS = ("≤ 1.1", "1.1–1.5", "1.5–2", "2–3", "> 3")
_LETTER, _HAN = re.compile(r"[A-Za-z]"), re.compile(r"[\u4e00-\u9fff]")
# Nothing but Han characters, digits, space and the usual marks: no need to count.
_CHINESE = re.compile(r"[\u4e00-\u9fff\s\d\u3001-\u3002\u300a-\u3011\uff01-\uff20!-@‘’“”…—·、]+")
# Long texts are told by their beginning.
_SAMPLE = 120


def script(text: str) -> str:
    """``language`` of the text's beginning: "zh", "en", "mixed" or "other"."""
    text = text[:_SAMPLE]
    if text.isascii():
        return "en" if _LETTER.search(text) else "other"
    if _CHINESE.fullmatch(text) and _HAN.search(text):
        return "zh"
    return language(text)


def speaks_other(
    prompt: str, texts: Sequence[str], answers: Counter[str], prompts: Counter[str]
) -> bool:
    """Whether an answer is Chinese and the prompt's last turn English, or the reverse.

    answers, prompts: count how many have each language.
    """
    asked = script(prompt)
    prompts[asked] += 1
    other = {"zh": "en", "en": "zh"}.get(asked)
    found = [script(text) for text in texts]
    for name in found:
        answers[name] += 1
    return other in found


def is_refusal(text: str) -> bool:
    """Whether an answer begins like a refusal, in English or Chinese."""
    if text[:1] not in _BEGIN:
        return False
    return text[:48].lstrip().lower().replace("’", "'").startswith(REFUSALS)


def is_escaped(text: str) -> bool:
    """Whether the text holds HTML character references, such as ``&lt;`` or ``&#39;``."""
    return "&" in text and ESCAPED.search(text) is not None


def near_identical(texts: Sequence[str]) -> bool:
    """Whether two answers have a ``similarity`` of at least 0.9 and about the same length."""
    for a, b in combinations(texts, 2):  # a generator costs more than the usual answer
        if _alike(a, b) and similarity(a, b) >= NEAR_IDENTICAL:
            return True
    return False


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of character 4-gram sets of the normalised texts, in [0, 1]."""
    a, b = normalise_text(a), normalise_text(b)
    if a == b:
        return 1.0
    first, second = ({t[i : i + 4] for i in range(max(1, len(t) - 3))} for t in (a, b))
    return len(first & second) / len(first | second)


def _alike(a: str, b: str) -> bool:
    """Whether two texts may be near-copies: spares nearly all pairs the n-grams.

    Half of twelve pieces of the shorter one, eight characters each, must stand in the longer one.
    (Texts that differ in the spacing of every word count as different.)
    """
    a, b = a.strip(), b.strip()
    if len(a) > len(b):
        a, b = b, a
    # A tenth more n-grams, and some room for white space that normalising takes away.
    if len(a) < NEAR_IDENTICAL * len(b) - 8:
        return False
    if len(a) < 40:
        return True
    a, b = a.lower(), b.lower()
    step, missing = (len(a) - 8) / 11, 0
    for k in range(12):
        start = int(k * step)
        missing += a[start : start + 8] not in b
        if missing > 6:
            return False
    return True


def length_bin(a: int, b: int) -> int:
    """The bin of two lengths in ``LENGTH_BINS``, by how many times longer the longer one is."""
    low, high = (a, b) if a < b else (b, a)
    return bisect_left(LENGTH_EDGES, high / max(low, 1))


class Repeated:
    """Short answers that stand under several prompts; remembers two numbers an answer."""

    def __init__(self, longest: int = 300, limit: int = 200_000) -> None:
        """longest: characters of what counts as short. limit: how many answers are remembered."""
        self.longest, self.limit = longest, limit
        self.prompts: dict[int, int] = {}
        self.times: Counter[str] = Counter()

    def short(self, texts: Sequence[str]) -> list[str]:
        """Those that are short."""
        return [text for text in texts if len(text) <= self.longest]

    def again(self, text: str, prompt: int) -> bool:
        """Whether this short answer stood under another prompt before. prompt: its hash."""
        if len(text) > self.longest:
            return False
        key = hash(text)
        first = self.prompts.get(key)
        if first is None:
            if len(self.prompts) < self.limit:
                self.prompts[key] = prompt
            return False
        if first == prompt:
            return False
        self.times[text] += 1
        return True

    def most(self, n: int = 10) -> list[dict[str, object]]:
        """The most frequent ones: [{"text", "times"}], the first time counted too."""
        found = sorted(self.times.items(), key=lambda item: (-item[1], item[0]))
        return [{"text": text[:120], "times": times + 1} for text, times in found[:n]]
