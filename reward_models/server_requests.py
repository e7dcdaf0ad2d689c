"""What clients send: JSON bodies to items to score, or an answer that says what is wrong.

``/score`` takes one item or ``{"items": […]}``; ``/get_reward`` the shape of OpenRLHF's remote
reward models (openrlhf/cli/serve_rm.py, openrlhf/utils: ``{"query", "prompts", "labels"}``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.config_errors import NO_VALUE, UserError, nearest, show
from align.records import Message, RecordError, parse_messages
from reward_models.score_file import COMPLETION_FIELDS

SCORE_FORM = 'Send {"prompt": …, "completion": …} or {"items": [{"prompt": …, "completion": …}, …]}'
REWARD_FORM = 'Send {"query": [text, …], "prompts": [text, …]}'


@dataclass(frozen=True)
class Item:
    """A conversation and the answer to score."""

    prompt: tuple[Message, ...]
    completion: str | tuple[Message, ...]


@dataclass(frozen=True)
class Query:
    """OpenRLHF's pair: prompt and answer as one text, and the prompt alone where it was sent."""

    text: str
    prompt: str | None


class Refused(Exception):
    """A request that gets an error. status: HTTP's; error: field, value, reason, fix."""

    def __init__(self, status: int, error: UserError, headers: dict[str, str]) -> None:
        super().__init__(status, error)
        self.status, self.error, self.headers = status, error, headers

    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        parts: dict[str, Any] = {"field": self.error.field}
        if self.error.value is not NO_VALUE:
            parts["value"] = show(self.error.value)
        parts |= {"reason": self.error.reason, "fix": self.error.fix}
        return {"error": {**parts, "message": str(self.error)}}


def refuse(
    status: int, field: str, value: Any, reason: str, fix: str = "", **headers: str
) -> Refused:
    """The error for a request; headers: with _ for -."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Refused(status, UserError(field, value, reason, fix), named)


def read_json(data: bytes) -> Any:
    """The value of a body. Refused 400 where it is no JSON in UTF-8, or has NaN or Infinity."""
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise refuse(
            400, "body", NO_VALUE, f"is not UTF-8: byte {error.start} is wrong", "Send JSON"
        ) from None
    except RecursionError:
        raise refuse(400, "body", NO_VALUE, "is nested too deeply", SCORE_FORM) from None
    except ValueError as error:
        reason = f"is not JSON: {error}" if data.strip() else "is empty"
        raise refuse(400, "body", NO_VALUE, reason, SCORE_FORM) from None


def read_score(body: Any, max_texts: int) -> tuple[list[Item], bool]:
    """(items, whether the body was a single item) of a ``/score`` request."""
    _object(body, SCORE_FORM)
    if "items" not in body:
        return [_item(body, "")], True
    _known(body, ("items",), SCORE_FORM)
    items = _list(body, "items", SCORE_FORM)
    _count(items, "items", max_texts)
    return [_item(value, f"items.{i}.") for i, value in enumerate(items)], False


def read_get_reward(body: Any, max_texts: int) -> list[Query]:
    """The texts of a ``/get_reward`` request. labels and other fields are for rule-based rewards.

    prompts may be absent or null; otherwise there is one for every query.
    """
    _object(body, REWARD_FORM)
    queries = _texts(body, "query")
    _count(queries, "query", max_texts)
    if body.get("prompts") is None:
        return [Query(text, None) for text in queries]
    prompts = _texts(body, "prompts")
    if len(prompts) != len(queries):
        reason = f"has {len(prompts)} texts for {len(queries)} in query"
        raise refuse(422, "prompts", NO_VALUE, reason, "Send one prompt for every query")
    return [Query(text, prompt) for text, prompt in zip(queries, prompts, strict=True)]


def _item(obj: Any, at: str) -> Item:
    where = at.removesuffix(".") or "body"
    if not isinstance(obj, Mapping):
        raise refuse(422, where, obj, "is not an object", SCORE_FORM)
    names = [name for name in COMPLETION_FIELDS if name in obj]
    if "messages" in obj:
        return _conversation(obj, names, at)
    if "prompt" not in obj:
        raise _missing(obj, at, "prompt")
    if len(names) > 1:
        reason = f"and {names[1]} are both there: which is the answer?"
        raise refuse(422, f"{at}{names[0]}", obj[names[0]], reason, "Send one of them")
    if not names:
        raise _missing(obj, at, "completion")
    prompt = _messages(obj["prompt"], f"{at}prompt", "user")
    if not prompt:
        raise refuse(422, f"{at}prompt", obj["prompt"], "has no message", "Send text or messages")
    answer = _messages(obj[names[0]], f"{at}{names[0]}", "assistant")
    if not answer or answer[0].role != "assistant":
        reason = "does not begin with an assistant message"
        raise refuse(422, f"{at}{names[0]}", obj[names[0]], reason, "Send the answer's text")
    return Item(prompt, answer[0].content if len(answer) == 1 else answer)


def _conversation(obj: Mapping[str, Any], names: list[str], at: str) -> Item:
    other = [name for name in ("prompt", *names) if name in obj]
    if other:
        reason = f"and {other[0]} are both there"
        raise refuse(422, f"{at}messages", NO_VALUE, reason, "Send messages, or prompt with answer")
    turns = _messages(obj["messages"], f"{at}messages", "user")
    if len(turns) < 2 or turns[-1].role != "assistant":
        reason = "must be a conversation that ends with the assistant's answer"
        raise refuse(422, f"{at}messages", obj["messages"], reason, "Send prompt and completion")
    return Item(turns[:-1], turns[-1].content)


def _messages(value: Any, name: str, role: str) -> tuple[Message, ...]:
    try:
        messages = parse_messages(value, role=role)
    except RecordError as error:
        fix = 'Send text or [{"role": …, "content": …}, …]'
        raise refuse(422, name, value, f"cannot be used: {error.message}", fix) from None
    for message in messages:
        _whole(message.content, name)
    return messages


def _whole(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write it, but it is no character
        reason = f"has half a surrogate pair, {text[error.start]!a}, at {error.start}"
        raise refuse(422, name, NO_VALUE, reason, "Send whole characters") from None


def _missing(obj: Mapping[str, Any], at: str, name: str) -> Refused:
    close = nearest(name, [key for key in obj if isinstance(key, str)])
    fix = f"Rename {close!r} to {name!r}" if close else SCORE_FORM
    return refuse(422, f"{at}{name}", NO_VALUE, "is missing", fix)


def _object(body: Any, form: str) -> None:
    if not isinstance(body, Mapping):
        raise refuse(422, "body", body, "is not an object", form)


def _known(body: Mapping[str, Any], names: tuple[str, ...], form: str) -> None:
    for name in body:
        if name not in names:
            raise refuse(422, name, body[name], f"is no field beside {names[0]}", form)


def _list(body: Mapping[str, Any], name: str, form: str) -> list[Any]:
    if name not in body:
        raise refuse(422, name, NO_VALUE, "is missing", form)
    if not isinstance(body[name], list):
        raise refuse(422, name, body[name], "is not a list", form)
    return body[name]


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    values = _list(body, name, REWARD_FORM)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise refuse(422, f"{name}.{i}", value, "is not a text", REWARD_FORM)
        _whole(value, f"{name}.{i}")
    return values


def _count(values: list[Any], name: str, most: int) -> None:
    if len(values) > most:
        reason = f"has {len(values)} texts, and one request may have {most}"
        raise refuse(413, name, NO_VALUE, reason, "Send several requests")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
