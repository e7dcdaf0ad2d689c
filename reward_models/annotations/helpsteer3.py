"""HelpSteer3-Preference: two answers to a conversation, graded from −3 to 3 by up to three people.

    {"domain": "general", "language": "english", "context": [{"role": "user", "content": "Q"}],
     "response1": "A", "response2": "B", "overall_preference": -2,
     "individual_preference": [{"score": -2, "reasoning": "…"}]}

−3 says that response 1 is much better, 3 that response 2 is, 0 that they are about the same (data
card of nvidia/HelpSteer3). Each individual preference is a vote, of an annotator without a name;
``overall_preference`` is their summary, so it is a vote only where there is no usable individual
one. Strengths are 1 to 3.
"""

from __future__ import annotations

from typing import Any

from align.jsonl import as_object, list_field, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import given, number, text_field

SOURCE = "helpsteer3"
STRONGEST = 3.0
META = ("domain", "language", "overall_preference")


def matches(obj: Any) -> str | None:
    """Evidence that a row is HelpSteer3's."""
    if not (isinstance(obj, dict) and {"context", "response1", "response2"} <= obj.keys()):
        return None
    graded = [n for n in ("overall_preference", "individual_preference") if n in obj]
    return f"context, response1, response2 and {graded[0]}" if graded else None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with a pair judgement per annotator."""
    obj = as_object(obj, "context", "response1", "response2")
    # Not text: a table's cell holds the list as it was printed, which is no prompt.
    if not isinstance(obj["context"], list):
        reason = f"context must be a list of messages, got {short(obj['context'])}"
        raise RecordError(reason, code="bad_context")
    prompt = prompt_messages(obj["context"])
    if prompt[-1].role != "user":
        reason = f"the context must end with the user, not {prompt[-1].role}"
        raise RecordError(reason, code="bad_role")
    names = ("response1", "response2")
    candidates = tuple(Candidate(name, text_field(obj, name)) for name in names)
    judgements = []
    for grade in _grades(obj):
        if usable(grade) is None:
            intake.drop_vote("no_score" if grade is None else "bad_score")
            continue
        judgements.append(graded(grade, *names, source=SOURCE))
        intake.vote()
    if not judgements:
        reason = f"no preference within −3 to 3: {short(obj.get('overall_preference'))}"
        raise RecordError(reason, code="no_score")
    group = make_group(prompt, candidates, judgements, {"source": SOURCE, **given(obj, META)})
    if intake.seen(SOURCE, group.group_id, [j.to_json() for j in judgements]):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    return group


def votes_in(obj: Any) -> int:
    """How many grades a row holds: the individual ones, or the overall one."""
    if not isinstance(obj, dict):
        return 0
    try:
        return len(_grades(obj))
    except RecordError:
        return 1


def usable(grade: Any) -> float | None:
    """The grade where it is a number from −3 to 3."""
    value = number(grade)
    return value if value is not None and abs(value) <= STRONGEST else None


def graded(grade: Any, first: str, second: str, *, source: str) -> Judgement:
    """A pair judgement from a grade: below 0 the first is better, above 0 the second, 0 a tie.

    RecordError (bad_score) where the grade is not usable.
    """
    value = usable(grade)
    if value is None:
        raise RecordError(f"{short(grade)} is not a number from −3 to 3", code="bad_score")
    if value == 0.0:
        return Judgement(None, "pair", {"tie": [first, second]}, source=source)
    winner, loser = (first, second) if value < 0.0 else (second, first)
    return Judgement(None, "pair", {"winner": winner, "loser": loser}, abs(value), source)


def _grades(obj: dict[str, Any]) -> list[Any]:
    """The individual grades; with the overall one behind them where none of them is usable."""
    said = list_field(obj, "individual_preference")
    grades = [s.get("score") if isinstance(s, dict) else s for s in said]
    return (
        grades
        if any(usable(g) is not None for g in grades)
        else [*grades, obj.get("overall_preference")]
    )


FORMAT = Format(SOURCE, "HelpSteer3 preference rows", matches, row_by_row(convert, votes_in))
