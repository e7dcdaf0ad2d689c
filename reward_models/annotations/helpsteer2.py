r"""HelpSteer and HelpSteer2: one answer and its five ratings (0 to 4) a row.

    {"prompt": "Q", "response": "A", "helpfulness": 3, "correctness": 4, "coherence": 4,
     "complexity": 2, "verbosity": 1}

Rows with the same prompt are one comparison, wherever they stand in the file. The preference is
``helpfulness``; equal ratings are a tie. All ratings are kept for multi-attribute heads in
``meta["attributes"]``, {candidate id: {attribute: rating}}. A rating is a mean of several people
already, so the annotator has no name.

A prompt of several turns is one string (data card of nvidia/HelpSteer2) and is taken apart:

    q1\n<extra_id_1>Assistant\na1\n<extra_id_1>User\nq2
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations.base import (
    Format,
    Intake,
    Row,
    key_by_key,
    make_group,
    prompt_messages,
)
from reward_models.annotations.fields import number, text_field

SOURCE = "helpsteer2"
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
PREFERENCE = "helpfulness"
HIGHEST = 4.0
MARKER = re.compile(r"^<extra_id_1>(User|Assistant)[ \t]*(?:\n|\Z)", re.MULTILINE)


def matches(obj: Any) -> str | None:
    """Evidence that a row is HelpSteer's."""
    if isinstance(obj, dict) and {"prompt", "response", *ATTRIBUTES} <= obj.keys():
        return "prompt, response and helpfulness, correctness, …"
    return None


def key(obj: Any) -> str:
    """What the rows of one comparison share, the prompt; RecordError where the row is unusable."""
    obj = as_object(obj, "prompt", "response", PREFERENCE)
    prompt = text_field(obj, "prompt")
    prompt_turns(prompt)
    if not text_field(obj, "response").strip():
        raise RecordError("the response is empty", code="empty_candidate")
    for name in ATTRIBUTES:
        value = number(obj.get(name))
        if value is None and (obj.get(name) is not None or name == PREFERENCE):
            raise RecordError(f"{name} is {short(obj.get(name))}, not a number", code="no_score")
        if value is not None and not 0.0 <= value <= HIGHEST:
            raise RecordError(f"{name} {value:g} is not within 0 to 4", code="bad_score")
    return prompt


def convert(rows: list[Row], intake: Intake) -> PreferenceGroup:
    """The rows of a prompt → one group with one score judgement.

    An answer that stands there again is dropped: as duplicate_row, or as second_rating where its
    ratings are others.
    """
    candidates: list[Candidate] = []
    attributes: dict[str, dict[str, float]] = {}
    seen: dict[str, str] = {}
    for row in rows:
        text, rated = row.obj["response"], _ratings(row.obj)
        if text in seen:
            same = attributes[seen[text]] == rated
            code = "duplicate_row" if same else "second_rating"
            intake.drop(row, code, "the same answer stands earlier in the input", 1)
            continue
        name = seen[text] = str(len(candidates) + 1)
        candidates.append(Candidate(name, text))
        attributes[name] = rated
    scores = {name: rated[PREFERENCE] for name, rated in attributes.items()}
    judgement = Judgement(None, "score", scores, source=f"{SOURCE}:{PREFERENCE}")
    meta = {"source": SOURCE, "attributes": attributes}
    group = make_group(prompt_turns(rows[0].obj["prompt"]), candidates, (judgement,), meta)
    for _ in candidates:
        intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one rated answer."""
    return int(isinstance(obj, dict))


def prompt_turns(text: str) -> Sequence[Message]:
    """A prompt's turns; without a marker it is the user's only one, as it stands.

    RecordError no_prompt, empty_turn, or bad_role where the turns do not alternate up to the user.
    """
    first, *parts = MARKER.split(text)
    if not parts:
        return prompt_messages(text)
    turns = [Message("user", first.strip())] if first.strip() else []
    turns += [
        Message(role.lower(), content.strip())
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise RecordError(f"the turns are {short(roles)}", code="bad_role")
    if not all(turn.content for turn in turns):
        raise RecordError("a turn of the prompt is empty", code="empty_turn")
    return turns


def _ratings(obj: Mapping[str, Any]) -> dict[str, float]:
    found = {name: number(obj.get(name)) for name in ATTRIBUTES}
    return {name: value for name, value in found.items() if value is not None}


FORMAT = Format(
    SOURCE,
    "HelpSteer and HelpSteer2 rated answers",
    matches,
    key_by_key(key, convert, votes_in),
)
