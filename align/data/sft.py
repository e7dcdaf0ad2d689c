"""Conversations to imitate."""

from __future__ import annotations

import os
from typing import Any

from align.data.rows import (
    blank,
    conversation,
    instruction,
    meta_of,
    require_used,
    rows,
    with_system,
)
from align.records import Counts, Example, Message, RecordError, parse_messages, short

_COLUMNS = ("messages", "conversations", "instruction", "input", "output", "prompt", "completion",
            "history", "system")  # fmt: skip
WANTED = (
    '{"messages"}, {"conversations"}, {"instruction", "input", "output"} '
    'or {"prompt", "completion"}'
)


def load_sft(path: str | os.PathLike[str], field: str = "data.sft") -> tuple[list[Example], Counts]:
    """Reads SFT rows from JSONL or a JSON array.

    A row is ``{"messages"}``, ShareGPT's ``{"conversations"}``, Alpaca's ``{"instruction",
    "input"?, "output"}`` or ``{"prompt", "completion"}``. Rows without an answer are dropped and
    counted (no_assistant, empty_completion, empty_prompt, unknown_format, …).
    Raises UserError (about ``field``) for an unreadable file or one without a usable row.
    """
    examples: list[Example] = []
    counts = Counts(file=str(path))
    for where, row in rows(path, field):
        try:
            examples.append(Example(_messages(row), meta_of(row, _COLUMNS)))
            counts.use()
        except RecordError as error:
            counts.drop(error.code, where)
    require_used(counts, field, WANTED)
    return examples, counts


def _messages(row: dict[str, Any]) -> tuple[Message, ...]:
    if "messages" in row or "conversations" in row:
        messages = conversation(row)
    elif "instruction" in row and "output" in row:
        messages = instruction(row) + parse_messages(row["output"], role="assistant")
    elif "prompt" in row and "completion" in row:
        prompt = with_system(row, parse_messages(row["prompt"]))
        messages = prompt + parse_messages(row["completion"], role="assistant")
    else:
        raise RecordError(f"none of {WANTED} in {short(row)}", code="unknown_format")
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise RecordError("no assistant turn", code="no_assistant")
    if not messages[answers[-1]].content.strip():
        raise RecordError("the last assistant turn is empty", code="empty_completion")
    if blank(messages[: answers[-1]]):
        raise RecordError("nothing comes before the answer", code="empty_prompt")
    return messages
