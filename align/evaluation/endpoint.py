"""A chat model behind any OpenAI-compatible server: asked in parallel, answers kept on disk.

What a judge, a red team or a data set needs of such a server: many conversations in, one text or
one reason for each out. No torch and no SDK: the wire format is `POST
…/v1/chat/completions` of the OpenAI API.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from align.config_errors import UserError
from align.config_files import check_url
from align.files import read_object, write_atomic
from align.http_link import Links, header_token, named, reason, retry_after
from align.records import Message, messages_json

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
MAX_ASKED_WAIT_S = 120.0  # a server that asks for more is tried again after this
RETRIED = {408, 409, 425, 429, *range(500, 600)}
# What the server says of the key, the address or the model holds for every other question too.
HOPELESS = {401, 402, 403, 404}
COUNTS = ("calls", "cached", "retries", "failed", "prompt_tokens", "completion_tokens")


class Answer(NamedTuple):
    """What came of one conversation: a text, or why there is none."""

    text: str | None
    error: str | None = None


class Endpoint:
    """A model of an OpenAI-compatible server.

    url: http(s)://host[:port]/v1, to which /chat/completions is added where it is missing.
    api_key_env: the environment's variable with the key, read at every call, sent as a bearer token
    and never written; unset: no key is sent. cache: a folder with one file for each answered
    request, named by a hash of URL, model, messages and decoding; processes may share it, errors
    are not kept. retries: further attempts after 408, 409, 425, 429, 5xx and broken or late
    answers, with waits of 0.5 s · 2^k up to 30 s, half of it random, or what Retry-After says.
    concurrency: requests under way at once. price_in, price_out: of a million tokens.
    body: further fields of the request; null takes one out (`{max_tokens: null,
    max_completion_tokens: 512}`). Raises UserError where url, a number or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        cache: str | Path | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        concurrency: int = 4,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        price_in: float = 0.0,
        price_out: float = 0.0,
        body: Mapping[str, Any] | None = None,
        field: str = "endpoint",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        fix = "Write http://host:port/v1, as the server's documentation says"
        check_url(f"{field}.url", url, fix=fix, token=api_key_env)
        if not model:
            raise UserError(f"{field}.model", model, "is empty", "Name a model that is served")
        numbers = {
            "timeout_s": (timeout_s, 0.001), "retries": (retries, 0),
            "concurrency": (concurrency, 1), "max_tokens": (max_tokens, 1),
            "temperature": (temperature, 0), "price_in": (price_in, 0), "price_out": (price_out, 0),
        }  # fmt: skip
        for name, (value, least) in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
                raise UserError(f"{field}.{name}", value, f"is not a number from {least} on")
        self.url, self.model, self.name = _chat_url(url), model, model
        self.api_key_env, self.cache = api_key_env, None if cache is None else Path(cache)
        self.timeout_s, self.retries, self.concurrency = timeout_s, int(retries), int(concurrency)
        self.prices = (price_in, price_out)
        self._decoding = {"max_tokens": int(max_tokens), "temperature": temperature, **(body or {})}
        self._sleep, self._chance = sleep, random.Random(os.urandom(8))
        self._local, self._lock = threading.local(), threading.Lock()
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    @property
    def cost(self) -> float:
        """What the tokens of all calls so far cost, in the currency of the prices."""
        tokens = (self.counts["prompt_tokens"], self.counts["completion_tokens"])
        return sum(n * p for n, p in zip(tokens, self.prices, strict=True)) / 1e6

    def to_json(self) -> dict[str, Any]:
        """Model, counts and cost, for a report."""
        return {"model": self.model, **{k: self.counts[k] for k in COUNTS}, "cost": self.cost}

    def check(self, field: str = "endpoint") -> None:
        """Ask one short question; UserError about field where no text comes back."""
        answer = self.ask([[Message("user", "Reply with OK.")]])[0]
        if answer.text is None:
            fix = f"Start the server, or check url, model and the key in {self.api_key_env}"
            raise UserError(field, self.url, f"does not answer: {answer.error}", fix)

    def ask(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """One answer for each conversation, in their order.

        Equal conversations are asked once at temperature 0; above it, each gets its own sample. A
        refusal that holds for all (key, address or model) ends the batch: what has not been asked
        gets the same reason.
        """
        header_token(self.api_key_env)  # a key that no header can carry is said before any call
        tasks, keys, seen = {}, [], Counter()
        for conversation in conversations:
            request = self._request(conversation)
            text = json.dumps([self.url, request], sort_keys=True, ensure_ascii=False)
            repeat = seen[text] if request.get("temperature") else 0
            seen[text] += 1
            key = hashlib.sha256(f"{repeat}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()
            tasks.setdefault(key, request)
            keys.append(key)
        stop: list[str] = []
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            found = pool.map(lambda item: self._answer(item[0], item[1], stop), tasks.items())
            answers = dict(zip(tasks, found, strict=True))
        return [answers[key] for key in keys]

    def _request(self, conversation: Sequence[Message]) -> dict[str, Any]:
        request = {"model": self.model, "messages": messages_json(conversation), **self._decoding}
        return {k: v for k, v in request.items() if v is not None}

    def _answer(self, key: str, request: dict[str, Any], stop: list[str]) -> Answer:
        """From the cache, else from the server; counted."""
        kept = self._kept(key)
        if kept is not None:
            self._count(cached=1)
            return Answer(kept)
        if stop:
            self._count(failed=1)
            return Answer(None, stop[0])
        try:
            text, usage = self._call(request, stop)
        except _NoAnswer as error:
            self._count(failed=1)
            return Answer(None, str(error))
        self._count(**{k: _tokens(usage, k) for k in ("prompt_tokens", "completion_tokens")})
        if self.cache is not None:
            entry = {"request": request, "text": text, "usage": usage}
            write_atomic(self._file(key), json.dumps(entry, ensure_ascii=True) + "\n")
        return Answer(text)

    def _call(self, request: dict[str, Any], stop: list[str]) -> tuple[str, dict[str, Any]]:
        """Text and usage of one request; _NoAnswer where another attempt would not help."""
        payload, cause = json.dumps(request).encode("ascii"), ""
        for attempt in range(self.retries + 1):
            wait = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * self._chance.uniform(0.5, 1.0)
            self._count(calls=1, retries=int(attempt > 0))
            try:
                answer = self._links().ask("POST", self.url, payload, self._headers())
            except (OSError, http.client.HTTPException) as error:
                cause = named(error)
            else:
                if answer.status == 200:
                    return _read(answer.body)
                cause = f"{answer.status}: {reason(answer.body)}"
                if answer.status not in RETRIED:
                    if answer.status in HOPELESS:
                        stop.append(cause)
                    raise _NoAnswer(cause)
                asked = min(retry_after(answer.headers), MAX_ASKED_WAIT_S)
                wait = max(wait, asked * self._chance.uniform(1.0, 1.25))
            if attempt < self.retries:
                self._sleep(wait)
        raise _NoAnswer(f"no answer in {self.retries + 1} attempts; the last: {cause}")

    def _links(self) -> Links:
        """This thread's connection."""
        if not hasattr(self._local, "links"):
            self._local.links = Links(self.url, self.timeout_s)
        return self._local.links

    def _headers(self) -> dict[str, str]:
        key = header_token(self.api_key_env)
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Accept": "application/json", "Content-Type": "application/json", **auth}

    def _file(self, key: str) -> Path:
        assert self.cache is not None
        return self.cache / key[:2] / f"{key}.json"

    def _kept(self, key: str) -> str | None:
        text = read_object(self._file(key)).get("text") if self.cache is not None else None
        return text if isinstance(text, str) else None

    def _count(self, **found: int) -> None:
        with self._lock:
            self.counts.update(found)


class _NoAnswer(Exception):
    """Why a conversation has no answer."""


def _chat_url(url: str) -> str:
    parts = urlsplit(url)
    path = parts.path.rstrip("/") or "/v1"
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urlunsplit(parts._replace(path=path))


def _read(body: bytes) -> tuple[str, dict[str, Any]]:
    """Text and usage of an answer 200."""
    try:
        value = json.loads(body)
        message = value["choices"][0]["message"]
        text, usage = message["content"], value.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = body[:80].decode("utf-8", "replace")
        raise _NoAnswer(f"the server sent no chat completion: {shown!r}") from None
    if not isinstance(text, str):
        why = message.get("refusal") or value["choices"][0].get("finish_reason")
        raise _NoAnswer(f"the answer has no text ({why or 'no reason given'})")
    return text, usage if isinstance(usage, dict) else {}


def _tokens(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
