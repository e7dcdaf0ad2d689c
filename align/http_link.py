"""One connection to a server, kept open, and what its answers' headers say.

Standard library alone: no proxy of the environment and no redirect is followed, so that a token
goes nowhere else.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import socket
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from align.config_errors import NO_VALUE, UserError

CONNECT_S = 10.0
MAX_ANSWER = 64 << 20


class Answer(NamedTuple):
    """status; headers, whose names are found in any case; body: as it was sent."""

    status: int
    headers: Any
    body: bytes


class Address(NamedTuple):
    """score: the URL that takes texts. health: the one that says what is served, where known."""

    score: str
    health: str | None


def address(url: str) -> Address:
    """``/score`` is added to a URL without a path; its query (``?model=…``) stays."""
    parts = urlsplit(url)
    path = parts.path if parts.path.strip("/") else "/score"
    base = path.removesuffix("/score") if path.endswith("/score") else None
    health = None if base is None else urlunsplit(parts._replace(path=f"{base}/health", query=""))
    return Address(urlunsplit(parts._replace(path=path)), health)


class Links:
    """Requests to one host over one connection, which is opened again where it was closed."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self._link: _Link | None = None
        self._closed = False

    def ask(self, method: str, url: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """The answer; OSError or HTTPException where none came."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        if self._link is not None and self._link.usable:
            try:
                return self._link.ask(method, target, body, headers)
            except (ConnectionError, http.client.BadStatusLine):
                pass  # closed while it was idle: that is no failed attempt
        if self._closed:
            raise ConnectionError("closed by the asking side")
        self._link = _Link(self.url, self.timeout)
        return self._link.ask(method, target, body, headers)

    def close(self) -> None:
        """End the connection, from another thread too: a request under way fails, none follows."""
        self._closed = True
        if self._link is not None:
            self._link.close()


class _Link:
    """One open connection."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        assert parts.hostname is not None
        self.connection = kind(parts.hostname, parts.port, timeout=min(CONNECT_S, timeout))
        self.timeout, self.process = timeout, os.getpid()
        self.usable = True

    def ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = self.connection
        if self.process != os.getpid():  # a child must not write into its parent's connection
            raise ConnectionError("another process opened this connection")
        self.usable = False  # until the answer has been read to its end
        if connection.sock is None:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self.timeout)
        try:
            connection.request(method, target, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # Closed before the body was sent: why is often in an answer that is there already.
            try:
                return self._read()
            except (OSError, http.client.HTTPException):
                pass
            raise
        return self._read()

    def close(self) -> None:
        self.usable = False
        if self.connection.sock is not None:
            with suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)  # which wakes a thread that reads

    def _read(self) -> Answer:
        response = self.connection.getresponse()
        body = response.read(MAX_ANSWER + 1)
        if len(body) > MAX_ANSWER:
            raise http.client.HTTPException(f"the answer has more than {MAX_ANSWER} bytes")
        self.usable = not response.will_close
        return Answer(response.status, response.headers, body)


def header_token(name: str) -> str | None:
    """The token that a variable of the environment holds; None: unset. UserError if unusable."""
    token = os.environ.get(name)
    if token and not all("!" <= char <= "~" for char in token):
        why = "has spaces or characters that a header cannot carry"
        raise UserError(name, NO_VALUE, why, "Use the server's token")
    return token or None


def retry_after(headers: Any) -> float:
    """Seconds that Retry-After asks for, as a number or a date; 0 without it."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def reason(body: bytes) -> str:
    """What a server says is wrong, on one line."""
    try:
        value = json.loads(body)
        text = str(value["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = body[:200].decode("utf-8", "replace")
    return " ".join(text.split()) or "no explanation"


def named(error: Exception) -> str:
    """An error of the connection, in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}".rstrip(": ")
