"""Who answered what in an Argilla record, in any of its three forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANSWERS, SUGGESTION = ".responses", ".suggestion"


@dataclass
class Response:
    """All answers of one user to one record.

    user: None where the record does not say. status: submitted, draft, discarded; None: not said.
    answers: question → value. problem: why they cannot be read, as a reason.
    """

    user: str | None
    status: str | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def responses_of(record: Mapping[str, Any]) -> list[Response]:
    """The responses of a record, one for each user; nameless ones stand alone."""
    given = record.get("responses")
    if isinstance(given, list):
        return [_from_server(response) for response in given]
    found = _Users()
    if isinstance(given, Mapping):
        for question, answers in given.items():
            found.add_nested(question, answers)
    else:
        for key in record:
            if key.endswith(ANSWERS):
                found.add_flattened(key.removesuffix(ANSWERS), record)
    return found.all()


def suggestions_in(record: Mapping[str, Any]) -> int:
    """How many questions a model has answered."""
    given = record.get("suggestions")
    if isinstance(given, (Mapping, list)):
        return len(given)
    return sum(k.endswith(SUGGESTION) and record[k] is not None for k in record)


def is_flattened(record: Mapping[str, Any]) -> bool:
    """Whether fields and answers stand side by side in one object."""
    return not isinstance(record.get("fields"), Mapping)


class _Users:
    def __init__(self) -> None:
        self._known: dict[str, Response] = {}
        self._others: list[Response] = []

    def all(self) -> list[Response]:
        return [*self._known.values(), *self._others]

    def add_nested(self, question: str, answers: Any) -> None:
        if answers is None:
            return
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, dict) and "value" in answer:
                self._add(question, answer["value"], answer.get("user_id"), answer.get("status"))
            else:
                self._malformed()

    def add_flattened(self, question: str, record: Mapping[str, Any]) -> None:
        key = question + ANSWERS
        values, users = record[key], record.get(f"{key}.users")
        status = record.get(f"{key}.status")
        if values is None:
            return
        if not isinstance(values, list):
            self._malformed()
            return
        # pandas and parquet write absent lists as null.
        users = [None] * len(values) if users is None else users
        status = [None] * len(values) if status is None else status
        lists = isinstance(users, list) and isinstance(status, list)
        if not lists or not len(values) == len(users) == len(status):
            for _ in values:
                self._malformed()
            return
        for value, user, state in zip(values, users, status, strict=True):
            self._add(question, value, user, state)

    def _add(self, question: str, value: Any, user: Any, status: Any) -> None:
        name = _name(user)
        if name is None:
            self._others.append(Response(None, _status(status), {question: value}))
            return
        response = self._known.setdefault(name, Response(name, _status(status)))
        if question in response.answers:
            response.problem = "repeated_answer"
        response.answers[question] = value

    def _malformed(self) -> None:
        self._others.append(Response(None, problem="malformed_response"))


def _from_server(response: Any) -> Response:
    values = response.get("values") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(values, (dict, type(None))):
        return Response(None, problem="malformed_response")
    answers = {q: v["value"] for q, v in (values or {}).items() if _has_value(v)}
    malformed = len(answers) != len(values or {})
    problem = "malformed_response" if malformed else None
    return Response(
        _name(response.get("user_id")), _status(response.get("status")), answers, problem
    )


def _has_value(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value


def _name(user: Any) -> str | None:
    # The client writes a missing id as the text "None".
    return str(user) if isinstance(user, (str, int)) and user not in ("", "None") else None


def _status(status: Any) -> str | None:
    return status if isinstance(status, str) else None
