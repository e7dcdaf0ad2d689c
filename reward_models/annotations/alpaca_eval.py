"""AlpacaEval and AlpacaFarm annotations: two models' outputs and which one an annotator prefers.

    {"instruction": "Q", "output_1": "A", "output_2": "B", "generator_1": "x", "generator_2": "y",
     "annotator": "j", "preference": 1.4}

``preference`` is 1 for output_1, 2 for output_2, 1.5 or (older files) 0 for a tie, and null where
the annotator's answer could not be parsed. Between 1 and 2 it is 1 + the probability that output_2
is better: a judge that gives probabilities, or a mean. The probability is kept: 1.4 is a vote for
output_1 with probability 0.6, never rounded to a whole one.
"""

from __future__ import annotations

import math
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import given, name_of, number, text_field
from reward_models.preferences import pair_value

SOURCE = "alpaca_eval"
NAMES = ("output_1", "output_2")


def matches(obj: Any) -> str | None:
    """Evidence that a row is an AlpacaEval annotation."""
    if isinstance(obj, dict) and {"instruction", *NAMES, "preference"} <= obj.keys():
        return "instruction, output_1, output_2 and preference"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one pair judgement."""
    obj = as_object(obj, "instruction", *NAMES, "preference")
    instruction, extra = text_field(obj, "instruction"), obj.get("input")
    if isinstance(extra, str) and extra.strip():
        instruction = f"{instruction}\n{extra}"
    candidates = tuple(
        Candidate(name, text_field(obj, name), name_of(obj.get(f"generator_{number_}")))
        for number_, name in enumerate(NAMES, start=1)
    )
    value = pair_value(*NAMES, _first_is_better(obj["preference"]))
    annotator = name_of(obj.get("annotator"))
    judgement = Judgement(annotator, "pair", value, source=SOURCE)
    meta = {"source": SOURCE, **given(obj, ("dataset",))}
    group = make_group(prompt_messages(instruction), candidates, (judgement,), meta)
    key = (group.group_id, candidates[0].content, annotator, obj.get("annotator_index"), value)
    if intake.seen(SOURCE, *key):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _first_is_better(preference: Any) -> float:
    """The probability that output_1 is better."""
    value = number(preference)
    if value is None:
        if preference is None or (isinstance(preference, float) and math.isnan(preference)):
            raise RecordError("there is no preference", code="no_preference")
        raise RecordError(f"preference {short(preference)} is not a number", code="bad_preference")
    if value == 0.0:
        return 0.5
    if not 1.0 <= value <= 2.0:
        raise RecordError(f"preference {value:g} is not 0 or within 1 to 2", code="bad_preference")
    return 2.0 - value


FORMAT = Format(SOURCE, "AlpacaEval annotations", matches, row_by_row(convert, votes_in))
