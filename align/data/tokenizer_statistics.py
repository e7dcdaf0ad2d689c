"""How well a tokenizer fits texts: by language, beside other tokenizers, and token by token."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# First and last code points of the letters that tell languages apart.
_SCRIPTS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("latin", ((0x41, 0x24F), (0x1E00, 0x1EFF))),
    ("zh", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))),
    ("ja", ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D))),
    ("ko", ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3))),
    ("cyrillic", ((0x400, 0x52F),)),
    ("arabic", ((0x600, 0x6FF), (0x750, 0x77F))),
)
LANGUAGES = (*(name for name, _ in _SCRIPTS), "other")
_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")
# From this share of kana on a text in Han and kana is Japanese.
_KANA = 0.1
_SHOWN_CHARACTERS = 300


@dataclass
class Fit:
    """Sums over texts; the rates are properties of `rates`."""

    texts: int = 0
    characters: int = 0
    size: int = 0
    tokens: int = 0
    fallback: int = 0
    unknown: int = 0
    changed: int = 0
    used: set[int] = field(default_factory=set)

    def add(self, other: Fit) -> None:
        """Take in another's sums."""
        for name in ("texts", "characters", "size", "tokens", "fallback", "unknown", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.used |= other.used

    def rates(self, vocabulary: int) -> dict[str, float]:
        """Figures by name; vocabulary: entries in all."""
        tokens = max(self.tokens, 1)
        return {
            "chars_per_token": self.characters / tokens,
            "fertility": self.tokens / max(self.characters, 1),
            "bytes_per_token": self.size / tokens,
            "byte_fallback_share": self.fallback / tokens,
            "unknown_rate": self.unknown / tokens,
            "vocabulary_coverage": len(self.used) / max(vocabulary, 1),
            "tokens": float(self.tokens),
        }


def language_of(text: str) -> str:
    """Name in `LANGUAGES` of most of a text's letters; "other" where there are none.

    Han is "zh" unless kana stand beside it; "latin" is every language in Latin letters.
    """
    counts: Counter[str] = Counter()
    for char, times in Counter(text).items():
        if char.isalpha():
            point = ord(char)
            found = (n for n, spans in _SCRIPTS if any(a <= point <= b for a, b in spans))
            counts[next(found, "other")] += times
    if counts["ja"] >= _KANA * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh", 0)
    best = max(LANGUAGES, key=lambda name: counts[name])
    return best if counts[best] else "other"


class Meter:
    """Measures one tokenizer. exact: refuse one that changes a text, with ValueError."""

    def __init__(self, tokenizer: Any, *, exact: bool = True) -> None:
        self.tokenizer, self.exact = tokenizer, exact
        self._byte_ids = byte_ids(tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        # GPT-2 names a token for what it never meets.
        self._unknown = None if unknown == getattr(tokenizer, "eos_token_id", None) else unknown

    def fit(self, text: str) -> Fit:
        """Sums over one text."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        same = self.tokenizer.decode(ids, skip_special_tokens=False) == text
        if self.exact and not same:
            raise ValueError(f"the tokenizer changes {text[:80]!r}")
        return Fit(
            1, len(text), len(text.encode()), len(ids),
            sum(i in self._byte_ids for i in ids), ids.count(self._unknown), int(not same),
            set(ids),
        )  # fmt: skip


def byte_ids(tokenizer: Any) -> set[int]:
    """Ids of tokens that are part of a character: named bytes, or no whole UTF-8."""
    if not hasattr(tokenizer, "get_vocab"):
        return set()
    vocab = tokenizer.get_vocab()
    named = {i for token, i in vocab.items() if _BYTE_NAME.fullmatch(token)}
    if len(named) == 256:
        return named
    texts = tokenizer.batch_decode([[i] for i in vocab.values()])
    return {i for i, text in zip(vocab.values(), texts, strict=True) if "\ufffd" in text}


def compression(tokenizer: Any, texts: Iterable[str]) -> dict[str, float]:
    """How well a tokenizer fits texts: characters and bytes per token, share of byte tokens.

    Raises ValueError when a text does not survive decode(encode(text)): that is never acceptable.
    """
    meter, total = Meter(tokenizer), Fit()
    for text in texts:
        total.add(meter.fit(text))
    return total.rates(len(tokenizer) if hasattr(tokenizer, "__len__") else 0)


def compare(
    tokenizers: Mapping[str, Any], texts: Iterable[str], exact: Sequence[str] = ()
) -> dict[str, dict[str, Fit]]:
    """{tokenizer: {language: sums}} over texts, which are read once; "all" is every language.

    exact: names of the tokenizers that must not change a text (ValueError).
    """
    meters = {name: Meter(t, exact=name in exact) for name, t in tokenizers.items()}
    sums: dict[str, dict[str, Fit]] = {name: {"all": Fit()} for name in meters}
    for text in texts:
        language = language_of(text)
        for name, meter in meters.items():
            one = meter.fit(text)
            sums[name]["all"].add(one)
            sums[name].setdefault(language, Fit()).add(one)
    return sums


def shown_tokens(tokenizer: Any, text: str) -> list[tuple[str, str]]:
    """(text, name and id) of each token of the start of a text.

    A token that is part of a character shows the character once, then "·".
    """
    text = text[:_SHOWN_CHARACTERS]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    out, end = [], 0
    triples = zip(names, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for name, number, (start, stop) in triples:
        out.append((visible(text[max(start, end) : stop]) or "·", f"{name} · {number}"))
        end = max(end, stop)
    return out


def visible(text: str) -> str:
    """A text with signs for white space and control characters."""
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(
        signs.get(c) or (f"U+{ord(c):04X}" if unicodedata.category(c) in ("Cc", "Cf") else c)
        for c in text
    )
