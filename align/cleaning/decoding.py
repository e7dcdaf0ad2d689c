"""Bytes to text: which encoding a file has, when it is not UTF-8."""

from __future__ import annotations

import codecs
import re

from align.cleaning.optional import package

# The characters that make up two thirds of running Chinese text, in both forms: bytes decoded with
# the right code page hit them often, with the wrong one hardly ever.
_COMMON = frozenset(
    "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小"
    "么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长"
    "這個來說們為時會著過學對裡後麼沒於還發當無開見經頭動兩長現點實體業與應間問體員區電話機"
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{3,20})""", re.IGNORECASE)
# What web pages call these code pages is a subset of what their bytes are.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso-8859-1": "cp1252",
          "latin-1": "cp1252", "ascii": "utf-8"}  # fmt: skip
_CONTROL = bytes(range(9)) + bytes((11, *range(14, 27), *range(28, 32)))


def by_mark(head: bytes) -> str | None:
    """The encoding that a byte order mark says, or that UTF-16's zero bytes give away."""
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    sample = head[: len(head) // 2 * 2]
    if len(sample) < 16 or b"\0" not in sample:
        return None
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    scores = {
        name: _familiar(sample.decode(name, "replace")) for name in ("utf-16-le", "utf-16-be")
    }
    likelier = max(scores, key=lambda name: scores[name])
    if scores[likelier] > 0.25 and scores[likelier] > 3 * min(scores.values()):
        return likelier
    # Line feeds and spaces have a zero byte in every script; text has no NUL character.
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > 0.02 * half and others <= 0.05 * zeros:
            text = sample.decode(name, "replace")
            if (
                text.count("\ufffd") + sum(c < " " and c not in "\t\r\n" for c in text)
                < len(text) / 50
            ):
                return name
    return None


def _familiar(text: str) -> float:
    """The share of printable ASCII and of the commonest Han characters."""
    return sum(c in _COMMON or " " <= c <= "~" or c == "\n" for c in text) / max(1, len(text))


def is_binary(head: bytes) -> bool:
    """Whether bytes are no text in any encoding: many control bytes, not UTF-16 or 32."""
    if not head or by_mark(head):
        return False
    controls = len(head) - len(head.translate(None, _CONTROL))
    return (head.count(0) > 0 and controls > 0.001 * len(head)) or controls > 0.05 * len(head)


def declared(html: bytes) -> str | None:
    """The code page that a page's head names, widened to what browsers read it as."""
    match = _META.search(html[:4096])
    if match is None:
        return None
    name = match[1].decode("ascii", "ignore").lower()
    name = _WIDER.get(name, name)
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


def guess(sample: bytes) -> str | None:
    """The likeliest encoding of bytes that are not UTF-8; None where none fits."""
    best, name = 0.0, None
    for candidate in ("gb18030", "big5hkscs"):
        text = _decode_most(sample, candidate)
        if text is None:
            continue
        wide = [c for c in text if c > "\x7f"]
        share = sum(c in _COMMON for c in wide) / max(1, len(wide))
        if share > best:
            best, name = share, candidate
    if best >= 0.12:
        return name
    found = package("charset_normalizer", "encoding", "auto").from_bytes(sample[:65536]).best()
    if found is None:
        return name if best >= 0.04 else None
    return "cp1252" if _is_western(sample, found.encoding) else found.encoding


def _is_western(sample: bytes, found: str) -> bool:
    """Whether another Latin code page was taken for Windows-1252: the language tells."""
    if found == "cp1252" or not re.match(r"cp125[0478]|iso8859|latin|mac_|cp[48]\d\d|hp_", found):
        return False
    text = _decode_most(sample[:4096], "cp1252")
    if text is None:
        return False
    found_language = package("py3langid", "encoding", "auto").classify(text)[0]
    return found_language in ("en", "fr", "de", "es", "it", "pt", "nl", "da", "sv", "no", "nb",
                              "fi", "is", "ca", "gl", "eu", "lb", "af")  # fmt: skip


def _decode_most(sample: bytes, name: str) -> str | None:
    """The sample decoded; None when more than a hundredth of it does not decode."""
    text = sample.decode(name, "replace")
    return None if text.count("\ufffd") > 0.01 * len(text) + 1 else text


def decode(raw: bytes, encoding: str = "auto", hint: str | None = None) -> str | None:
    """Text of bytes: by mark, as UTF-8, as `encoding` or `hint` say, or as they look; None: no way.

    A byte order mark is left out. Line ends become line feeds.
    """
    given = (by_mark(raw[:65536]) or "utf-8") if encoding == "auto" else encoding
    text = decode_all(raw, given)
    if text is None and hint is not None:
        text = decode_all(raw, hint)
    if text is None and encoding == "auto":
        found = guess(raw[: 1 << 20])
        if found is not None and found not in (given, hint):
            text = decode_all(raw, found)
            text = _decode_most(raw, found) if text is None else text
    if text is None:
        return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decode_all(raw: bytes, name: str) -> str | None:
    """The bytes decoded; None for an encoding that is not theirs, or is none."""
    try:
        return raw.decode(name)
    except (UnicodeDecodeError, LookupError):
        return None
