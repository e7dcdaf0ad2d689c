"""Prompts for sampling, from prompt, preference or SFT files."""

from __future__ import annotations

import os
from typing import Any

from align.data.pairs import common_prompt
from align.data.rows import (
    blank,
    conversation,
    instruction,
    meta_of,
    require_used,
    rows,
    with_system,
)
from align.records import Counts, Message, Prompt, RecordError, parse_messages, short

_COLUMNS = ("id", "group_id", "prompt", "prompt_id", "chosen", "rejected", "candidates",
            "judgements", "messages", "conversations", "instruction", "input", "output",
            "completion", "history", "system", "margin")  # fmt: skip
WANTED = '{"prompt"}, {"messages"}, {"conversations"} or {"instruction", "input"}'


def load_prompts(path: str | os.PathLike[str], field: str = "data.prompts") -> list[Prompt]:
    """The prompts of a file, each once, in the order of the file. See ``load_prompts_counted``."""
    return load_prompts_counted(path, field)[0]


def load_prompts_counted(
    path: str | os.PathLike[str], field: str = "data.prompts"
) -> tuple[list[Prompt], Counts]:
    """Prompts and what became of every row.

    Reads ``{"prompt"}`` rows, preference rows, and SFT conversations up to their last assistant
    turn. Columns that no format uses are kept in ``meta``, where reward functions find them.
    Prompts with the same ``prompt_key`` are one prompt (reason duplicate).
    Raises UserError (about ``field``) for an unreadable file or one without a usable row.
    """
    prompts: dict[str, Prompt] = {}
    counts = Counts(file=str(path))
    for where, row in rows(path, field):
        try:
            prompt = Prompt(_messages(row), meta=meta_of(row, _COLUMNS))
        except RecordError as error:
            counts.drop(error.code, where)
            continue
        if prompt.prompt_id in prompts:
            counts.drop("duplicate", where)
        else:
            prompts[prompt.prompt_id] = prompt
            counts.use()
    require_used(counts, field, WANTED)
    return list(prompts.values()), counts


def _messages(row: dict[str, Any]) -> tuple[Message, ...]:
    if row.get("prompt"):
        messages = with_system(row, parse_messages(row["prompt"]))
    elif row.get("instruction"):
        messages = instruction(row)
    elif "messages" in row or "conversations" in row:
        messages = _before_answer(conversation(row))
    elif "chosen" in row and "rejected" in row:
        chosen, rejected = (
            parse_messages(row[k], role="assistant") for k in ("chosen", "rejected")
        )
        messages = with_system(row, common_prompt(chosen, rejected)[0])
    else:
        raise RecordError(f"none of {WANTED} in {short(row)}", code="unknown_format")
    if blank(messages):
        raise RecordError("the prompt is empty", code="empty_prompt")
    return messages


def _before_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    ends = [i for i, m in enumerate(messages) if m.role == "assistant"]
    return messages[: ends[-1]] if ends else messages
