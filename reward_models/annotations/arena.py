r"""Chatbot Arena: two models answer one user side by side, and the user says which is better.

    {"question_id": "q", "model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "judge": "u",
     "conversation_a": [{"role", "content"}…], "conversation_b": […], "turn": 1, "anony": true}
    {"id": 1, "model_a": "x", "model_b": "y", "prompt": "[\"Q\"]", "response_a": "[\"A\"]",
     "response_b": "[\"B\"]", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}

Read: the conversations of the 33k, 100k and 140k releases (lists, or JSON in a string; content as
text or as text parts) and the 55k table, whose columns hold JSON lists with one entry a turn. Its
``winner`` column may stand in for the three ``winner_…`` columns, and plain text for a list.

The verdict is about the whole conversation. The user's turns are the same on both sides and each
model answered them in its own way, so an answer is everything from the first model turn on: text
for one turn, messages for several. Where the user's turns differ the two are not comparable
(``user_turns_differ``); images are not read (``not_text``).

"tie (bothbad)" and "both_bad" are ties, remembered in meta ``both_bad``. The judge is the
annotator. A vote cast while the model names were visible (``anony`` false) is suspect
(``models_visible``). Model A stands first on the screen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from align.jsonl import as_object, short
from align.records import (
    Candidate,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    parse_messages,
)
from reward_models.annotations.base import Format, Intake, make_group, row_by_row
from reward_models.annotations.fields import answer_content, given, name_of, number, user_turns
from reward_models.annotations.pairs import split_turns

WINNERS = {"model_a": "a", "model_b": "b"}
TIES = ("tie", "tie (both good)", "both_good")
BOTH_BAD = ("tie (bothbad)", "tie (both bad)", "both_bad", "bothbad")
COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")


def matches(obj: Any) -> str | None:
    """Evidence that a row is a battle of two models."""
    if not isinstance(obj, dict):
        return None
    if obj.keys() >= {"conversation_a", "conversation_b", "winner"}:
        return "conversation_a, conversation_b and winner"
    if obj.keys() >= {"prompt", "response_a", "response_b"}:
        if obj.keys() >= {*COLUMNS}:
            return "prompt, response_a, response_b and winner_model_a, winner_model_b, winner_tie"
        if obj.get("winner") in (*WINNERS, *TIES, *BOTH_BAD):
            return "prompt, response_a, response_b and winner"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One battle → one group with one vote."""
    obj = as_object(obj)
    if "conversation_a" in obj or "conversation_b" in obj:
        sides = [_conversation(obj, f"conversation_{side}") for side in "ab"]
    else:
        sides = _zipped(as_object(obj, "prompt", "response_a", "response_b"))
    if user_turns(sides[0]) != user_turns(sides[1]):
        raise RecordError("the two models were asked different things", code="user_turns_differ")
    prompt, *answers = split_turns((), *sides)
    for side, turns in zip("ab", answers, strict=True):
        if not all(m.content.strip() for m in turns if m.role == "assistant"):
            raise RecordError(f"an answer of model {side} is empty", code="empty_candidate")
    candidates = [
        Candidate(side, answer_content(turns), name_of(obj.get(f"model_{side}")))
        for side, turns in zip("ab", answers, strict=True)
    ]
    verdict, both_bad = _verdict(obj)
    judge = name_of(obj.get("judge")) or name_of(obj.get("judge_hash"))
    suspect = "models_visible" if obj.get("anony") is False else None
    judgement = Judgement(judge, "pair", verdict, source="arena", suspect=suspect)
    group = make_group(prompt, candidates, (judgement,), _meta(obj, both_bad))
    said = [c.to_json()["content"] for c in candidates if c.id == verdict.get("winner")]
    identity = obj.get("question_id", obj.get("id"))
    if intake.seen("arena", group.group_id, identity, judge, said):
        raise RecordError("the same vote stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A battle is one vote."""
    return int(isinstance(obj, dict))


def _verdict(obj: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the judgement's value, whether both were bad)."""
    winner = obj.get("winner")
    if winner is None and any(name in obj for name in COLUMNS):
        winner = _from_columns(obj)
    name = winner.strip().lower() if isinstance(winner, str) else ""
    if name in WINNERS:
        side = WINNERS[name]
        return {"winner": side, "loser": "b" if side == "a" else "a"}, False
    if name in (*TIES, *BOTH_BAD):
        return {"tie": ["a", "b"]}, name in BOTH_BAD
    raise RecordError(f"winner {short(winner)} is not known", code="unknown_winner")


def _from_columns(obj: dict[str, Any]) -> str:
    """Which of the three winner columns is 1; tables give numbers, text or truth values."""
    flags = []
    for name in COLUMNS:
        value = obj.get(name)
        if isinstance(value, str) and value.strip() in ("0", "1", "0.0", "1.0"):
            value = float(value)
        flag = float(value) if isinstance(value, bool) else number(value)
        if flag not in (0.0, 1.0):
            raise RecordError(f"{name} {short(value)} is not 0 or 1", code="unknown_winner")
        flags.append(flag)
    if sum(flags) != 1.0:
        raise RecordError(f"{sum(flags):.0f} of three winner columns are 1", code="unknown_winner")
    return ("model_a", "model_b", "tie")[flags.index(1.0)]


def _conversation(obj: dict[str, Any], name: str) -> tuple[Message, ...]:
    value = as_object(obj, name)[name]
    if isinstance(value, str):
        value = _json(value)
    if not isinstance(value, list):
        raise RecordError(f"{name} is not a list of messages: {short(value)}", code="bad_message")
    for message in value:
        parts = message.get("content") if isinstance(message, dict) else None
        # A part may have both: its text alone would be another question.
        if isinstance(parts, list) and any(isinstance(p, dict) and p.get("image") for p in parts):
            raise RecordError(f"{name} has an image", code="not_text")
    messages = parse_messages(value)
    if not messages or not any(m.role == "assistant" for m in messages):
        raise RecordError(f"{name} holds no answer", code="empty_candidate")
    return messages


def _zipped(obj: dict[str, Any]) -> list[tuple[Message, ...]]:
    """The two conversations of the table with one list of turns a column."""
    prompts, *answers = (_turns(obj, name) for name in ("prompt", "response_a", "response_b"))
    if not len(prompts) == len(answers[0]) == len(answers[1]):
        counts = f"{len(prompts)} prompts, {len(answers[0])} and {len(answers[1])} answers"
        raise RecordError(counts, code="uneven_turns")
    return [
        tuple(
            message
            for question, answer in zip(prompts, turns, strict=True)
            for message in (Message("user", question), Message("assistant", answer))
        )
        for turns in answers
    ]


def _turns(obj: dict[str, Any], name: str) -> Sequence[str]:
    value = obj[name]
    if isinstance(value, str):
        listed = _json(value) if value.lstrip().startswith("[") else None
        # Plain text may begin with a bracket: only a list of texts is a list of turns.
        value = listed if isinstance(listed, list) and all(map(_is_turn, listed)) else [value]
    if not isinstance(value, list) or not all(map(_is_turn, value)):
        raise RecordError(f"{name} is not text or a list of texts: {short(value)}", code="not_text")
    if not value:
        raise RecordError(f"{name} is empty", code="empty_candidate")
    return ["" if turn is None else turn for turn in value]


def _is_turn(value: Any) -> bool:
    return value is None or isinstance(value, str)  # null: the model did not answer


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _meta(obj: dict[str, Any], both_bad: bool) -> dict[str, Any]:
    meta = {"source": "arena", "display_order": True}
    meta.update(given(obj, ("question_id", "id", "language")))
    return {**meta, "both_bad": 1} if both_bad else meta


FORMAT = Format("arena", "Chatbot Arena battles", matches, row_by_row(convert, votes_in))
