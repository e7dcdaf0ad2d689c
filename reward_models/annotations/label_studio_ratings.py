"""Label Studio's Rating and Number results: which candidate is rated, and in what respect."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reward_models.annotations.label_config import object_field

if TYPE_CHECKING:
    from reward_models.annotations.label_studio_results import Task


def add_rating(
    result: Mapping[str, Any],
    value: Mapping[str, Any],
    task: Task,
    ratings: dict[str, dict[str, float]],
) -> str | None:
    """Adds one rating under its control's name; returns the reason where it cannot."""
    number = value.get("rating", value.get("number"))
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return "malformed_result"
    if not math.isfinite(number):
        return "not_finite"
    candidate = _rated(result, task)
    if candidate is None:
        return "no_such_candidate"
    scores = ratings.setdefault(_attribute(result, candidate), {})
    if candidate in scores:
        return "repeated_candidate"
    scores[candidate] = float(number)
    return None


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


def _rated(result: Mapping[str, Any], task: Task) -> str | None:
    """The candidate behind ``to_name``, or the one whose name or suffix ``from_name`` carries."""
    to_name, control = result.get("to_name"), result.get("from_name")
    if isinstance(to_name, str):
        name = object_field(task.config, to_name, task.data)
        if name in task.ids:
            return name
    if not isinstance(control, str):
        return None
    inside = [i for i in task.ids if _word(i).search(control)]
    if len(inside) == 1:
        return inside[0]
    match = re.search(r"[_\-]?([0-9]{1,2}|(?<=[_\-])[a-z])$", control.lower())
    if not match:
        return None
    ends = [i for i in task.ids if re.search(rf"(?<![0-9]){match.group(1)}$", i.lower())]
    return ends[0] if len(ends) == 1 else None
