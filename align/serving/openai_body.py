"""What a client asks for, checked as OpenAI's API words it: errors, fields, room in the context.

No torch, no web framework.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DEFAULT_TOKENS = 1024  # of an answer where the client does not say
# Fields that would change the answer and that `transformers serve` reads over: value that is fine.
_UNHEARD: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False, 0), "top_logprobs": (0,), "echo": (False,),
    "presence_penalty": (0,), "response_format": ({"type": "text"},), "functions": ([],),
    "function_call": ("none", "auto"), "tool_choice": ("none", "auto"),
    "frequency_penalty": (0,), "top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,),
    "ignore_eos": (False,),
}  # fmt: skip
# Fields of other servers that ask for more in the answer: clients look whether it is there.
_MORE = ("return_token_ids", "return_tokens_as_token_ids")


class Refused(Exception):
    """A request that is answered with an error. status: of HTTP. param: the field it is about."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients show."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True)
class Context:
    """How many tokens a model reads. size: prompt and answer together.

    count: of a request's body and whether it is a chat → tokens of its prompt; ValueError where
    the chat template or the tokenizer refuses it.
    """

    size: int
    count: Callable[[dict[str, Any], bool], int]


def read_body(data: bytes) -> dict[str, Any]:
    """The JSON object of a body; Refused 400 where it is none."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body is no JSON object.")
    return body


def check_body(body: dict[str, Any], name: str, *, chat: bool) -> None:
    """Refused for what `transformers serve` would answer with a 500 or silently otherwise.

    Fields that are null or make no difference are dropped from the body, and its model is set where
    it names none.
    """
    for key in [key for key, value in body.items() if value is None or key in _MORE]:
        del body[key]
    asked = body.setdefault("model", name)
    if asked != name:
        message = f"The model {asked!r} does not exist here; this server has {name!r}."
        raise Refused(404, message, code="model_not_found", param="model")
    for key, fine in _UNHEARD.items():
        if key in body and body[key] not in fine:
            message = f"{key}={json.dumps(body[key], ensure_ascii=False)} is not supported by this "
            raise Refused(400, message + "engine; leave it out.", param=key)
        body.pop(key, None)
    if chat:
        _check_messages(body.get("messages"))
    elif not isinstance(body.get("prompt"), str):
        raise Refused(400, "prompt must be a string.", param="prompt")
    _check_numbers(body)
    stops_of(body)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages must be a list that is not empty.", param="messages")
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"{where} must be an object with a role.", param=where)
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(part, dict)
                and part.get("type") == "text"
                and isinstance(part.get("text"), str)
                for part in content
            ):
                raise Refused(400, f"{where}.content may hold text parts alone.", param=where)
        elif not isinstance(content, str) and not message.get("tool_calls"):
            raise Refused(400, f"{where}.content must be a string.", param=where)


def _check_numbers(body: dict[str, Any]) -> None:
    for key, low, high, whole in (
        ("max_tokens", 1, 10**9, True),
        ("max_completion_tokens", 1, 10**9, True),
        ("temperature", 0, 100, False),
        ("top_p", 0, 1, False),
        ("seed", -(2**63), 2**63 - 1, True),
    ):
        value = body.get(key)
        if value is None:
            continue
        kinds = (int,) if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise Refused(400, f"{key} must be {kind} from {low} to {high}.", param=key)
    if body.get("top_p") == 0:
        raise Refused(400, "top_p must be above 0.", param="top_p")


def stops_of(body: dict[str, Any]) -> list[str]:
    """The stop strings of a body; Refused where they are none."""
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise Refused(400, "stop must be a string or a list of strings, not empty.", param="stop")
    return stops


def fit(body: dict[str, Any], context: Context, *, chat: bool) -> None:
    """Set the most tokens of the answer to what the context has room for.

    Refused 400 where the prompt alone fills it, or its messages cannot be rendered.
    """
    try:
        prompt = context.count(body, chat)
    except ValueError as error:
        raise Refused(400, f"The prompt cannot be read: {error}", param="messages") from None
    room = context.size - prompt
    if room < 1:
        message = (
            f"This model's context length is {context.size} tokens, and the prompt has {prompt}. "
            "Shorten it."
        )
        raise Refused(400, message, code="context_length_exceeded", param="messages")
    asked = body.pop("max_completion_tokens", None) or body.get("max_tokens") or DEFAULT_TOKENS
    body["max_tokens"] = min(asked, room)
