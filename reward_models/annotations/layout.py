"""Where an annotated task keeps its prompt and its answers.

Annotation tools let everyone name the fields. What the user said (``--label_config``) counts;
otherwise the names that people use are looked for, and two places that fit are an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.config_errors import UserError
from align.jsonl import short
from align.records import Candidate, RecordError
from reward_models.annotations.label_config import LabelConfig

PROMPT_FIELDS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "input",
    "context",
    "dialogue",
    "dialog",
    "conversation",
    "messages",
    "chat",
    "提示",
    "问题",
    "指令",
)
CANDIDATE_FIELD = re.compile(
    r"^(answer|response|output|completion|candidate|option|summary|reply|text|回答|答案|回复)"
    r"[_\- ]?([0-9]{1,2}|[a-z])$",
    re.IGNORECASE,
)
INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
SIDES = (("left", "right"), ("chosen", "rejected"), ("a", "b"))
LIST_FIELDS = ("items", "answers", "responses", "candidates", "options", "completions", "outputs")
ITEM_TEXT = ("body", "text", "content", "value", "html", "answer", "response", "title")


@dataclass(frozen=True)
class Layout:
    """Where a task keeps its prompt and answers. assumed: no config confirmed the order."""

    prompt: str | None
    candidates: tuple[str, ...]
    items: str | None
    assumed: bool


@dataclass(frozen=True)
class Answers:
    """The candidates in display order.

    titles: what else names them, lower-cased title → id. numbered: their ids are only positions.
    """

    candidates: tuple[Candidate, ...]
    titles: Mapping[str, str]
    numbered: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """Candidate ids in display order."""
        return tuple(c.id for c in self.candidates)


def find_layout(
    data: Mapping[str, Any], config: LabelConfig | None, prompts: Sequence[str] = PROMPT_FIELDS
) -> Layout:
    """Prompt and candidate fields of a task, from the config and otherwise from its keys.

    prompts: field names to look for, the first that holds something counts. UserError where two
    sets of fields could be the candidates: guessing would invert or mix pairs.
    """
    prompt = config.prompt if config and config.prompt else first_field(prompts, data)
    if prompt is not None and prompt not in data:
        raise RecordError(f"no field {prompt} in data", code="no_prompt")
    if config and config.candidates:
        missing = [f for f in config.candidates if f not in data]
        if missing:
            raise RecordError(f"no field {', '.join(missing)} in data", code="missing_candidate")
        return Layout(_other_prompt(prompt, config.candidates), config.candidates, None, False)
    if config and config.items:
        if not isinstance(data.get(config.items), list):
            raise RecordError(f"data.{config.items} is not a list", code="missing_candidate")
        return Layout(prompt, (), config.items, False)
    found = candidate_sets(data, prompt)
    if not found:
        raise RecordError(f"no candidates among {sorted(data)}", code="no_candidates")
    if len(found) > 1:
        sets = " or ".join("+".join(f) for f in found)
        raise UserError(
            "data",
            short(sorted(data), 200),
            f"could hold the candidates in {sets}",
            "Name them: --label_config left=FIELD,right=FIELD",
        )
    fields = found[0]
    if len(fields) == 1:
        return Layout(prompt, (), fields[0], False)
    return Layout(prompt, fields, None, True)


def candidate_sets(data: Mapping[str, Any], prompt: str | None) -> list[tuple[str, ...]]:
    """Every set of keys that looks like the answers; a list field is a set of one."""
    stems: dict[str, list[str]] = {}
    for key, value in data.items():
        match = CANDIDATE_FIELD.match(key)
        if match and key != prompt and isinstance(value, str):
            stems.setdefault(match.group(1).lower(), []).append(key)
    found = [tuple(sorted(keys, key=_suffix)) for keys in stems.values() if len(keys) > 1]
    found += [pair for pair in SIDES if all(isinstance(data.get(k), str) for k in pair)]
    found += [(k,) for k in LIST_FIELDS if k != prompt and isinstance(data.get(k), list)]
    return found


def answers_of(data: Mapping[str, Any], layout: Layout) -> Answers:
    """The candidates of a task, in the order in which they were shown."""
    if layout.items is None:
        for name in layout.candidates:
            if not isinstance(data[name], str):
                raise RecordError(f"data.{name} is not text", code="not_text")
        return Answers(tuple(Candidate(name, data[name]) for name in layout.candidates), {})
    found, titles = [], {}
    # Without an id of their own items are numbered as annotators count them, from 1.
    for position, item in enumerate(data[layout.items], start=1):
        if isinstance(item, str):
            found.append(Candidate(str(position), item))
            continue
        name = first_field(ITEM_TEXT, item) if isinstance(item, dict) else None
        text = item[name] if name else None
        if not isinstance(text, str):
            raise RecordError(f"item {position} of {layout.items} has no text", code="not_text")
        model = item.get("model")
        candidate = Candidate(
            str(item.get("id", position)), text, model if isinstance(model, str) else None
        )
        found.append(candidate)
        if isinstance(item.get("title"), str) and item["title"].strip():
            titles[item["title"].strip().lower()] = candidate.id
    numbered = not any(isinstance(item, dict) and "id" in item for item in data[layout.items])
    return Answers(tuple(_as_shown(found)), titles, numbered)


def first_field(names: Sequence[str], data: Mapping[str, Any]) -> str | None:
    """The first of the names whose value is not empty."""
    return next((n for n in names if data.get(n)), None)


def _as_shown(items: Sequence[Candidate]) -> list[Candidate]:
    """Items in the order of the browser's list.

    Label Studio's List keeps them as keys of an object, where JavaScript puts whole numbers first,
    in ascending order.
    """
    numbers = [c for c in items if INDEX.fullmatch(c.id) and int(c.id) < 2**32 - 1]
    return sorted(numbers, key=lambda c: int(c.id)) + [c for c in items if c not in numbers]


def _other_prompt(prompt: str | None, candidates: tuple[str, ...]) -> str | None:
    return None if prompt in candidates else prompt


def _suffix(key: str) -> tuple[int, str]:
    match = CANDIDATE_FIELD.match(key)
    suffix = match.group(2).lower() if match else key
    return (int(suffix), "") if suffix.isdigit() else (0, suffix)
