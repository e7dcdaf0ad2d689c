"""Preference files: canonical groups and prompt/chosen/rejected rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from align.data.rows import blank, instruction, meta_of, require_used, rows, with_system
from align.records import (
    Candidate,
    Counts,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    parse_messages,
    short,
)

_COLUMNS = ("id", "group_id", "prompt", "chosen", "rejected", "conversations", "messages", "system",
            "instruction", "input", "history", "margin")  # fmt: skip
WANTED = '{"prompt", "chosen", "rejected"} or {"prompt", "candidates", "judgements"}'


def load_preferences(
    path: str | os.PathLike[str], field: str = "data.preferences"
) -> tuple[list[PreferenceGroup], Counts]:
    """Reads preference groups from JSONL or a JSON array.

    A row is a canonical group (``candidates``) or has ``chosen`` and ``rejected``: texts or message
    lists, with the prompt in ``prompt``, ``conversations``, ``instruction`` or as the messages that
    both lists begin with. An answer of several turns becomes a Candidate whose content is messages.
    Dropped and counted: identical, empty_completion, empty_prompt, no_prompt, no_assistant,
    no_judgement, fewer_than_two_candidates, unknown_format and the codes of ``align.records``.
    Raises UserError (about ``field``) for an unreadable file or one without a usable row.
    """
    groups: list[PreferenceGroup] = []
    counts = Counts(file=str(path))
    name = Path(path).name
    for where, row in rows(path, field):
        try:
            default_id = f"{name}:{where.rpartition(':')[2]}"
            groups.append(parse_group(row, default_id))
            counts.use()
        except RecordError as error:
            counts.drop(error.code, where)
    require_used(counts, field, WANTED)
    return groups, counts


def parse_group(row: dict[str, Any], default_id: str) -> PreferenceGroup:
    """One row as a group that can be trained on; RecordError with the reason otherwise."""
    if "candidates" in row:
        group = PreferenceGroup.from_json({"group_id": default_id, **row})
    elif "chosen" in row and "rejected" in row:
        group = _from_pair(row, default_id)
    else:
        raise RecordError(f"none of {WANTED} in {short(row)}", code="unknown_format")
    texts = [candidate.text.strip() for candidate in group.candidates]
    if len(texts) < 2:
        raise RecordError("fewer than two candidates", code="fewer_than_two_candidates")
    if not all(texts):
        raise RecordError("a candidate is empty", code="empty_completion")
    if len(set(texts)) == 1:
        raise RecordError("the candidates are identical", code="identical")
    if not group.judgements:
        raise RecordError("nobody compared the candidates", code="no_judgement")
    if blank(group.prompt):
        raise RecordError("the prompt is empty", code="empty_prompt")
    return group


def common_prompt(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, chosen, rejected): the longest shared beginning after which both answer.

    Both remainders begin with an assistant turn, even if that means sharing less.
    """
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    while n > 0 and not (_answers(chosen[n:]) and _answers(rejected[n:])):
        n -= 1
    return chosen[:n], chosen[n:], rejected[n:]


def _answers(messages: tuple[Message, ...]) -> bool:
    return bool(messages) and messages[0].role == "assistant"


def _from_pair(row: dict[str, Any], default_id: str) -> PreferenceGroup:
    prompt = _prompt(row)
    answers = [parse_messages(row[name], role="assistant") for name in ("chosen", "rejected")]
    answers = [_without(answer, prompt) for answer in answers]
    if not all(answers):
        raise RecordError("chosen or rejected holds no answer", code="empty_completion")
    if [m.content.strip() for m in answers[0]] == [m.content.strip() for m in answers[1]]:
        raise RecordError("chosen and rejected are identical", code="identical")
    shared, chosen, rejected = common_prompt(*answers)
    chosen, rejected = _to_last_answer(chosen), _to_last_answer(rejected)
    if not (_answers(chosen) and _answers(rejected)):
        raise RecordError("chosen and rejected must end in assistant turns", code="no_assistant")
    if not prompt + shared:
        raise RecordError("no prompt, and none common to chosen and rejected", code="no_prompt")
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise RecordError(f"margin {short(margin)} is not a number", code="bad_margin")
    verdict = {"winner": "chosen", "loser": "rejected"}
    return PreferenceGroup(
        group_id=str(row.get("group_id") or row.get("id") or default_id),
        prompt=with_system(row, prompt + shared),
        candidates=(_candidate("chosen", chosen), _candidate("rejected", rejected)),
        judgements=(Judgement(None, "pair", verdict, strength=margin, source="chosen_rejected"),),
        meta=meta_of(row, _COLUMNS),
    )


def _prompt(row: dict[str, Any]) -> tuple[Message, ...]:
    for name in ("prompt", "conversations", "messages"):
        if row.get(name):
            return parse_messages(row[name])
    return instruction({**row, "system": None}) if row.get("instruction") else ()


def _without(answer: tuple[Message, ...], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The answer without the prompt, which UltraFeedback-like exports repeat before it."""
    return answer[len(prompt) :] if prompt and answer[: len(prompt)] == prompt else answer


def _to_last_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    ends = [i for i, m in enumerate(messages) if m.role == "assistant"]
    return messages[: ends[-1] + 1] if ends else ()


def _candidate(name: str, messages: tuple[Message, ...]) -> Candidate:
    return Candidate(name, messages[0].content if len(messages) == 1 else messages)
