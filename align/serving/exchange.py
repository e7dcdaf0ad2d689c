"""What the proxy saw of one chat completion, as a line of the feedback log. No HTTP here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.evaluation.refusal import refuses
from align.feedback.records import Completion, FeedbackRecord
from align.jsonl import RecordError
from align.records import Message, parse_messages
from align.serving.chat_reply import ChatReply, json_object
from align.serving.request_log import SOURCE
from reward_models.language import language


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

    time: UTC, when it came. latency_s, first_token_s: seconds until the whole answer was passed on,
    and its first piece (streams only). status: the engine's; None where there was none. failure:
    http_503, connection, stream, disconnected (the client left), or None.
    """

    id: str
    time: str
    body: bytes
    reply: ChatReply | None
    status: int | None
    failure: str | None
    latency_s: float
    first_token_s: float | None = None


def failure_of(status: int, reply: ChatReply) -> str | None:
    """Why an answer that came to its end is none; None where it is one."""
    if status >= 400:
        return f"http_{status}"
    return "stream" if reply.error or not reply.ended else None


def record_of(exchange: Exchange, *, texts: bool) -> FeedbackRecord:
    """The line. texts: whether what was asked and answered is kept; figures always are.

    request: `completion_id` (of the engine), `status`, `failure`, `first_token_s`, `stream`,
    `choices` (of several the first is kept), `finish_reason`, `prompt_tokens`; and of the answer
    `chars`, `language` and `refuses`, None without one.
    """
    asked = json_object(exchange.body) or {}
    reply = exchange.reply or ChatReply(streamed=False)
    answer = reply.text if exchange.failure is None else None
    figures: dict[str, Any] = {
        "completion_id": reply.id,
        "status": exchange.status,
        "failure": exchange.failure,
        "first_token_s": _rounded(exchange.first_token_s),
        "stream": bool(asked.get("stream")),
        "choices": reply.choices,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.tokens("prompt_tokens"),
        "chars": None if answer is None else len(answer),
        "language": None if answer is None else language(answer),
        "refuses": None if answer is None else refuses(answer),
    }
    model = reply.model or asked.get("model")
    record = FeedbackRecord(
        prompt=_messages(asked),
        completions=(Completion(model if isinstance(model, str) else None, answer),),
        vote=None,
        consent=texts,
        source=SOURCE,
        latency_s=_rounded(exchange.latency_s),
        tokens=reply.tokens("completion_tokens"),
        time=exchange.time,
        id=exchange.id,
        request=figures,
    )
    return record if texts else record.without_text()


def _messages(asked: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The conversation; None where it is no text (pictures, tool calls)."""
    try:
        return parse_messages(asked.get("messages")) or None
    except RecordError:
        return None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
