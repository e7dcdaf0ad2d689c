"""How annotators' words name candidates: "answer2", "B", "Response 1 is better", "左", "平局".

Tools that know no comparison (a choice, a label) leave it to words. A word that names no candidate
is about something else; two words at once are ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.records import RecordError

TIES = {
    "tie",
    "equal",
    "equally good",
    "same",
    "both",
    "both good",
    "no preference",
    "neither",
    "draw",
    "平局",
    "一样",
    "相同",
    "差不多",
    "都好",
    "一样好",
}
BOTH_BAD = {
    "both bad",
    "bothbad",
    "tie (bothbad)",
    "equally bad",
    "neither",
    "都不好",
    "都差",
    "一样差",
}
LABELS = re.compile(
    r"^(?:answer|response|output|candidate|option|回答|答案|回复|选项)?[\s_\-]*([a-z]|[0-9]{1,2})"
    r"(?:[\s_\-]+is[\s_\-]+better|更好)?$",
    re.IGNORECASE,
)


def is_tie(word: str) -> bool:
    """Whether a word says that no candidate is better."""
    return word.strip().lower() in TIES | BOTH_BAD


def is_both_bad(word: str) -> bool:
    """Whether a word says that none of the candidates is good."""
    return word.strip().lower() in BOTH_BAD


def candidate_named(
    word: str, ids: Sequence[str], titles: Mapping[str, str] | None = None
) -> str | None:
    """The candidate that a word names: its id, title, side, letter or number.

    ids: in display order. titles: lower-cased title → id.
    """
    text = word.strip().lower()
    for candidate in ids:
        if text == candidate.lower():
            return candidate
    if titles and text in titles:
        return titles[text]
    if text in ("left", "right", "左", "右") and len(ids) == 2:
        return ids[text in ("right", "右")]
    match = LABELS.match(text)
    if not match:
        return None
    suffix = match.group(1)
    same = [i for i in ids if re.search(rf"(?:^|[^0-9a-z]|(?<=[a-z])(?=\d)){suffix}$", i.lower())]
    if len(same) == 1:
        return same[0]
    position = int(suffix) - 1 if suffix.isdigit() else ord(suffix) - ord("a")
    return ids[position] if 0 <= position < len(ids) else None


def read_words(
    words: Any,
    ids: Sequence[str],
    titles: Mapping[str, str] | None = None,
    *,
    question: Any = None,
    warn: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Pair values of one answer: the named candidate beats every other, or a tie of two.

    words: a word or a list of words. question: what was asked, for the warning that a bare number
    was taken as a candidate's. RecordError malformed_result, other_result (it names no candidate)
    or ambiguous_choice.
    """
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise RecordError("a choice is a word or a list of words", code="malformed_result")
    if len(words) == 1 and is_tie(words[0]) and len(ids) == 2:
        return [{"tie": list(ids)}]
    named = [candidate_named(w, ids, titles) for w in words]
    if not any(named):
        raise RecordError(f"{words} names no candidate", code="other_result")
    winner = named[0]
    if len(words) > 1 or winner is None:
        raise RecordError(f"{words} says several things at once", code="ambiguous_choice")
    number = words[0].strip()
    if warn is not None and number.isdigit() and number != winner:
        # On a scale from 1 to 5 it would be something else.
        asked = "" if question is None else f" of {question!r}"
        warn(f"the bare number {number}{asked} was taken as candidate {winner!r}")
    return [{"winner": winner, "loser": i} for i in ids if i != winner]


def says_both_bad(words: Any, ids: Sequence[str]) -> bool:
    """Whether an answer is the tie of two bad candidates."""
    if isinstance(words, list) and len(words) == 1:
        words = words[0]
    return isinstance(words, str) and is_both_bad(words) and len(ids) == 2
