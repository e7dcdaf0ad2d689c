"""Requests to a vLLM server: many at once over links that are kept, and given up when told to.

The endpoints and their fields are vLLM's own, for which trl's client is no way in: it needs vllm
importable beside the trainer, waits without a limit, and cannot be interrupted.
No torch.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from align.config_errors import Failed
from align.http_link import Links, header_token, named, reason

TOKEN = "ALIGN_ENGINE_TOKEN"
"""Environment variable: what a server that was started with --api-key wants to see."""
COMPLETIONS = "/v1/completions"
POLL_S = 0.1
CLOSING_S = 2.0


class EngineDown(Failed):
    """The engine gave no answer, or one that says that it has failed."""


class EngineRefused(Failed):
    """The engine answers, and refuses the request."""


class Asked(Protocol):
    """A vLLM that answers: a server over HTTP, or one in this process. Methods as of `VllmHttp`."""

    url: str

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer. EngineDown, or EngineRefused."""
        ...

    def ask_all(
        self,
        path: str,
        bodies: Sequence[Any],
        width: int,
        told: Callable[[], bool] = lambda: False,
    ) -> list[Any] | None:
        """Answers to POSTs in the order of the bodies; None if told to."""
        ...

    def healthy(self) -> bool:
        """Whether it says that it serves."""
        ...


class VllmHttp:
    """The HTTP side of one server; any thread may ask.

    url: http(s)://host:port. timeout: seconds for one answer.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.url, self.timeout = url.rstrip("/").removesuffix("/v1"), timeout
        token = header_token(TOKEN)
        self._headers = {"Content-Type": "application/json"}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._idle: list[Links] = []

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer, None where it has none. EngineDown, or EngineRefused."""
        link = self._take()
        answer = self._on(link, method, path, body)
        self._idle.append(link)
        return answer

    def ask_all(
        self,
        path: str,
        bodies: Sequence[Any],
        width: int,
        told: Callable[[], bool] = lambda: False,
    ) -> list[Any] | None:
        """Answers to POSTs in the order of the bodies, at most `width` under way; None if told to.

        The first that fails ends the others, and is raised: the server drops what nobody waits for.
        """
        links = [self._take() for _ in range(min(width, len(bodies)))]
        crowd = _Crowd(bodies, lambda link, body: self._on(link, "POST", path, body))
        threads = [threading.Thread(target=crowd.work, args=(link,), daemon=True) for link in links]
        crowd.running = len(threads)
        for thread in threads:
            thread.start()
        given_up = False
        while threads and not crowd.ended.wait(POLL_S) and not given_up:
            given_up = told()
        if not given_up and not crowd.errors:
            self._idle += links
            return crowd.answers
        first = None if given_up else crowd.errors[0]
        crowd.over = True
        for link in links:
            link.close()
        for thread in threads:
            thread.join(CLOSING_S)
        if first is not None:
            raise first
        return None

    def healthy(self) -> bool:
        """Whether it says that it serves."""
        try:
            self.ask("GET", "/health")
        except Failed:
            return False
        return True

    def _take(self) -> Links:
        return self._idle.pop() if self._idle else Links(self.url, self.timeout)

    def _on(self, link: Links, method: str, path: str, body: Any) -> Any:
        """One answer over a link of one thread."""
        data = None if body is None else json.dumps(body).encode("ascii")
        try:
            answer = link.ask(method, self.url + path, data, self._headers)
        except (OSError, http.client.HTTPException) as error:
            raise EngineDown(f"the engine at {self.url} is gone: {named(error)}") from error
        # The name is the run's own: a server without it has started again, and has yet to load it.
        lacks = answer.status == 404 and path == COMPLETIONS
        if answer.status >= 500 or lacks:
            raise EngineDown(
                f"the engine at {self.url} failed ({answer.status} on {path}): "
                + reason(answer.body)
            )
        if answer.status >= 400:
            raise EngineRefused(
                f"the engine at {self.url} refused {path} ({answer.status}): {reason(answer.body)}"
            )
        try:
            return json.loads(answer.body) if answer.body.strip() else None
        except ValueError:
            return None  # some say OK in words


class _Crowd:
    """What the threads of one `ask_all` share."""

    def __init__(self, bodies: Sequence[Any], ask: Callable[[Links, Any], Any]) -> None:
        self.bodies, self.ask = bodies, ask
        self.answers: list[Any] = [None] * len(bodies)
        self.errors: list[Exception] = []
        self.running, self.over, self.ended = 0, False, threading.Event()
        self._places, self._lock = iter(range(len(bodies))), threading.Lock()

    def work(self, link: Links) -> None:
        """One thread: the next body, until there is none."""
        try:
            while not self.over:
                with self._lock:
                    place = next(self._places, None)
                if place is None:
                    return
                self.answers[place] = self.ask(link, self.bodies[place])
        except Exception as error:
            self.errors.append(error)
            self.over = True
            self.ended.set()
        finally:
            with self._lock:
                self.running -= 1
                if self.running == 0:
                    self.ended.set()
