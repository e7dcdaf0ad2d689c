"""Checks of an answer that need no judge: format, length, language, words. Chinese and English.

A row of a suite names its checks: {"check": "list_items", "n": 3}. Each is a function of the
answer and of its own options; what an instruction asks for can so be verified (Zhou et al. 2023,
IFEval, arXiv:2311.07911, has the idea; these checks and their texts are our own).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.config_errors import UserError, nearest
from align.evaluation.metrics.overlap import is_chinese, normalise
from align.evaluation.metrics.text import units

CHECKS: dict[str, Callable[..., bool]] = {}
_ITEM = re.compile(r"^\s*(?:[-*•·]|\(?\d{1,3}[.、)）:：]|[一二三四五六七八九十]{1,3}[、.．])\s*\S")
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_SENTENCE = re.compile(r"[^。！？!?.\n]+[。！？!?.]?")


def check(function: Callable[..., bool]) -> Callable[..., bool]:
    """Register a function (text, options…) as a check of its name."""
    CHECKS[function.__name__.strip("_")] = function
    return function


def run_checks(text: str, checks: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a text passes each of the checks of its row; see `validate`."""
    return [bool(CHECKS[c["check"]](text, **_options(c))) for c in checks]


def validate(checks: Any, field: str) -> None:
    """Raise UserError about `field` unless a row's checks are known and have their options."""
    if not isinstance(checks, list) or not checks:
        raise UserError(field, checks, "is no list of checks", 'Write [{"check": "json"}]')
    for i, one in enumerate(checks):
        where = f"{field}.{i}"
        name = one.get("check") if isinstance(one, Mapping) else None
        if not isinstance(name, str) or name not in CHECKS:
            close = nearest(str(name), CHECKS)
            hint = f"Did you mean '{close}'? " if close else ""
            reason, fix = "names no check", f"{hint}One of: {', '.join(sorted(CHECKS))}"
            raise UserError(f"{where}.check", name, reason, fix)
        wanted = inspect.signature(CHECKS[name]).parameters
        known = list(wanted)[1:]
        for option in _options(one):
            if option not in known:
                reason = f"is no option of the check {name}"
                raise UserError(f"{where}.{option}", one[option], reason, f"It has: {known}")
        for option in known:
            if option not in one and wanted[option].default is inspect.Parameter.empty:
                reason = f"is needed by the check {name}"
                raise UserError(f"{where}.{option}", None, reason, f'Write "{option}": …')


def _options(one: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in one.items() if k != "check"}


def _words(text: str) -> list[str]:
    return [u for u in units(text) if normalise(u)]


def _all(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def inner_json(text: str) -> Any:
    """The JSON value that a text is, a Markdown fence around it taken off; ValueError."""
    fenced = _FENCE.match(text)
    return json.loads(fenced[1] if fenced else text.strip())


@check
def _json(text: str, keys: Sequence[str] = (), kind: str = "any", only: bool = False) -> bool:
    """It is JSON: of the kind object, list or any; with these keys, and no others with `only`."""
    try:
        value = inner_json(text)
    except (ValueError, RecursionError):
        return False
    kinds = {"object": dict, "list": list}
    if kind in kinds and not isinstance(value, kinds[kind]):
        return False
    if not keys:
        return True
    return (
        isinstance(value, dict)
        and set(keys) <= set(value)
        and (not only or len(value) == len(set(keys)))
    )


@check
def list_items(text: str, n: int) -> bool:
    """It has exactly n items that begin with a bullet or a number."""
    return sum(bool(_ITEM.match(line)) for line in text.splitlines()) == n


@check
def lines(text: str, n: int) -> bool:
    """It has exactly n lines that are not empty."""
    return sum(bool(line.strip()) for line in text.splitlines()) == n


@check
def sentences(text: str, low: int = 1, high: int = 10**9) -> bool:
    """Its sentences, ended by 。！？.!? or a line's end, are between low and high."""
    found = [s for s in _SENTENCE.findall(re.sub(r"(?<=\d)\.(?=\d)", "", text)) if normalise(s)]
    return low <= len(found) <= high


@check
def words(text: str, low: int = 0, high: int = 10**9) -> bool:
    """Its words (of Chinese: characters), without punctuation, are between low and high."""
    return low <= len(_words(text)) <= high


@check
def characters(text: str, low: int = 0, high: int = 10**9) -> bool:
    """Its characters without white space, punctuation counted, are between low and high."""
    return low <= len("".join(text.split())) <= high


@check
def language(text: str, code: str) -> bool:
    """It is in Chinese (zh) or English (en): nine of ten letters are."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return False
    if code == "zh":
        han = sum(is_chinese([c]) for c in letters)
        return han >= 0.9 * len(letters)
    return sum(c.isascii() for c in letters) >= 0.9 * len(letters)


@check
def contains(text: str, words: str | Sequence[str], times: int = 1) -> bool:
    """Every one of the words stands in it, at least `times` times; case does not matter."""
    low = text.lower()
    return all(low.count(w.lower()) >= times for w in _all(words))


@check
def contains_any(text: str, words: str | Sequence[str]) -> bool:
    """At least one of the words stands in it; case does not matter."""
    return any(w.lower() in text.lower() for w in _all(words))


@check
def excludes(text: str, words: str | Sequence[str]) -> bool:
    """There is something, and none of the words stands in it; case does not matter."""
    return bool(text.strip()) and not any(w.lower() in text.lower() for w in _all(words))


@check
def starts_with(text: str, start: str) -> bool:
    """It begins with a text, white space aside."""
    return text.strip().startswith(start)


@check
def ends_with(text: str, end: str) -> bool:
    """It ends with a text, white space aside."""
    return text.strip().endswith(end)


@check
def one_of(text: str, answers: Sequence[str]) -> bool:
    """It is one of these answers and nothing else; case, spaces and marks do not matter."""
    return normalise(text) in {normalise(a) for a in answers}


@check
def number(text: str, value: float) -> bool:
    """The last number in it is this one."""
    found = _NUMBER.findall(text)
    return bool(found) and abs(float(found[-1].replace(",", "")) - value) <= 1e-9 * max(
        1, abs(value)
    )


@check
def upper_case(text: str) -> bool:
    """All its letters are capitals."""
    return text.isupper()


@check
def lower_case(text: str) -> bool:
    """None of its letters is a capital."""
    return text.islower()


@check
def quoted(text: str) -> bool:
    """It stands in quotation marks."""
    whole = text.strip()
    return len(whole) > 2 and (whole[0], whole[-1]) in {('"', '"'), ("“", "”"), ("「", "」")}


@check
def paragraphs(text: str, n: int) -> bool:
    """It has exactly n paragraphs with empty lines between them."""
    return len([p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]) == n


@check
def bold(text: str, n: int = 1) -> bool:
    """At least n parts are **bold**, as Markdown writes it."""
    return len(re.findall(r"\*\*[^*\n]+\*\*", text)) >= n


@check
def title(text: str) -> bool:
    """A title stands in it: in 《》 or << >>, or a first line that begins with #."""
    return bool(re.search(r"《[^》\n]+》|<<[^>\n]+>>|\A\s*#{1,6} \S", text))
