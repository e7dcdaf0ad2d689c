"""What the readers share: opening a file, naming a row, the shapes that several formats have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.config import UserError
from align.records import Counts, Message, RecordError, parse_messages, read_rows, short


def rows(path: str | os.PathLike[str], field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (``file:line``, row) of a JSONL file or a JSON array.

    Raises UserError for a missing file, and for a line that is not a JSON object: a broken file is
    not a matter of dropping rows.
    """
    if not Path(path).is_file():
        raise UserError(
            field, str(path), "is not a file", "Write the path of a .jsonl or .json file"
        )
    try:
        for number, row in read_rows(path):
            if not isinstance(row, dict):
                raise RecordError(f"expected an object, got {short(row)}", where=f"{path}:{number}")
            yield f"{path}:{number}", row
    except RecordError as error:
        raise UserError(field, str(path), f"cannot be read: {error}", "Correct the line") from None
    except (OSError, EOFError) as error:
        raise UserError(field, str(path), f"cannot be read: {error}") from None


def require_used(counts: Counts, field: str, wanted: str) -> None:
    """Raises UserError when no row of the file could be used."""
    if counts.used:
        return
    reasons = ", ".join(
        f"{name} {n} (first at {counts.examples.get(name, '?')})"
        for name, n in counts.dropped.most_common()
    )
    reason = f"has no usable row: {reasons}" if reasons else "is empty"
    raise UserError(field, counts.file, reason, f"Each row needs {wanted}")


def conversation(row: dict[str, Any]) -> tuple[Message, ...]:
    """The messages of ``{"messages"}`` or ShareGPT's ``{"conversations", "system"?}``."""
    value = row["messages"] if "messages" in row else row["conversations"]
    return with_system(row, parse_messages(value))


def instruction(row: dict[str, Any]) -> tuple[Message, ...]:
    """The prompt of an Alpaca row: ``{"instruction", "input"?, "system"?, "history"?}``.

    Instruction and input are joined by a blank line; the zh_instruction template parts them again.
    """
    turns: list[Message] = []
    for pair in row.get("history") or []:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise RecordError(f"history must hold pairs, got {short(pair)}", code="bad_message")
        turns += [*parse_messages(pair[0]), *parse_messages(pair[1], role="assistant")]
    parts = (row["instruction"], row.get("input") or "")
    if not all(isinstance(part, str) for part in parts):
        raise RecordError(f"instruction and input must be text: {short(parts)}", code="not_text")
    turns.append(Message("user", "\n\n".join(part for part in parts if part.strip())))
    return with_system(row, tuple(turns))


def with_system(row: dict[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after the row's ``system`` text, if it has one and they do not."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and not any(m.role == "system" for m in messages):
        return (Message("system", system), *messages)
    return messages


def blank(messages: tuple[Message, ...]) -> bool:
    """Whether there is nothing to read in the messages."""
    return not any(m.content.strip() for m in messages)


def meta_of(row: dict[str, Any], consumed: tuple[str, ...]) -> dict[str, Any]:
    """The row's ``meta`` and every column that the reader did not consume."""
    meta = row.get("meta")
    rest = {k: v for k, v in row.items() if k not in consumed and k != "meta"}
    return {**rest, **(meta if isinstance(meta, dict) else {})}
