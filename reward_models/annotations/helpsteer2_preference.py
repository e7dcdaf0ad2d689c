"""HelpSteer2-Preference: two answers and how much the better one is preferred, from −3 to 3.

    {"split": "train", "prompt": "Q", "response_1": "A", "response_2": "B",
     "preference_strength": -2, "preference_statement": "…", "preference_elaboration": "…"}

As in HelpSteer3 a number below 0 says that response 1 is better. It is a summary of several people;
their own statements (``three_most_similar_preferences``) are not read.
"""

from __future__ import annotations

from typing import Any

from align.jsonl import as_object
from align.records import Candidate, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, row_by_row
from reward_models.annotations.fields import text_field
from reward_models.annotations.helpsteer2 import prompt_turns
from reward_models.annotations.helpsteer3 import graded

SOURCE = "helpsteer2_preference"


def matches(obj: Any) -> str | None:
    """Evidence that a row is HelpSteer2-Preference's."""
    names = {"prompt", "response_1", "response_2", "preference_strength"}
    if isinstance(obj, dict) and names <= obj.keys():
        return "prompt, response_1, response_2 and preference_strength"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one pair judgement."""
    obj = as_object(obj, "prompt", "response_1", "response_2", "preference_strength")
    names = ("response_1", "response_2")
    prompt = prompt_turns(text_field(obj, "prompt"))
    candidates = tuple(Candidate(name, text_field(obj, name)) for name in names)
    judgement = graded(obj["preference_strength"], *names, source=SOURCE)
    group = make_group(prompt, candidates, (judgement,), {"source": SOURCE})
    if intake.seen(SOURCE, group.group_id, judgement.to_json()):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


FORMAT = Format(SOURCE, "HelpSteer2 preference rows", matches, row_by_row(convert, votes_in))
