r"""HH-RLHF: two transcripts in one string each, with turns after "\n\nHuman:" and "\n\nAssistant:".

    {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}

The turns are parsed, not split at the last marker: the transcripts can part before their last turn,
and one role can speak twice in a row (joined to one turn by a blank line, since chat templates want
roles to alternate). A marker counts at the beginning of the text or after a blank line only, so
"Human:" inside a line stays text. White space around a turn is dropped. What both transcripts begin
with is the prompt; both answers begin and end with the assistant.

Where the user's turns differ behind the shared beginning, the annotator did not compare two answers
to one conversation: the judgement is suspect (``user_turns_differ``). Rows whose ``prompt`` is a
transcript and whose chosen and rejected continue it are read too.
"""

from __future__ import annotations

import re
from typing import Any

from align.jsonl import as_object
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, row_by_row
from reward_models.annotations.fields import answer_content, text_field, user_turns
from reward_models.annotations.pairs import split_turns

START = re.compile(r"\s*(?:Human|Assistant):")
# A line end first lets the search skip to it; that of Windows leaves a \r, which strip takes.
MARKER = re.compile(r"\n\r?\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def matches(obj: Any) -> str | None:
    """Evidence that a row holds two transcripts, or a transcript and two answers."""
    if not (isinstance(obj, dict) and {"chosen", "rejected"} <= obj.keys()):
        return None
    sides = [obj["chosen"], obj["rejected"]]
    if not all(isinstance(side, str) for side in sides):
        return None
    if all(START.match(side) for side in sides):
        return "chosen and rejected are Human/Assistant transcripts"
    prompt = obj.get("prompt")
    if isinstance(prompt, str) and START.match(prompt):
        return "prompt is a Human/Assistant transcript"
    return None


def parse_transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript; the last one may be empty, no other.

    RecordError no_turns without a marker at the beginning, empty_turn for an empty turn inside.
    """
    before, *parts = MARKER.split("\n\n" + text.lstrip())
    if before or not parts:
        raise RecordError("the text does not begin with Human: or Assistant:", code="no_turns")
    turns: list[Message] = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLES[name], content.strip()
        if turns and turns[-1].role == role:
            content = "\n\n".join(t for t in (turns.pop().content, content) if t)
        turns.append(Message(role, content))
    for position, turn in enumerate(turns[:-1], start=1):
        if not turn.content:
            raise RecordError(f"turn {position} ({turn.role}) is empty", code="empty_turn")
    return tuple(turns)


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group whose first candidate won."""
    obj = as_object(obj, "chosen", "rejected")
    chosen = parse_transcript(_transcript(obj, "chosen"))
    rejected = parse_transcript(_transcript(obj, "rejected"))
    if chosen[0] != rejected[0]:
        raise RecordError("chosen and rejected have no turn in common", code="no_prompt")
    prompt, chosen, rejected = split_turns((), chosen, rejected)
    if not user_turns(prompt):
        raise RecordError("no user turn before the answers", code="no_prompt")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns[-1].content:
            raise RecordError(f"the last turn of {side} is empty", code="empty_candidate")
    differ = user_turns(chosen) != user_turns(rejected)
    candidates = (
        Candidate("chosen", answer_content(chosen)),
        Candidate("rejected", answer_content(rejected)),
    )
    judgement = Judgement(
        None,
        "pair",
        {"winner": "chosen", "loser": "rejected"},
        source="hh_rlhf",
        suspect="user_turns_differ" if differ else None,
    )
    group = make_group(prompt, candidates, (judgement,), {"source": "hh_rlhf"})
    if intake.seen("hh_rlhf", group.group_id, candidates[0].to_json()["content"]):
        raise RecordError("the same pair stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _transcript(obj: dict[str, Any], side: str) -> str:
    """The whole conversation of one side, where ``prompt`` may hold its beginning."""
    answer = text_field(obj, side)
    if obj.get("prompt") is None or START.match(answer):
        return answer
    prompt = text_field(obj, "prompt").rstrip()
    open_turn = prompt.endswith("\n\nAssistant:")
    return prompt + answer if open_turn else f"{prompt}\n\nAssistant:{answer}"


FORMAT = Format(
    "hh_rlhf", "HH-RLHF Human/Assistant transcripts", matches, row_by_row(convert, votes_in)
)
