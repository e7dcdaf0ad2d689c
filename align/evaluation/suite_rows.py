"""The rows of a suite's task: a JSONL line and the task's template become a prompt. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config_errors import UserError, nearest
from align.data.corpus import iter_texts
from align.data.rows import rows as read
from align.evaluation.checks import validate
from align.records import Message, RecordError, messages_json, parse_messages

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SLOT = re.compile(r"\{\{|\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class Row:
    """One item. messages: the prompt without system turn and examples; of perplexity the text.

    references: right answers. choices, answer: of multiple choice, the index of the right one.
    """

    messages: tuple[Message, ...]
    category: str | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int = 0
    checks: tuple[dict[str, Any], ...] = ()
    system: str = ""
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        """The last message."""
        return self.messages[-1].content

    @property
    def prompt_json(self) -> list[dict[str, str]]:
        """The prompt for samples.jsonl."""
        return messages_json(self.messages)


@dataclass(frozen=True)
class Shots:
    """An example before every prompt: what was asked and what the answer is."""

    question: str
    answer: str


def read_rows(
    data: Path, kind: str, at: str, task: Mapping[str, Any], *, needs_references: bool,
    needs_checks: bool,
) -> tuple[list[Row], list[Shots]]:  # fmt: skip
    """Rows and examples of a task; at: file and key for errors, task: its raw keys.

    Raises UserError, naming file and line, for the first row that cannot be used.
    """
    if kind == "perplexity":
        return _texts(data, at), []
    made = _Reader(kind, at, task, needs_references, needs_checks)
    found = [made.row(row, where) for where, row in read(data, f"{at}.data")]
    if not found:
        raise UserError(f"{at}.data", str(data), "is empty", "Give a row a prompt")
    shots = task.get("few_shot") or []
    if not isinstance(shots, list):
        reason = "is no list of rows"
        raise UserError(f"{at}.few_shot", shots, reason, "Write [{question: …, answer: …}]")
    return found, [made.shot(row, f"{at}.few_shot.{i}") for i, row in enumerate(shots)]


def _texts(data: Path, at: str) -> list[Row]:
    if not data.exists():
        raise UserError(f"{at}.data", str(data), "does not exist", "Check the path")
    texts = [t for t in iter_texts(data, "validation") if t.strip()]
    if not texts:
        raise UserError(f"{at}.data", str(data), "holds no text", "Give one paragraph a line")
    return [Row((Message("user", t),)) for t in texts]


class _Reader:
    """Turns rows into `Row`s with a task's template."""

    def __init__(
        self, kind: str, at: str, task: Mapping[str, Any], references: bool, checks: bool
    ) -> None:
        self.kind, self.at = kind, at
        self.template = task.get("prompt", "{prompt}")
        self.system = task.get("system", "")
        self.references, self.category = task.get("references"), task.get("category")
        self.needs_references, self.needs_checks = references, checks
        for name in ("prompt", "system", "references", "category"):
            if name in task and not isinstance(task[name], str):
                raise UserError(f"{at}.{name}", task[name], "is not text")
        if references and self.references is None:
            reason = "is needed by a metric that compares with right answers"
            raise UserError(f"{at}.references", None, reason, "Name the field of the data")

    def row(self, row: dict[str, Any], where: str) -> Row:
        choices, answer = (), 0
        if self.kind == "log_likelihood":
            choices, answer = _choices(row, where)
        checks: Any = row.get("checks")
        if self.needs_checks:
            validate(checks, f"{where}: checks")
        return Row(
            self.messages(row, where), self.field(row, self.category, where),
            self.answers(row, where) if self.references else (), choices, answer,
            tuple(checks) if self.needs_checks else (), self.system,
            {k: row[k] for k in ("id",) if k in row},
        )  # fmt: skip

    def messages(self, row: dict[str, Any], where: str) -> tuple[Message, ...]:
        """The template filled; of the plain `{prompt}` a list of messages may be the value."""
        try:
            if self.template == "{prompt}" and isinstance(row.get("prompt"), list):
                found = parse_messages(row["prompt"])
            else:
                found = (Message("user", self.fill(self.template, row, where)),)
        except RecordError as error:
            reason = f"is no prompt: {error.message}"
            raise UserError(f"{where}: prompt", row["prompt"], reason) from None
        if not any(m.content.strip() for m in found):
            raise UserError(f"{where}: prompt", "", "is empty", "Write something to answer")
        return found

    def fill(self, template: str, row: dict[str, Any], where: str) -> str:
        """Put a row's fields into a template; {{ and }} are braces."""

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name is None:
                return match[0][0]
            if name not in row:
                close = nearest(name, row)
                fix = f"Did you mean '{close}'?" if close else f"It has: {', '.join(row)}"
                reason = f"has no field '{name}', which the prompt of {self.at} names"
                raise UserError(where, short(row), reason, fix)
            if name == "choices" and isinstance(row[name], list):
                lines = zip(LETTERS, row[name], strict=False)
                return "\n".join(f"{letter}. {text}" for letter, text in lines)
            if isinstance(row[name], (dict, list)) or row[name] is None:
                raise UserError(f"{where}: {name}", row[name], "is not text")
            return str(row[name])

        return _SLOT.sub(value, template)

    def field(self, row: dict[str, Any], name: str | None, where: str) -> str | None:
        if name is None:
            return None
        value = row.get(name)
        if not isinstance(value, str) or not value:
            reason = f"is not text, and {self.at} names it"
            raise UserError(f"{where}: {name}", value, reason, "Give every row one")
        return value

    def answers(self, row: dict[str, Any], where: str) -> tuple[str, ...]:
        """The references of a row: a text, a number, or a list of texts."""
        value = row.get(str(self.references))
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            value = [str(value)]
        good = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        if not isinstance(value, list) or not good:
            if value in (None, []) and not self.needs_references:
                return ()
            reason = "is neither a text nor a list of texts"
            raise UserError(f"{where}: {self.references}", value, reason, "Give every row one")
        return tuple(value)

    def shot(self, row: Any, where: str) -> Shots:
        if not isinstance(row, dict) or "answer" not in row:
            raise UserError(where, row, "is no row with an answer", "Write {…, answer: …}")
        if self.kind == "log_likelihood":
            choices, answer = _choices(row, where)
            return Shots(self.fill(self.template, row, where), choices[answer])
        return Shots(self.fill(self.template, row, where), str(row["answer"]))


def _choices(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    """Choices and the index of the right one, written as an index, a letter, or the choice."""
    choices = row.get("choices")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not isinstance(choices, list) or not texts or not 2 <= len(choices) <= len(LETTERS):
        reason = f"is no list of 2 to {len(LETTERS)} texts"
        raise UserError(f"{where}: choices", choices, reason, 'Write ["…", "…"]')
    if len(set(choices)) < len(choices):
        raise UserError(f"{where}: choices", choices, "has the same text twice")
    answer = row.get("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(choices)]:
        answer = LETTERS.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        reason = "is neither a choice, nor its letter, nor its index from 0"
        raise UserError(f"{where}: answer", answer, reason, "Write 0, A or the text")
    return tuple(choices), answer


def short(row: Mapping[str, Any]) -> str:
    """A row as an error shows it."""
    text = str(dict(row))
    return text if len(text) < 80 else text[:79] + "…"
