"""PKU-SafeRLHF: two answers, which is more helpful, which is safer, and whether each is safe.

    {"prompt": "Q", "response_0": "A", "response_1": "B", "is_response_0_safe": true,
     "is_response_1_safe": false, "better_response_id": 0, "safer_response_id": 0}

Helpfulness (``better_response_id``) and harmlessness (``safer_response_id``) are two criteria that
often disagree, so one of them makes the preference and they are never mixed: ``CRITERION``, which
is helpfulness. The other one is not lost. ``meta["attributes"]`` keeps {candidate id: {"better":
0 or 1, "safer": 0 or 1, "safe": 0 or 1, "severity": level}}, as far as a row has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import given, name_of, number, text_field

SOURCE = "pku_saferlhf"
# Criterion → the field with the number of the answer that wins.
CRITERIA = {"better": "better_response_id", "safer": "safer_response_id"}
CRITERION = "better"
NAMES = ("response_0", "response_1")


def matches(obj: Any) -> str | None:
    """Evidence that a row is PKU-SafeRLHF's."""
    if not (isinstance(obj, dict) and {"prompt", *NAMES} <= obj.keys()):
        return None
    field = next((f for f in CRITERIA.values() if f in obj), None)
    return f"prompt, response_0, response_1 and {field}" if field else None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one pair judgement by ``CRITERION``."""
    field = CRITERIA[CRITERION]
    obj = as_object(obj, "prompt", *NAMES, field)
    prompt = prompt_messages(text_field(obj, "prompt"))
    candidates = tuple(
        Candidate(name, text_field(obj, name), name_of(obj.get(f"{name}_source"))) for name in NAMES
    )
    winner = _number_of(obj[field])
    if winner is None:
        code = "no_preference" if obj[field] is None else "unknown_winner"
        raise RecordError(f"{field} is {short(obj[field])}, not 0 or 1", code=code)
    value = {"winner": NAMES[winner], "loser": NAMES[1 - winner]}
    judgement = Judgement(None, "pair", value, source=f"{SOURCE}:{CRITERION}")
    meta = {"source": SOURCE, "criterion": CRITERION, **given(obj, ("prompt_source",))}
    meta["attributes"] = _attributes(obj)
    group = make_group(prompt, candidates, (judgement,), meta)
    if intake.seen(SOURCE, group.group_id, value):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _number_of(value: Any) -> int | None:
    """Which answer is meant; 1.0 is what a table with empty cells makes of 1."""
    found = number(value)
    return int(found) if found in (0.0, 1.0) else None


def _attributes(obj: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for criterion, field in CRITERIA.items():
        winner = _number_of(obj.get(field))
        if winner is not None:
            for position, name in enumerate(NAMES):
                found[name][criterion] = float(position == winner)
    for name in NAMES:
        safe, severity = obj.get(f"is_{name}_safe"), number(obj.get(f"{name}_severity_level"))
        if isinstance(safe, bool):
            found[name]["safe"] = float(safe)
        if severity is not None:
            found[name]["severity"] = severity
    return found


FORMAT = Format(SOURCE, "PKU-SafeRLHF comparisons", matches, row_by_row(convert, votes_in))
