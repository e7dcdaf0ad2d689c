"""Argilla 2.x records, nested (``to_json``) or flattened (``to_datasets``, ``to_list``, the hub).

    {"id": "r1", "fields": {"instruction": "Q", "response1": "A", "response2": "B"}, "metadata": {},
     "suggestions": {"ranking": {"value": ["response1", "response2"], "score": null}},
     "responses": {"ranking": [{"value": ["response2", "response1"], "user_id": "u1"}]},
     "vectors": {}, "status": "completed", "_server_id": "…"}
    {"id": "r1", "instruction": "Q", "response1": "A", "response2": "B",
     "ranking.responses": [["response2", "response1"]], "ranking.responses.users": ["u1"],
     "ranking.responses.status": ["submitted"], "ranking.suggestion": ["response1", "response2"]}

All answers of one user to a record are one vote. Suggestions are model output and never votes;
neither are drafts and discarded responses. The nested form does not say which those are: there they
count, and a warning says so. Records as the server's API gives them (a list of ``responses`` with
``values`` and ``status``) are read too.

What an answer means is told by its value, since records do not carry the questions' types. A list
of all candidates is a ranking, a number rates the candidate in the question's name
(``rating_response1``, ``response1_quality``), a text that names a candidate or a tie is a
preference. Rankings come without rank numbers, so tied ranks arrive as a strict order: a warning
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from align.records import Judgement, PreferenceGroup, RecordError
from reward_models.annotations.argilla_responses import (
    Response,
    is_flattened,
    responses_of,
    suggestions_in,
)
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import number
from reward_models.annotations.label_studio_ratings import Ratings
from reward_models.annotations.label_studio_results import Task
from reward_models.annotations.layout import answers_of, find_layout
from reward_models.annotations.naming import candidate_named, read_words, says_both_bad

NOT_SUBMITTED = ("draft", "discarded")
BOOKKEEPING = ("id", "status", "_server_id", "metadata", "vectors", "inserted_at", "updated_at")
# Reasons of answers that may stand beside a vote.
BESIDE = ("other_result", "no_such_candidate")


def matches(obj: Any) -> str | None:
    """Evidence that a row is an Argilla record."""
    if not isinstance(obj, dict):
        return None
    if isinstance(obj.get("fields"), dict) and isinstance(obj.get("responses"), (dict, list)):
        return "fields and responses"
    for ending in (".responses.users", ".responses.status", ".suggestion.agent"):
        for key in obj:
            if key.endswith(ending) and key.rpartition(".")[0] in obj:
                return f"{key.rpartition('.')[0]} and {key}"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One record → one group with the judgements of all users."""
    if not isinstance(obj, dict):
        raise RecordError("expected an object", code="not_an_object")
    data = obj["fields"] if not is_flattened(obj) else _fields(obj)
    config = intake.options.label_config
    layout = find_layout(data, config)
    prompt = prompt_messages(data.get(layout.prompt) if layout.prompt else None, data.get("system"))
    answers = answers_of(data, layout)
    meta: dict[str, Any] = {"source": "argilla"}
    if isinstance(obj.get("id"), (int, str)):
        meta["record_id"] = obj["id"]
    base = make_group(prompt, answers.candidates, (), meta)
    task = Task(
        data=data,
        config=config,
        ids=answers.ids,
        titles=answers.titles,
        numbered=answers.numbered,
        assumed=False,
        bucket_order=(),
        meta=base.meta,
    )
    if suggestions_in(obj):
        intake.drop_vote("suggestion", suggestions_in(obj))
    judgements: list[Judgement] = []
    reasons: dict[str, None] = {}
    responses = responses_of(obj)
    lists = _unordered(responses, task)
    for place, response in enumerate(responses):
        who = response.user or f"#{place}"
        if intake.seen("argilla", base.group_id, str(obj.get("id")), who):
            votes, reason = [], "duplicate_annotation"
        else:
            votes, reason = _response(response, task, lists, intake)
        judgements += votes
        if reason:
            reasons[reason] = None
            intake.drop_vote(reason)
        else:
            intake.vote()
    if not judgements:
        code = next(iter(reasons)) if len(reasons) == 1 else "no_usable_vote"
        why = ", ".join(reasons) if reasons else "no responses"
        raise RecordError(f"no vote: {why}", code=code if reasons else "no_annotations")
    return replace(base, judgements=tuple(judgements))


def votes_in(obj: Any) -> int:
    """How many responses and suggestions a record holds."""
    if not isinstance(obj, dict):
        return 0
    return len(responses_of(obj)) + suggestions_in(obj)


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a flattened record: what is no question and no bookkeeping."""
    return {
        k: v for k, v in record.items()
        if k not in BOOKKEEPING and ".responses" not in k and ".suggestion" not in k
    }  # fmt: skip


def _unordered(responses: Sequence[Response], task: Task) -> set[str]:
    """Questions whose lists cannot be rankings, because some list leaves candidates out.

    A ranking can only be submitted whole; a question with several labels may also have them all.
    """
    return {
        question for response in responses if response.status in (None, "submitted")
        for question, value in response.answers.items()
        if isinstance(value, list) and len(value) < len(task.ids)
    }  # fmt: skip


def _response(
    response: Response, task: Task, lists: set[str], intake: Intake
) -> tuple[list[Judgement], str | None]:
    """The judgements of one user, or the reason why there is no vote."""
    if response.status in NOT_SUBMITTED:
        return [], response.status
    if response.problem:
        return [], response.problem
    if response.status is not None and response.status != "submitted":
        return [], "unknown_status"
    ratings, judgements, notes = Ratings(task, _as_results(response)), [], []
    reasons: list[str] = []
    for question, value in response.answers.items():
        try:
            judgements += _answer(question, value, response.user, task, lists, ratings, notes)
        except RecordError as error:
            if error.code not in BESIDE:
                return [], error.code
            reasons.append(error.code)
            if error.code == "no_such_candidate":
                notes.append(f"rating {question!r} is about no candidate: left out")
    for attribute, scores in ratings.scores.items():
        source = f"argilla:rating:{attribute}"
        judgements.append(Judgement(response.user, "score", dict(scores), source=source))
    if not judgements:
        return [], reasons[0] if reasons else "empty_result"
    if response.status is None:
        notes.append("the records do not say which responses were submitted: drafts count too")
    if any(says_both_bad(value, task.ids) for value in response.answers.values()):
        task.meta["both_bad"] = task.meta.get("both_bad", 0) + 1
    for note in notes:
        intake.warn(note)
    return judgements, None


def _as_results(response: Response) -> list[dict[str, Any]]:
    return [{"from_name": question, "type": "rating"} for question in response.answers]


def _answer(
    question: str,
    value: Any,
    user: str | None,
    task: Task,
    lists: set[str],
    ratings: Ratings,
    notes: list[str],
) -> list[Judgement]:
    """The judgements of one answer; a rating goes to ``ratings``. RecordError with a reason."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        reason = ratings.add({"from_name": question}, {"rating": value})
        if reason:
            raise RecordError(f"{question}: {reason}", code=reason)
        return []
    if isinstance(value, list) and value and (question not in lists or _has_ranks(value)):
        ranks = _ranking(value, task)
        if not _has_ranks(value):
            notes.append("Argilla exports no rank numbers: tied ranks became a strict order")
        return [Judgement(user, "rank", ranks, source=f"argilla:ranking:{question}")]
    if isinstance(value, str) or (value and isinstance(value, list) and _texts(value)):
        pairs = read_words(value, task.ids, task.titles, question=question, warn=notes.append)
        return [Judgement(user, "pair", pair, source=f"argilla:label:{question}") for pair in pairs]
    if value is None or value == []:
        return []
    raise RecordError(f"{question} is no ranking, rating or label", code="other_result")


def _has_ranks(value: Sequence[Any]) -> bool:
    return any(isinstance(v, dict) and v.get("rank") is not None for v in value)


def _texts(value: Sequence[Any]) -> bool:
    return all(isinstance(v, str) for v in value)


def _ranking(value: Sequence[Any], task: Task) -> dict[str, float | None]:
    """Rank of every candidate, from 1; RecordError unless the list ranks candidates only."""
    listed: list[Any] = [v.get("value") if isinstance(v, dict) else v for v in value]
    if not _texts(listed):  # spans, which are about the text
        raise RecordError("not a list of names", code="other_result")
    found = [candidate_named(name, task.ids, task.titles) for name in listed]
    if not any(found):
        raise RecordError(f"{listed} names no candidate", code="other_result")
    named = [f for f in found if f is not None]
    if len(named) != len(found):
        raise RecordError(f"{listed} ranks something else too", code="unknown_candidate")
    if len(set(named)) != len(named):
        raise RecordError(f"{listed} ranks a candidate twice", code="repeated_candidate")
    ranks: dict[str, float | None] = dict.fromkeys(task.ids)
    for place, (candidate, item) in enumerate(zip(named, value, strict=True), start=1):
        rank = item.get("rank") if _has_ranks(value) and isinstance(item, dict) else place
        if isinstance(rank, bool) or not isinstance(rank, (int, float, type(None))):
            raise RecordError(f"rank {rank!r} is no number", code="malformed_result")
        if rank is not None and number(rank) is None:
            raise RecordError(f"rank {rank!r} is not finite", code="not_finite")
        ranks[candidate] = rank
    if sum(rank is not None for rank in ranks.values()) < 2:
        raise RecordError("fewer than two candidates are ranked", code="nothing_ranked")
    return ranks


FORMAT = Format("argilla", "Argilla 2.x records", matches, row_by_row(convert, votes_in))
