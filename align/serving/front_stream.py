"""Answers of `transformers serve`, whole or as server-sent events, cut at the stop strings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from align.serving.openai_body import Refused
from align.serving.stop_text import StopCut

DONE = b"data: [DONE]\n\n"


def cut_answer(answer: dict[str, Any], stops: Sequence[str]) -> dict[str, Any]:
    """An answer whose text ends before the first stop string; finish_reason says so."""
    for choice in answer.get("choices", []):
        holder = choice.get("message", choice)
        key = "content" if "message" in choice else "text"
        cut = StopCut(stops)
        text = cut.feed(holder.get(key) or "") + cut.rest()
        if cut.hit:
            holder[key], choice["finish_reason"] = text, "stop"
    return answer


async def cut_stream(
    got: httpx.Response, stops: Sequence[str], *, chat: bool
) -> AsyncIterator[bytes]:
    """Events of an answer, each passed on as it comes; at the end [DONE]."""
    cut = StopCut(stops)
    try:
        async for line in got.aiter_lines():
            if not line.startswith("data: "):
                continue
            data = line[len("data: ") :]
            if data == "[DONE]":
                continue
            event = _parsed(data)
            for part in _cut_event(event, cut, chat) if "error" not in event else [event]:
                yield _event(part)
    except httpx.HTTPError:
        message = "The engine ended in mid-answer; see the server's log."
        yield _event(Refused(502, message).body())
    finally:
        await got.aclose()
    yield DONE


def _cut_event(event: dict[str, Any], cut: StopCut, chat: bool) -> list[dict[str, Any]]:
    """The events to show in place of one; the text of a chunk is in its only choice."""
    choice = (event.get("choices") or [{}])[0]
    holder, key = (choice.get("delta", {}), "content") if chat else (choice, "text")
    parts = []
    if holder.get(key):
        holder[key] = cut.feed(holder[key])
        if not holder[key] and not choice.get("finish_reason"):
            return []  # it waits, or a stop string has come
    if choice.get("finish_reason"):
        rest = "" if cut.hit else cut.rest()
        if rest:
            parts.append(_copy_with(event, rest, chat))
        if cut.hit:
            choice["finish_reason"] = "stop"
    return [*parts, event]


def _copy_with(event: dict[str, Any], text: str, chat: bool) -> dict[str, Any]:
    said = {"delta": {"content": text}} if chat else {"text": text}
    head = {k: v for k, v in event.items() if k not in ("choices", "usage")}
    return {**head, "choices": [{**said, "index": 0, "finish_reason": None}]}


def _parsed(data: str) -> dict[str, Any]:
    """An event; an error that the engine writes without escaping its quotes is one too."""
    try:
        event = json.loads(data)
    except ValueError:
        return Refused(500, f"The engine says: {data[:500]}").body()
    if isinstance(event.get("error"), str):
        return Refused(500, f"The engine says: {event['error']}").body()
    return event


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
