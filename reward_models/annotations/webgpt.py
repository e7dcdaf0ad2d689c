"""WebGPT comparisons (Nakano et al. 2021): two answers to one question, with preference scores.

    {"question": {"dataset", "id", "full_text"}, "answer_0": "A", "score_0": 0.5, "quotes_0": {…},
     "answer_1": "B", "score_1": -0.5, "quotes_1": {…}}

A score is the strength of the preference for that answer, from -1 to 1; the two add up to 0 and
equal scores are a tie. Strength is their difference, 0 to 2. The prompt is ``full_text`` alone: the
two answers were written from different quotes, so the quotes belong to the answers and not to what
both were asked, and an answer keeps its [1] marks. The annotator is not published.

The authors' own file holds one list [{question, quotes, answer, tokens, score}, {…}] a line. Its
two halves arrive as two rows of one line, and both are counted as rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import (
    Format,
    Intake,
    Row,
    make_group,
    prompt_messages,
    row_by_row,
)
from reward_models.annotations.fields import number, text_field

FIELDS = ("answer_0", "answer_1", "score_0", "score_1")
HALF = {"question", "answer", "score"}


def matches(obj: Any) -> str | None:
    """Evidence that a row is a comparison or one half of one."""
    if not (isinstance(obj, dict) and "question" in obj):
        return None
    if obj.keys() >= {*FIELDS}:
        return "question, answer_0, score_0, answer_1 and score_1"
    if obj.keys() >= HALF | {"tokens", "quotes"}:
        return "halves of comparisons: question, quotes, answer, tokens and score"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One comparison → one group with one vote."""
    obj = as_object(obj, "question", *FIELDS)
    question = obj["question"]
    text = question.get("full_text") if isinstance(question, dict) else question
    if text is not None and not isinstance(text, str):
        raise RecordError(f"the question is not text: {short(text)}", code="not_text")
    candidates = [Candidate(i, text_field(obj, f"answer_{i}")) for i in ("0", "1")]
    scores = [_score(obj, f"score_{i}") for i in ("0", "1")]
    gap = scores[0] - scores[1]
    verdict: dict[str, Any] = {"tie": ["0", "1"]}
    if gap:
        verdict = {"winner": "0" if gap > 0 else "1", "loser": "1" if gap > 0 else "0"}
    judgement = Judgement(None, "pair", verdict, strength=abs(gap), source="webgpt")
    group = make_group(prompt_messages(text), candidates, (judgement,), _meta(question))
    said = sorted(zip((c.content for c in candidates), scores, strict=True))
    if intake.seen("webgpt", group.group_id, said):
        raise RecordError("the same comparison stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A comparison is one vote, and so is a half without its other half."""
    return int(isinstance(obj, dict))


def parse(rows: Iterable[Row], intake: Intake) -> Iterator[PreferenceGroup]:
    """Rows → groups; two halves on one line are one comparison, counted as two rows."""
    whole = row_by_row(convert, votes_in)
    for together in _paired(rows):
        row, *second = together
        if not second:
            yield from whole([row], intake)
            continue
        before = intake.rows.used
        yield from whole([replace(row, obj=_joined(row.obj, second[0].obj))], intake)
        if intake.rows.used > before:
            intake.use()
        else:
            intake.drop(second[0], "other_half", f"goes with row {row.number}, which was dropped")


def _paired(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Each row alone, or two halves of one comparison together."""
    waiting: Row | None = None
    for row in rows:
        if waiting is not None and _belong(waiting, row):
            yield [waiting, row]
            waiting = None
            continue
        if waiting is not None:
            yield [waiting]
        waiting = row if _is_half(row.obj) else None
        if waiting is None:
            yield [row]
    if waiting is not None:
        yield [waiting]


def _is_half(obj: Any) -> bool:
    return isinstance(obj, dict) and obj.keys() >= HALF


def _belong(first: Row, second: Row) -> bool:
    # The line is what says that two halves stand in one list: a question has many comparisons.
    if not (_is_half(second.obj) and first.file == second.file and first.line == second.line):
        return False
    return first.obj["question"] == second.obj["question"]


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    joined = {"question": first["question"]}
    for i, half in enumerate((first, second)):
        joined[f"answer_{i}"], joined[f"score_{i}"] = half["answer"], half["score"]
    return joined


def _score(obj: dict[str, Any], name: str) -> float:
    score = number(obj[name])
    if score is None or not -1.0 <= score <= 1.0:
        reason = f"{name} {short(obj[name])} is no number from -1 to 1"
        raise RecordError(reason, code="bad_score")
    return score


def _meta(question: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"source": "webgpt"}
    if isinstance(question, dict):
        for name in ("dataset", "id"):
            if isinstance(question.get(name), (str, int)):
                meta[f"question_{name}"] = question[name]
    return meta


FORMAT = Format("webgpt", "WebGPT comparisons", matches, parse)
