"""What a code point is, as tables over all of Unicode that numpy looks up at once."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

# Classes of a character. HAN, KANA and UNSPACED are words by themselves.
OTHER, SPACE, NEWLINE, LETTER, DIGIT, HAN, KANA, UNSPACED, STOP, PUNCT, SYMBOL, BROKEN = range(12)
CLASSES = 12
# Scripts: index into SCRIPTS. "" is shared by all (digits, punctuation).
SCRIPTS = (
    "", "latin", "han", "kana", "hangul", "cyrillic", "greek", "arabic", "hebrew", "devanagari",
    "thai", "bengali", "tamil", "georgian", "armenian", "ethiopic", "khmer", "lao", "burmese",
    "other",
)  # fmt: skip
_BLOCKS = (
    (0x41, 0x24F, "latin"), (0x370, 0x3FF, "greek"), (0x400, 0x52F, "cyrillic"),
    (0x531, 0x58F, "armenian"), (0x591, 0x5F4, "hebrew"), (0x600, 0x6FF, "arabic"),
    (0x750, 0x77F, "arabic"), (0x8A0, 0x8FF, "arabic"), (0x900, 0x97F, "devanagari"),
    (0x980, 0x9FF, "bengali"), (0xB80, 0xBFF, "tamil"), (0xE01, 0xE7F, "thai"),
    (0xE80, 0xEFF, "lao"), (0x1000, 0x109F, "burmese"), (0x10A0, 0x10FF, "georgian"),
    (0x1100, 0x11FF, "hangul"), (0x1200, 0x139F, "ethiopic"), (0x1780, 0x17FF, "khmer"),
    (0x1E00, 0x1EFF, "latin"), (0x1F00, 0x1FFF, "greek"), (0x2E80, 0x2FDF, "han"),
    (0x3005, 0x3007, "han"), (0x3041, 0x30FF, "kana"), (0x3130, 0x318F, "hangul"),
    (0x31F0, 0x31FF, "kana"), (0x3400, 0x4DBF, "han"), (0x4E00, 0x9FFF, "han"),
    (0xAC00, 0xD7A3, "hangul"), (0xF900, 0xFAFF, "han"), (0xFB50, 0xFDFF, "arabic"),
    (0xFE70, 0xFEFC, "arabic"), (0xFF21, 0xFF5A, "latin"), (0xFF66, 0xFF9D, "kana"),
    (0x20000, 0x323AF, "han"),
)  # fmt: skip
_UNSPACED = ("thai", "lao", "khmer", "burmese")
STOPS = frozenset(".!?。！？…．؟।॥。‼⁇⁈⁉")
_HIGHEST = 0x110000


@cache
def class_table() -> np.ndarray:
    """(0x110000,) uint8: the class of every code point."""
    table = np.full(_HIGHEST, BROKEN, np.uint8)
    scripts = script_table()
    table[scripts == SCRIPTS.index("han")] = HAN
    # Assigned characters above the third plane are tags and variation selectors.
    for code in (*range(0x33480), *range(0xE0000, 0xE0200)):
        if 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or code >= 0x20000:
            table[code] = OTHER if code >= 0xE0000 else HAN
        elif 0xAC00 <= code <= 0xD7A3:
            table[code] = LETTER
        else:
            table[code] = _class_of(chr(code), SCRIPTS[scripts[code]])
    return table


def _class_of(char: str, script: str) -> int:
    if char in "\n\x00":
        return NEWLINE
    if char.isspace():
        return SPACE
    if char in STOPS:
        return STOP
    category = unicodedata.category(char)
    kind = category[0]
    if kind in "LM" or char == "々":
        if script in ("han", "kana"):
            return HAN if script == "han" else KANA
        return UNSPACED if script in _UNSPACED else LETTER
    if kind == "N":
        return HAN if script == "han" else DIGIT
    if kind == "P":
        return PUNCT
    if kind == "S":
        return BROKEN if char == "\ufffd" else SYMBOL
    return OTHER if category in ("Cf", "Zl", "Zp") else BROKEN


@cache
def script_table() -> np.ndarray:
    """(0x110000,) uint8: the script of every code point, 0 where scripts share it."""
    table = np.zeros(_HIGHEST, np.uint8)
    for low, high, name in _BLOCKS:
        table[low : high + 1] = SCRIPTS.index(name)
    other = SCRIPTS.index("other")
    for code in range(0x20000):
        if table[code]:
            if not chr(code).isalpha() and not unicodedata.combining(chr(code)):
                table[code] = 0 if table[code] != SCRIPTS.index("han") else table[code]
        elif chr(code).isalpha():
            table[code] = other
    return table


@cache
def census_table() -> np.ndarray:
    """(0x110000,) uint8: class · len(SCRIPTS) + script of every code point."""
    return class_table() * np.uint8(len(SCRIPTS)) + script_table()


@cache
def fold_table() -> np.ndarray:
    """(0x110000,) uint32: lower case, and full-width letters and digits as ASCII."""
    table = np.arange(_HIGHEST, dtype=np.uint32)
    for code in range(0x1E944):
        lower = unicodedata.normalize("NFKC", chr(code)).lower()
        if len(lower) == 1 and ord(lower) != code:
            table[code] = ord(lower)
    return table


def code_points(text: str) -> np.ndarray:
    """(len(text),) uint32, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def utf8_sizes(codes: np.ndarray) -> np.ndarray:
    """Bytes that each code point takes in UTF-8."""
    sizes = np.ones(len(codes), np.uint8)
    for limit in (0x80, 0x800, 0x10000):
        sizes += codes >= limit
    return sizes
