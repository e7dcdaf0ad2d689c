"""Reading single fields of a row: text, numbers, names; RecordError where they are not that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from align.jsonl import is_finite, short
from align.records import Message, RecordError


def text_field(obj: Mapping[str, Any], name: str) -> str:
    """A field that must be text; RecordError missing_field or not_text."""
    if name not in obj:
        raise RecordError(f"missing {name}", code="missing_field")
    value = obj[name]
    if not isinstance(value, str):
        raise RecordError(f"{name} is not text: {short(value)}", code="not_text")
    return value


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (a truth value is no number)."""
    return float(value) if value is not None and is_finite(value) else None


def name_of(value: Any) -> str | None:
    """An annotator's or a model's name: text or a whole number, None for anything else."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def given(obj: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those fields that a row has with a value other than null; what a group's meta is made of."""
    return {name: obj[name] for name in names if obj.get(name) is not None}


def answer_content(turns: tuple[Message, ...]) -> str | tuple[Message, ...]:
    """What a candidate holds: the text of a single turn, the messages of several."""
    return turns[0].content if len(turns) == 1 else turns


def user_turns(messages: Iterable[Message]) -> list[str]:
    """What the user said in these messages."""
    return [m.content for m in messages if m.role == "user"]
