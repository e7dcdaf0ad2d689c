"""Personal data: found by form, checked by arithmetic, replaced by what it was.

An identity number must pass its check digit (GB 11643, ISO 7064 MOD 11-2) and hold a date, a card
number the Luhn check (ISO/IEC 7812), an address must be one: numbers of other kinds stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from align.cleaning.tokens import Batch

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9](?:[\w.+-]{0,62}[A-Za-z0-9_])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z]{2,24}(?![\w-])",
    re.ASCII,
)
_ID_NUMBER = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:18|19|20)\d{9}[0-9Xx](?![0-9A-Za-z])", re.ASCII
)
# Digits in one piece, or in fours with one separator; 4-6-5 as on some cards.
_CARD = re.compile(
    r"(?<![0-9A-Za-z.-])(?:[3-6]\d{12,18}"
    r"|[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|3[47]\d{2}([ -])\d{6}\2\d{5}"
    r")(?![0-9A-Za-z]|[.-]\d)",
    re.ASCII,
)
_PHONE = re.compile(
    r"(?<![0-9A-Za-z_./=-])(?:"
    # China: mobile with or without +86, landline with its area code, 400 and 800 numbers.
    r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
    r"|(?:(?:\+|00)86[ -]?)?\(?0?(?:10|2\d|[3-9]\d{2})\)?-\d{7,8}(?:-\d{1,6})?"
    r"|\(0\d{2,3}\)[ ]?\d{7,8}"
    r"|[48]00[ -]\d{3}[ -]\d{4}|[48]00-?\d{7}"
    # North America, and any number with its country code.
    r"|(?:\+?1[ .-])?\(\d{3}\)[ ]?\d{3}[ .-]\d{4}|(?:\+?1[ .-])?[2-9]\d{2}[.-][2-9]\d{2}[.-]\d{4}"
    r"|\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r")(?![0-9A-Za-z_]|[-./]\d)",
    re.ASCII,
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# Characters before a hint in which what it belongs to may begin: the longest name before an @.
_AROUND = 64
# What a text with such data holds somewhere, looked for first: these begin with a digit or a sign,
# which the engine finds fast, and the patterns above with what must not stand before them.
_HINTS = {
    "email": re.compile("@"),
    "id_number": re.compile(r"\d{17}", re.ASCII),
    "bank_card": re.compile(r"\d{13}|\d{4}[ -]\d{4}[ -]|3[47]\d\d[ -]\d{6}", re.ASCII),
    "phone": re.compile(r"(?:\d[ ().-]{0,2}){7}", re.ASCII),
    "ip": re.compile(r"\d\.\d{1,3}\.\d|::|:[0-9A-Fa-f]{1,4}:", re.ASCII),
}


def likely(batch: Batch) -> dict[str, np.ndarray]:
    """For each kind, (D,) bool: whether a text may hold it, by where its digits and signs stand.

    Seven digits within twelve characters for a telephone number, thirteen within seventeen for a
    card, and so on; what the patterns look for is among these.
    """
    codes = batch.codes
    digit = (codes >= 0x30) & (codes <= 0x39)
    digits = np.flatnonzero(digit)
    dots, colons = (np.flatnonzero(codes == ord(sign)) for sign in ".:")
    dots = dots[(dots > 0) & (dots < len(codes) - 1)]
    dots = dots[digit[dots - 1] & digit[dots + 1]]

    def near(places: np.ndarray, count: int, span: int) -> np.ndarray:
        """Texts in which `count` of the places lie within `span` characters."""
        found = np.zeros(len(batch), bool)
        first = places[: max(0, len(places) - count + 1)]
        close = first[places[count - 1 :] - first < span]
        found[batch.doc[close]] = True
        return found

    return {
        "email": near(np.flatnonzero(codes == ord("@")), 1, 1),
        "id_number": near(digits, 17, 17),
        "bank_card": near(digits, 13, 17),
        "phone": near(digits, 7, 7 + 6 * 2),
        "ip": near(dots, 2, 5) | near(colons, 2, 6),
    }


def id_number(text: str) -> bool:
    """Whether 18 characters are a Chinese identity number: date and check digit are right.

    The check digit c makes Σ wᵢ·dᵢ + c ≡ 1 (mod 11), X standing for 10.
    """
    month, day = int(text[10:12]), int(text[12:14])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(w * int(d) for w, d in zip(_WEIGHTS, text, strict=False))
    return "10X98765432"[total % 11] == text[17].upper()


def bank_card(text: str) -> bool:
    """Whether 13 to 19 digits pass the Luhn check and are not one digit again and again."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d)
               for i, d in enumerate(reversed(digits))]  # fmt: skip
    return sum(doubled) % 10 == 0


def phone(text: str) -> bool:
    """Whether a number has as many digits as a telephone number (ITU E.164: 7 to 15)."""
    return 7 <= sum(c.isdigit() for c in text) <= 15


def ip(text: str) -> bool:
    """Whether an address is one of the public internet, and so somebody's."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # a::b is an address too, and a name in C++.
    short = address.version == 6 and text.count(":") < 3
    return address.is_global and not address.is_multicast and not short


def _always(text: str) -> bool:
    return True


_KINDS: dict[str, tuple[tuple[re.Pattern[str], ...], Callable[[str], bool]]] = {
    "email": ((_EMAIL,), _always),
    "id_number": ((_ID_NUMBER,), id_number),
    "bank_card": ((_CARD,), bank_card),
    "phone": ((_PHONE,), phone),
    "ip": ((_IPV4, _IPV6), ip),
}


def redact(text: str, kinds: Iterable[str], found: Counter[str]) -> str:
    """The text with personal data of these kinds as <EMAIL>, <PHONE> …; counts what it replaced."""
    wanted = set(kinds)
    # Longer numbers first: a card holds what looks like a telephone number.
    for kind, (patterns, check) in _KINDS.items():
        if kind in wanted and _HINTS[kind].search(text):
            for pattern in patterns:
                text = _replaced(text, pattern, kind, check, found)
    return text


def _replaced(
    text: str, pattern: re.Pattern[str], kind: str, check: Callable[[str], bool],
    found: Counter[str],
) -> str:  # fmt: skip
    """The text with what matches around the hints replaced."""
    out, done = [], 0
    for hint in _HINTS[kind].finditer(text):
        at, last = max(done, hint.start() - _AROUND), hint.end()
        # Past the hint nothing begins that belongs to it; what is longer than twice that is none.
        while match := pattern.search(text, at, last + 2 * _AROUND):
            if match.start() > last:
                break
            out += [text[done : match.start()], _mark(match, kind, check, found)]
            done = at = match.end()
    return "".join([*out, text[done:]]) if out else text


def _mark(
    match: re.Match[str], kind: str, check: Callable[[str], bool], found: Counter[str]
) -> str:
    if not check(match[0]) or (kind == "ip" and _is_heading(match)):
        return match[0]
    found[kind] += 1
    return f"<{kind.upper()}>"


def _small(address: str) -> bool:
    parts = address.split(".")
    return len(parts) == 4 and all(int(part) < 40 for part in parts)


def _is_heading(match: re.Match[str]) -> bool:
    """Whether a line begins with four numbers and a full stop or space, as section 4.2.2.1 does."""
    text, start, end = match.string, match.start(), match.end()
    alone = not text[text.rfind("\n", 0, start) + 1 : start].strip(" \t#*")
    return alone and (text[end : end + 1] == "." or _small(match[0]))
