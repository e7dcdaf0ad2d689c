"""Label Studio's Rating and Number results: which candidate is rated, and in what respect.

A rating's ``to_name`` may show it, or the control's name (``rating_answer1``, ``helpful2``). The
Repeater tag counts from 0 (``rating_0`` is about the first answer), people count from 1: names that
could be either are no vote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reward_models.annotations.fields import number
from reward_models.annotations.label_config import object_field

if TYPE_CHECKING:
    from reward_models.annotations.label_studio_results import Task

KINDS = ("rating", "number")
SUFFIX = re.compile(r"[_\-]?([0-9]{1,2}|(?<=[_\-])[a-z])$")


class Ratings:
    """The ratings of one annotation. scores: what is rated → candidate → number."""

    def __init__(self, task: Task, results: Sequence[Any]) -> None:
        """results: all results of the annotation; their names tell from where it is counted."""
        self.scores: dict[str, dict[str, float]] = {}
        self._task = task
        self._first = _first_number(task, results)

    def add(self, result: Mapping[str, Any], value: Mapping[str, Any]) -> str | None:
        """Adds one rating; returns the reason where it cannot."""
        given = value.get("rating", value.get("number"))
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            return "malformed_result"
        stars = number(given)
        if stars is None:
            return "not_finite"
        task = self._task
        candidate = _by_object(result, task)
        if candidate is None:
            index = _index(result)
            if index is not None and (task.numbered or self._first == 0):
                if self._first is None:
                    return "ambiguous_number"
                position = index - self._first
                candidate = task.ids[position] if 0 <= position < len(task.ids) else None
            else:
                candidate = _by_name(result, task)
        if candidate is None:
            return "no_such_candidate"
        scores = self.scores.setdefault(_attribute(result, candidate), {})
        if candidate in scores:
            return "repeated_candidate"
        scores[candidate] = stars
        return None


def _first_number(task: Task, results: Sequence[Any]) -> int | None:
    """The number in the control of the first candidate, 0 or 1; None where it could be both."""
    if task.config and any("{{" in c and k in KINDS for c, k in task.config.kinds.items()):
        return 0
    rated = [r for r in results if isinstance(r, dict) and r.get("type") in KINDS]
    numbers = {_index(r) for r in rated if _by_object(r, task) is None} - {None}
    if 0 in numbers and not any(re.search(r"(?<![0-9])0$", i) for i in task.ids):
        return 0
    return None if task.numbered and numbers and len(task.ids) not in numbers else 1


def _index(result: Mapping[str, Any]) -> int | None:
    """The number that a control's name ends with."""
    control = result.get("from_name")
    match = SUFFIX.search(control.lower()) if isinstance(control, str) else None
    return int(match.group(1)) if match and match.group(1).isdigit() else None


def _by_object(result: Mapping[str, Any], task: Task) -> str | None:
    """The candidate behind ``to_name``."""
    to_name = result.get("to_name")
    name = object_field(task.config, to_name, task.data) if isinstance(to_name, str) else None
    return name if name in task.ids else None


def _by_name(result: Mapping[str, Any], task: Task) -> str | None:
    """The candidate whose name or suffix ``from_name`` carries."""
    control = result.get("from_name")
    if not isinstance(control, str):
        return None
    inside = [i for i in task.ids if _word(i).search(control)]
    if len(inside) == 1:
        return inside[0]
    match = SUFFIX.search(control.lower())
    if not match:
        return None
    ends = [i for i in task.ids if re.search(rf"(?<![0-9]){match.group(1)}$", i.lower())]
    return ends[0] if len(ends) == 1 else None


def _attribute(result: Mapping[str, Any], candidate: str) -> str:
    """What is rated: the control's name without the part that tells the candidates apart.

    ``good_x`` and ``good_y``, or ``helpful1`` and ``helpful2``, rate two candidates in one respect.
    """
    text = str(result.get("from_name") or "")
    for name in (candidate, result.get("to_name")):
        if isinstance(name, str) and name:
            text = _word(name).sub("", text)
    text = re.sub(r"([_\- ]?[0-9]{1,2}|[_\- ][a-z])$", "", text.strip("_-. "), flags=re.IGNORECASE)
    return text.strip("_-. ") or "rating"


def _word(name: str) -> re.Pattern[str]:
    """Finds a name that is no part of a longer word or number ("a" is not in "rating")."""
    return re.compile(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", re.IGNORECASE)
