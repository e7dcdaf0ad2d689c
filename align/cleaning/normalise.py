"""Repairs of a batch of texts joined by NUL, each one or two passes in C over all of them.

Every repair maps a joined string to a joined string with as many NULs, so that a text's result
never depends on its neighbours.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache

import numpy as np

from align.cleaning.chars import code_points
from align.cleaning.optional import package
from align.cleaning.settings import Settings

END = "\0"
# NFKC would turn these into ASCII or into several characters; Chinese text needs them as they are:
# full-width punctuation, the ellipsis, circled and parenthesised numbers, list marks.
KEEP_FROM_NFKC = "！＂＃％＆＇（）＊，－．／：；＜＝＞？＠［＼］＿｛｜｝～｡｢｣､…‥⋯　" + "".join(
    map(chr, (*range(0x2460, 0x2500), *range(0x3200, 0x3300)))
)
# Zero-width space, word joiner, byte order mark, soft hyphen, bidirectional marks and overrides.
INVISIBLE = "\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb"
_INVISIBLE = re.compile(f"[{INVISIBLE}\x80-\x84\x86-\x9f\ud800-\udfff]")
_CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f]")
_JOINERS = re.compile("[\u200c\u200d]")
_KEPT = re.compile(f"([{re.escape(KEEP_FROM_NFKC)}]+)")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_STRANGE_SPACE = re.compile(
    "[\t\x0b-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
)
_LINE_BREAKS = re.compile("[\x0b-\r\x85\u2028\u2029]")

# UTF-8 read as Latin-1 or a Windows code page: a letter of its upper half before another sign of
# it. Cyrillic and Greek letters are what other code pages make of the same bytes.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
    "|[\u0420\u0421\u0413\u0412][\u0400-\u045f\u00a0-\u00bf\u2018-\u2026]{2}|\u00ef\u00bf\u00bd"
)
# What UTF-8 punctuation (。、，！“) reads as in GBK; none of them is common in real text.
_MOJIBAKE_GBK = re.compile("[銆锛鈥紝]")


class _Present:
    """Which code points a joined text holds: a pattern none of whose signs are there is skipped."""

    def __init__(self, text: str) -> None:
        self.table = np.zeros(0x110000, bool)
        self.table[code_points(text)] = True

    def __call__(self, pattern: re.Pattern[str], *ranges: tuple[int, int]) -> bool:
        """Whether a character of a set pattern, or of the ranges (ends included), is there."""
        if not ranges:
            return bool(self.table[_signs(pattern)].any())
        return any(self.table[low : high + 1].any() for low, high in ranges)


@cache
def _signs(pattern: re.Pattern[str]) -> np.ndarray:
    """The code points that a pattern of one set of characters matches."""
    every = "".join(map(chr, range(0x11000)))
    return np.fromiter((ord(c) for c in pattern.findall(every)), np.int64)


def mojibake(text: str, settings: Settings) -> str:
    """Texts decoded with the wrong code page, decoded again; width and quotes stay."""
    present = _Present(text)
    if not (
        (present(_MOJIBAKE, (0xC2, 0xF4), (0x412, 0x421)) and _MOJIBAKE.search(text))
        or (present(_MOJIBAKE_GBK) and _MOJIBAKE_GBK.search(text))
    ):
        return text
    parts = text.split(END)
    for i, part in enumerate(parts):
        if _MOJIBAKE.search(part):
            part = _ftfy()(part)
        parts[i] = _from_gbk(part) if _MOJIBAKE_GBK.search(part) else part
    return END.join(part.replace(END, "") for part in parts)


@cache
def _ftfy() -> Callable[[str], str]:
    ftfy = package("ftfy", "fix_mojibake", True, without="--no-fix_mojibake")
    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False,
        normalization=None, remove_control_chars=False, fix_line_breaks=False, unescape_html=False,
        remove_terminal_escapes=True, explain=False,
    )  # fmt: skip
    return lambda text: ftfy.fix_text(text, config)


def _from_gbk(text: str) -> str:
    """UTF-8 that was read as GBK; the text itself unless all of a line's bytes are UTF-8."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        try:
            again = line.encode("gb18030").decode("utf-8")
        except UnicodeError:
            continue
        # Reading UTF-8 (3 bytes a character) as GBK (2 bytes) makes a text half as long again.
        if len(again) < len(line):
            lines[i] = again
    return "\n".join(lines)


def entity(text: str, settings: Settings) -> str:
    """HTML entities become their characters."""
    if "&" not in text:
        return text
    return _ENTITY.sub(lambda m: html.unescape(m[0]).replace(END, ""), text)


def unicode_form(text: str, settings: Settings) -> str:
    """NFC, or NFKC around the characters that must stay (full-width punctuation)."""
    if settings.normalise == "nfc":
        return unicodedata.normalize("NFC", text)
    if unicodedata.is_normalized("NFKC", text):
        return text
    parts = _KEPT.split(text)
    parts[::2] = [unicodedata.normalize("NFKC", part) for part in parts[::2]]
    return "".join(parts)


def invisible(text: str, settings: Settings) -> str:
    """Without control and zero-width characters; joiners stay inside emoji and Indic words."""
    present = _Present(text)
    if present(_LINE_BREAKS):
        text = _LINE_BREAKS.sub("\n", text.replace("\r\n", "\n"))
    if present(_INVISIBLE):
        text = _INVISIBLE.sub("", text)
    return _JOINERS.sub(_joiner, text) if present(_JOINERS) else text


def control(text: str, settings: Settings) -> str:
    """Without the control characters of ASCII; tabs and line ends stay."""
    return _CONTROL.sub("", text) if _Present(text)(_CONTROL) else text


def _joiner(match: re.Match[str]) -> str:
    text, at = match.string, match.start()
    around = [text[i] if 0 <= i < len(text) else " " for i in (at - 1, at + 1)]
    # Between Han, Latin or spaces a joiner does nothing; elsewhere it changes what is shown.
    idle = any(c.isspace() or c.isascii() or "\u3000" <= c <= "\u9fff" for c in around)
    return "" if idle else match.group()


_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af"
_HAN_CHAR = re.compile(f"[{_HAN}]")
_WIDE = str.maketrans(",!?;:()", "，！？；：（）")
_HALF = {ord(w): h for w, h in zip("，！？；：（）．", ",!?;:().", strict=True)}
# Patterns begin with the mark itself, which the engine looks for fast; what stands before it comes
# after. A mark before a letter or digit stays: times (12:30), numbers (1,000), code.
_AFTER_HAN = re.compile(rf"[,!?;:](?<=[{_HAN}”』」）].)(?=[\s{_HAN}“『「（\0]|$)")
_HAN_PARENS = re.compile(rf"\((?=[{_HAN}])([^()\n\0]{{1,80}})(?<=[{_HAN}])\)")
_HAN_PERIOD = re.compile(rf"\.(?<=[{_HAN}]{{2}}.)(?=[\n\0{_HAN}]|$)")
_BETWEEN_LATIN = re.compile(r"[，！？；：](?<=[A-Za-z].)(?= ?(?:[A-Za-z\n\0]|\Z))")
_WIDE_DOTS = re.compile(r"[。．]{3,}")
_DOTS = re.compile(r"…+|\.{3,}")
_DASHES = re.compile(rf"(?:--+|—+)(?=[{_HAN}])")
_SAME_SIGN = str.maketrans({"､": "、", "｡": "。", "｢": "「", "｣": "」", "‥": "…", "⋯": "…",
                            "‐": "-", "‑": "-", "❛": "‘", "❜": "’", "❝": "“", "❞": "”",
                            "″": '"', "＂": '"', "＇": "'", "〝": "“", "〞": "”"})  # fmt: skip
_RARE_SIGN = re.compile("[" + "".join(map(chr, _SAME_SIGN)) + "]")


def punctuation(text: str, settings: Settings) -> str:
    """One form of each mark: full width after Han, half width between Latin letters."""
    present = _Present(text)
    if present(_RARE_SIGN):
        text = _RARE_SIGN.sub(lambda m: m[0].translate(_SAME_SIGN), text)
    if present(_BETWEEN_LATIN, (0xFF01, 0xFF1F)):
        text = _BETWEEN_LATIN.sub(lambda m: m[0].translate(_HALF), text)
    if present(_WIDE_DOTS, (0x3002, 0x3002), (0xFF0E, 0xFF0E)):
        text = _WIDE_DOTS.sub("……", text)
    if not present(_HAN_CHAR, (0x3400, 0x9FFF), (0x20000, 0x323AF)):
        return text
    # Every pattern below needs a Han character beside the mark: other texts are left out.
    codes = np.append(code_points(text), np.uint32(0))
    han = ((codes >= 0x3400) & (codes <= 0x9FFF)) | (codes >= 0x20000)
    ends = np.flatnonzero(codes == 0)
    some = np.add.reduceat(han, np.append(0, ends[:-1] + 1), dtype=np.int64) > 0
    if some.all():
        return _chinese_marks(text)
    parts = text.split(END)
    chosen = np.flatnonzero(some).tolist()
    fixed = _chinese_marks(END.join(parts[i] for i in chosen)).split(END)
    for i, part in zip(chosen, fixed, strict=True):
        parts[i] = part
    return END.join(parts)


def _chinese_marks(text: str) -> str:
    text = _DOTS.sub(lambda m: _after_han(m, "……"), text)
    text = _AFTER_HAN.sub(lambda m: m[0].translate(_WIDE), text)
    text = _HAN_PARENS.sub(r"（\1）", text)
    text = _HAN_PERIOD.sub("。", text)
    return _DASHES.sub(lambda m: _after_han(m, "——"), text)


def _after_han(match: re.Match[str], mark: str) -> str:
    before = match.string[match.start() - 1 : match.start()]
    return mark if _HAN_CHAR.match(before) else match[0]


_STRAIGHT = str.maketrans("‘’“”„‟«»", '\'\'""""""')
_OPENS = re.compile(r"(^|[\s(\[{（\u3000-\u9fff\0])([\"'])(?=\S)", re.MULTILINE)


def quotes(text: str, settings: Settings) -> str:
    """All quotation marks straight, or straight ones curled by what stands before them."""
    if settings.quotes == "straight":
        return text.translate(_STRAIGHT)
    parts = [_curl(part) if '"' in part or "'" in part else part for part in text.split(END)]
    return END.join(parts)


def _curl(text: str) -> str:
    """Double marks open and close in turn within a paragraph; single ones by what is before."""
    lines = text.split("\n")
    for i, line in enumerate(lines):
        pieces = line.split('"')
        if len(pieces) > 1 and len(pieces) % 2:
            line = "".join(
                piece + ("" if k == len(pieces) - 1 else "“”"[k % 2])
                for k, piece in enumerate(pieces)
            )
        line = re.sub(r"(?<=\w)'", "’", re.sub(r"(?<!\w)'(?=\w)", "‘", line))
        lines[i] = line
    return "\n".join(lines)


def white_space(text: str, settings: Settings) -> str:
    """Runs of spaces as one, no space at the ends of lines, at most one empty line."""
    if _Present(text)(_STRANGE_SPACE):
        text = _STRANGE_SPACE.sub(" ", text)
    before = codes = np.concatenate(([0], code_points(text), [0]))
    space = codes == _SPACE
    codes = _without(codes, space[1:] & space[:-1])
    space, border = codes == _SPACE, (codes == _FEED) | (codes == 0)
    codes = _without(codes, space[1:] & border[:-1])
    space, border = codes == _SPACE, (codes == _FEED) | (codes == 0)
    codes = _without(codes, space[:-1] & border[1:], 0)
    feed = codes == _FEED
    codes = _without(codes[2:], feed[2:] & feed[1:-1] & feed[:-2], 0, codes[:2])
    for _ in range(2):  # there are two line ends in a row at most by now
        feed, end = codes == _FEED, codes == 0
        codes = _without(codes, feed[1:] & end[:-1])
        feed, end = codes == _FEED, codes == 0
        codes = _without(codes, feed[:-1] & end[1:], 0)
    if len(codes) == len(before):
        return text
    return codes[1:-1].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


_SPACE, _FEED = 32, 10


def _without(
    codes: np.ndarray, gone: np.ndarray, first: int = 1, head: np.ndarray | None = None
) -> np.ndarray:
    """The codes without those marked; gone[0] is about codes[first]; head goes before them."""
    if gone.any():
        keep = np.ones(len(codes), bool)
        keep[first : first + len(gone)] = ~gone
        codes = codes[keep]
    return codes if head is None else np.concatenate((head, codes))


def chinese(text: str, settings: Settings) -> str:
    """Traditional characters as simplified ones or the other way round (OpenCC)."""
    return _opencc("t2s" if settings.chinese == "simplified" else "s2t")(text)


@cache
def _opencc(which: str) -> Callable[[str], str]:
    opencc = package("opencc", "chinese", which, extra="opencc", without="--chinese keep")
    converter = opencc.OpenCC(which)
    # OpenCC takes a C string, which ends at NUL.
    return lambda text: END.join(map(converter.convert, text.split(END)))


Repair = Callable[[str, Settings], str]


# What a repair leaves alone: layout is part of what code and Markdown say.
_SKIPPED = {
    "text": (),
    "markdown": ("white_space", "punctuation", "quotes"),
    "code": ("mojibake", "entity", "unicode_form", "invisible", "white_space", "chinese",
             "punctuation", "quotes"),
}  # fmt: skip


def repairs(settings: Settings, form: str = "text") -> list[tuple[str, Repair]]:
    """The repairs that the settings ask for, in order. form: text, markdown or code."""
    wanted: list[tuple[str, Repair, bool]] = [
        ("control", control, settings.invisible),
        ("mojibake", mojibake, settings.fix_mojibake),
        ("entity", entity, settings.unescape_html),
        ("unicode_form", unicode_form, settings.normalise != "none"),
        ("invisible", invisible, settings.invisible),
        ("white_space", white_space, settings.white_space),
        ("chinese", chinese, settings.chinese != "keep"),
        ("punctuation", punctuation, settings.punctuation),
        ("quotes", quotes, settings.quotes != "keep"),
    ]
    return [(name, action) for name, action, on in wanted if on and name not in _SKIPPED[form]]


def repair(text: str, settings: Settings, form: str = "text") -> str:
    """One text after every repair."""
    text = text.replace(END, "")
    for _, action in repairs(settings, form):
        text = action(text, settings)
    return text
