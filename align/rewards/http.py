"""A reward model on another machine, or in another process, asked over HTTP.

The client of ``python -m reward_models serve``. Messages and texts are sent, and the server renders
them with its own template. Standard library alone: one connection, kept open; no proxy of the
environment and no redirect is followed, so that a token goes nowhere else.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from align.config_errors import NO_VALUE, UserError
from align.config_files import check_url
from align.records import Message
from align.rewards.base import RewardError, checked

TOKEN = "ALIGN_REWARD_TOKEN"
TEXTS = 64  # in one request
CONNECT_S, ANSWER_S = 10.0, 180.0
ATTEMPTS = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
MAX_ASKED_WAIT_S = 120.0  # a server that asks for more is tried again after this
RETRIED = {408, 425, 429, *range(500, 600)}
MAX_ANSWER = 64 << 20


class HttpReward:
    """Scores with a reward server; scores come back in the order of the texts, or not at all.

    path: http(s)://host:port, to which /score is added, or a whole URL that takes
    ``{"items": [{"prompt", "completion"}, …]}`` and answers ``{"scores": [number, …]}``.
    token: sent as ``Authorization: Bearer``; by default ALIGN_REWARD_TOKEN_<i> of the environment
    where the reward is the i-th, else ALIGN_REWARD_TOKEN. attempts: of one request, with waits of
    FIRST_WAIT_S · 2^k between them, half of it random, or what Retry-After says.
    Raises UserError, naming field, where the URL is none or the server does not score a first text;
    RewardError naming URL, attempts and last cause where it fails later.
    One thread at a time; every process has its own connection.
    """

    def __init__(
        self,
        path: str,
        *,
        field: str = "rewards.path",
        index: int | None = None,
        token: str | None = None,
        attempts: int = ATTEMPTS,
        texts: int = TEXTS,
        timeout: float = ANSWER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_url(field, path)
        parts = urlsplit(path)
        self.url = path if parts.path.strip("/") else f"{path.rstrip('/')}/score"
        self.name = parts.netloc
        self.attempts, self.texts, self.timeout, self._sleep = attempts, texts, timeout, sleep
        self._token = token if token is not None else _environment_token(index)
        self._link: _Link | None = None
        self._chance = random.Random(os.urandom(8))  # the seeded generator is the training's
        try:
            self._ask([[Message("user", "?")]], ["!"], attempts=min(attempts, 3))
        except RewardError as error:
            fix = "Start it with python -m reward_models serve, then start this run"
            if isinstance(error, _Refusal) and error.status in (401, 403):
                fix = f"Set {TOKEN} to the server's token"
            raise UserError(field, path, f"does not score: {error}", fix) from error

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the server's scores, checked."""
        scores: list[Any] = []
        for start in range(0, len(completions), self.texts):
            part = slice(start, start + self.texts)
            scores += self._ask(prompts[part], completions[part], start=start)
        return checked(self.name, scores, completions)

    def _ask(
        self,
        prompts: list[list[Message]],
        completions: list[str],
        *,
        start: int = 0,
        attempts: int | None = None,
    ) -> list[Any]:
        """The scores of one request; halves of it where the server finds it too large."""
        items = [
            {"prompt": [m.to_json() for m in prompt], "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        body = json.dumps({"items": items}).encode("ascii")
        last = start + len(items) - 1
        about = f"completion {start}" if last == start else f"completions {start} to {last}"
        try:
            answer = self._post(body, about, attempts or self.attempts)
        except _Refusal as error:
            if error.status != 413 or len(items) == 1:
                raise
            half = len(items) // 2
            return [
                *self._ask(prompts[:half], completions[:half], start=start),
                *self._ask(prompts[half:], completions[half:], start=start + half),
            ]
        return self._scores(answer, len(items), start, about)

    def _scores(self, answer: bytes, count: int, start: int, about: str) -> list[Any]:
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise RewardError(f"{self.url} sent no JSON for {about}: {error}") from None
        scores = value.get("scores") if isinstance(value, dict) else None
        if not isinstance(scores, list):
            shown = answer[:80].decode("utf-8", "replace")
            raise RewardError(f"{self.url} sent no list of scores for {about}: {shown!r}")
        if len(scores) != count:
            raise RewardError(f"{self.url} sent {len(scores)} scores for {about}, {count} texts")
        for i, score in enumerate(scores):
            if not _is_finite(score):
                raise RewardError(
                    f"{self.url} sent {score!r} for completion {start + i}; it must be a finite "
                    "number"
                )
        return scores

    def _post(self, body: bytes, about: str, attempts: int) -> bytes:
        """The body of the answer 200; retried where another attempt may help."""
        cause = ""
        for attempt in range(1, attempts + 1):
            wait = min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            wait *= self._chance.uniform(0.5, 1.0)  # ranks do not come back together
            try:
                status, headers, answer = self._send(body)
            except (OSError, http.client.HTTPException) as error:
                self._link = None
                cause = _named(error)
            else:
                if status == 200:
                    return answer
                cause = f"{status}: {_reason(answer)}"
                if status not in RETRIED:
                    raise _Refusal(status, f"{self.url} refuses {about}, {cause}")
                wait = max(wait, min(_retry_after(headers), MAX_ASKED_WAIT_S))
            if attempt < attempts:
                self._sleep(wait)
        raise RewardError(
            f"{self.url} gave no scores for {about} in {attempts} attempts; the last ended with "
            f"{cause}"
        )

    def _send(self, body: bytes) -> tuple[int, Any, bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._link is not None and self._link.usable:
            try:
                return self._link.post(body, headers)
            except (ConnectionError, http.client.BadStatusLine):
                pass  # closed while it was idle: that is no failed attempt
        self._link = _Link(self.url, self.timeout)
        return self._link.post(body, headers)


class _Refusal(RewardError):
    """The server says no, and would say it again."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Link:
    """One open connection."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        assert parts.hostname is not None
        self.connection = kind(parts.hostname, parts.port, timeout=CONNECT_S)
        self.target = parts.path + (f"?{parts.query}" if parts.query else "")
        self.timeout, self.process = timeout, os.getpid()
        self.usable = True

    def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        """(status, headers, body) of the answer."""
        connection = self.connection
        if self.process != os.getpid():  # a child must not write into its parent's connection
            raise ConnectionError("another process opened this connection")
        self.usable = False  # until the answer has been read to its end
        if connection.sock is None:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self.timeout)
        connection.request("POST", self.target, body, headers)
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if len(answer) > MAX_ANSWER:
            raise http.client.HTTPException(f"the answer has more than {MAX_ANSWER} bytes")
        self.usable = not response.will_close
        return response.status, response.headers, answer


def _environment_token(index: int | None) -> str | None:
    """The token that the environment has for the reward at this place of the list."""
    for name in (f"{TOKEN}_{index}", TOKEN):
        token = os.environ.get(name)
        if token and not all("!" <= char <= "~" for char in token):
            reason = "has spaces or characters that a header cannot carry"
            raise UserError(name, NO_VALUE, reason, "Use the server's token")
        if token:
            return token
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _retry_after(headers: Any) -> float:
    """Seconds that Retry-After asks for, as a number or a date; 0 without it."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _reason(answer: bytes) -> str:
    """What the server says is wrong, on one line."""
    try:
        value = json.loads(answer)
        text = str(value["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = answer[:200].decode("utf-8", "replace")
    return " ".join(text.split()) or "no explanation"


def _named(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}".rstrip(": ")
