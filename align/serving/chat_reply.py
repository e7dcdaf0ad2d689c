"""A chat completion as it arrives: server-sent events of a stream, or one JSON body. No HTTP here.

The wire format is that of the OpenAI API's `POST /v1/chat/completions`; what a server adds to it is
passed over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 16 << 20
"""Of an answer or of one event; what is longer is passed on and not read."""


@dataclass
class ChatReply:
    """What is known of an answer so far.

    first_at, last_at: the clock's time of the first and last event with something that the model
    wrote; None in a body that is no stream. pieces: how many such events. usage: the server's token
    counts. error: what the server says inside a stream, or why the bytes are no answer. ended: the
    stream's end mark, a finish reason or a whole body was seen.
    """

    streamed: bool
    id: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    choices: int = 0
    pieces: int = 0
    first_at: float | None = None
    last_at: float | None = None
    error: str | None = None
    ended: bool = False
    _texts: list[str] = field(default_factory=list)
    _parts: list[bytes] = field(default_factory=list)
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0

    @property
    def text(self) -> str:
        """What the first choice says."""
        return "".join(self._texts)

    def feed(self, data: bytes, at: float) -> None:
        """Take the next bytes; at: the clock's time at which they came."""
        self._size += len(data)
        if self._size > MAX_BYTES:
            self.error = f"longer than {MAX_BYTES} bytes"
            self._parts.clear()
            self._data.clear()
            return
        self._parts.append(data)
        if not self.streamed or b"\n" not in data:
            return
        *lines, rest = b"".join(self._parts).split(b"\n")
        self._parts = [rest]
        for line in lines:
            self._line(line.rstrip(b"\r"), at)

    def close(self, at: float) -> None:
        """Read what is left when the bytes have ended."""
        if self._size > MAX_BYTES:
            return
        if self.streamed:
            self._line(b"".join(self._parts).rstrip(b"\r"), at)
            self._line(b"", at)
            return
        value = json_object(b"".join(self._parts))
        if value is None:
            self.error = "no JSON object"
            return
        self.ended = True
        self._take(value, "message", None)

    def tokens(self, name: str) -> int | None:
        """The server's count of "prompt_tokens" or "completion_tokens"."""
        value = self.usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _line(self, line: bytes, at: float) -> None:
        """One line of an event stream; an empty one ends the event."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return
        data, self._data = b"\n".join(self._data), []
        if data.strip() == b"[DONE]":
            self.ended = True
        elif data:
            value = json_object(data)
            if value is None:
                self.error = "an event is no JSON object"
            else:
                self._take(value, "delta", at)

    def _take(self, value: dict[str, Any], part: str, at: float | None) -> None:
        if value.get("error"):
            self.error = str(value["error"])[:300]
            return
        self.id = self.id or _text(value.get("id"))
        self.model = self.model or _text(value.get("model"))
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        choices = [c for c in value.get("choices") or [] if isinstance(c, dict)]
        for choice in choices:
            index, said = choice.get("index"), choice.get(part)
            index = index if isinstance(index, int) else 0
            said = said if isinstance(said, dict) else {}
            self.choices = max(self.choices, index + 1)
            if index == 0:
                self._texts.append(_text(said.get("content")) or "")
                self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
                self.ended = self.ended or self.finish_reason is not None
            written = ("content", "reasoning_content", "reasoning", "tool_calls")
            if any(said.get(name) for name in written):
                self.pieces += 1
                if at is not None:
                    self.first_at = at if self.first_at is None else self.first_at
                    self.last_at = at


def json_object(data: bytes) -> dict[str, Any] | None:
    """The object of a JSON text; None where it is something else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
