"""The HTTP application: paths, limits, errors. What scores is behind ``Engine``: no torch here."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from align.config_errors import NO_VALUE
from reward_models.server_batching import BadText, Batcher, Engine, NotFinite, QueueFull, Scored
from reward_models.server_metrics import Metrics
from reward_models.server_options import bears
from reward_models.server_requests import Refused, read_get_reward, read_json, read_score, refuse

PATHS = ("/score", "/get_reward", "/health", "/metrics")
MODEL = "Reward-Model"  # header of every answer with scores: what gave them, as in /health


@dataclass(frozen=True)
class Limits:
    """What one request and the queue may hold. timeout: seconds, for body and scores each."""

    max_body: int = 16 << 20
    max_texts: int = 256
    max_queue: int = 1024
    batch_size: int = 16
    max_wait: float = 0.005
    timeout: float = 60.0


class Service:
    """The state of a server: its queue, its figures, who may ask, and which model answers."""

    def __init__(
        self, engine: Engine, limits: Limits, token: str | None, model: str | None = None
    ) -> None:
        self.limits, self.token, self.model = limits, token, model
        self.metrics = Metrics(lambda: self.batcher.depth)
        self.batcher = Batcher(
            engine,
            batch_size=limits.batch_size,
            max_wait=limits.max_wait,
            max_queue=limits.max_queue,
            observe=self.metrics.batch_scored,
        )

    def knows(self, request: Request) -> bool:
        """Whether the request has the token, or none is asked for."""
        return bears(request.headers.get("authorization", ""), self.token)

    def admit(self, request: Request) -> None:
        """Refused 401 without the token."""
        if not self.knows(request):
            raise refuse(
                401, "Authorization", NO_VALUE, "has no valid token",
                "Send the header Authorization: Bearer TOKEN", WWW_Authenticate="Bearer",
            )  # fmt: skip

    def same_model(self, request: Request) -> None:
        """Refused 409 where ``?model=`` names another model than the one that is served."""
        for asked in request.query_params.getlist("model"):
            if asked != self.model:
                reason = f"is not served here: this is {self.model or 'a model without a name'}"
                fix = "Serve that model, or ask for this one"
                raise refuse(409, "model", asked, reason, fix)

    async def read(self, request: Request) -> Any:
        """The JSON value of the body. Refused 413 over max_body, 408 where it comes too slowly."""
        most = self.limits.max_body
        said = request.headers.get("content-length", "")
        if said.isdigit() and int(said) > most:
            raise _too_large(most, int(said))
        try:
            data = await asyncio.wait_for(_body(request, most), self.limits.timeout)
        except asyncio.TimeoutError:
            reason = f"did not arrive within {self.limits.timeout:g} s"
            raise refuse(408, "body", NO_VALUE, reason, "Send it faster, or less") from None
        except ClientDisconnect:
            raise refuse(400, "body", NO_VALUE, "ended early") from None
        return read_json(data)

    async def scores(self, request: Request, items: Sequence[Any], name: str) -> list[Scored]:
        """One Scored per item; name: the field that holds them, "" for a single item."""
        try:
            job = self.batcher.submit(items)
        except QueueFull as full:
            raise _busy(full) from None
        except RuntimeError as error:
            raise refuse(
                503, "server", NO_VALUE, str(error), "Ask another server", Retry_After="5"
            ) from None
        try:
            return await self._settled(request, asyncio.wrap_future(job.future))
        except NotFinite as error:
            where = f"{name}.{error.index}" if name else "score"
            fix = "The reward model has diverged, or its dtype overflows"
            raise refuse(500, where, NO_VALUE, error.reason, fix) from None
        except BadText as error:
            where = f"{name}.{error.index}" if name else "body"
            raise refuse(
                422, where, NO_VALUE, f"cannot be scored: {error.reason}", "Correct or leave it out"
            ) from None
        except RuntimeError as error:
            fix = "The server's log has more"
            raise refuse(500, "server", NO_VALUE, f"failed: {error}", fix) from None
        finally:
            job.future.cancel()  # at once; the event loop would do it after the answer is out

    async def _settled(
        self, request: Request, scores: asyncio.Future[list[Scored]]
    ) -> list[Scored]:
        """The scores. HTTP errors where nobody waits any more or they take too long."""
        gone = asyncio.ensure_future(_gone(request))
        try:
            done, _ = await asyncio.wait(
                {scores, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if scores in done:
                return scores.result()
            if gone in done:
                raise refuse(499, "request", NO_VALUE, "was given up by the client")
            reason = f"took more than {self.limits.timeout:g} s"
            fix = "Send fewer texts, or start the server with a larger --timeout"
            raise refuse(504, "request", NO_VALUE, reason, fix)
        finally:
            gone.cancel()


def create_app(
    engine: Engine,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    about: dict[str, Any] | None = None,
) -> FastAPI:
    """The application. about: what /health tells beside the limits. token: who has it may ask.

    about["model"]: a name that another model, or the same in another unit, does not have; answers
    carry it, and ``?model=`` asks for it.

    ``app.state.service`` is the Service; its queue is finished when the application shuts down.
    """
    about = about or {}
    service = Service(engine, limits or Limits(), token, about.get("model"))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_middleware(Measured, metrics=service.metrics)
    _handle_errors(app)
    _add_paths(app, service, about)
    return app


def _add_paths(app: FastAPI, service: Service, about: dict[str, Any]) -> None:
    limits = service.limits
    named = {MODEL: service.model} if service.model else {}

    async def body_of(request: Request) -> Any:
        service.admit(request)
        service.same_model(request)
        try:
            service.batcher.check_room()  # before megabytes are read
        except QueueFull as full:
            raise _busy(full) from None
        return await service.read(request)

    @app.post("/score")
    async def score(request: Request) -> Response:
        items, single = read_score(await body_of(request), limits.max_texts)
        found = await service.scores(request, items, "" if single else "items")
        cut = sum(scored.truncated for scored in found)
        if single:
            return _answer({"score": found[0].score, "truncated": cut}, headers=named)
        scores = [scored.score for scored in found]
        return _answer({"scores": scores, "truncated": cut}, headers=named)

    @app.post("/get_reward")
    async def get_reward(request: Request) -> Response:
        queries = read_get_reward(await body_of(request), limits.max_texts)
        found = await service.scores(request, queries, "query")
        rewards = [scored.score for scored in found]
        cut = [float(scored.truncated) for scored in found]
        told = {"rewards": rewards, "scores": rewards, "extra_logs": {"truncated": cut}}
        return _answer(told, headers=named)

    @app.get("/health")
    async def health(request: Request) -> Response:
        alive = service.batcher.alive
        told: dict[str, Any] = {"status": "ok" if alive else "the scoring thread has ended"}
        if service.knows(request):  # whether it lives may be seen by all, what it is may not
            told |= {**about, "limits": asdict(limits)}
        return _answer(told, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.admit(request)
        return Response(service.metrics.page(), media_type=service.metrics.content_type)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _answer(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "POST /score, POST /get_reward, GET /health, GET /metrics"
        shown = refuse(
            error.status_code, "path", f"{request.method} {request.url.path}",
            "is not offered", f"There are {known}",
        )  # fmt: skip
        return _answer(shown.body(), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        reason = f"failed: {type(error).__name__}"
        shown = refuse(500, "server", NO_VALUE, reason, "The server's log has more")
        return _answer(shown.body(), 500)


class Measured:
    """Counts requests by path and status, and times those that score."""

    def __init__(self, app: Callable[..., Awaitable[None]], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, path = time.monotonic(), scope["path"]
        status = 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            return await self.app(scope, receive, noted)
        finally:
            # Paths are the client's to choose: a label for each would fill the memory.
            label = path if path in PATHS else "other"
            self.metrics.requests.labels(label, str(status)).inc()
            if label in ("/score", "/get_reward"):
                self.metrics.seconds.observe(time.monotonic() - started)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _body(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:  # the rest is read and thrown away by uvicorn, so that 413 is seen
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int, size: int | None = None) -> Refused:
    said = f"has {size} bytes" if size else "is too large"
    reason = f"{said}, and at most {most} are taken"
    return refuse(413, "body", NO_VALUE, reason, "Send fewer texts at once")


def _busy(full: QueueFull) -> Refused:
    return refuse(
        503, "queue", NO_VALUE, f"is full: {full}", f"Try again in {full.retry_after} s",
        Retry_After=str(full.retry_after),
    )  # fmt: skip


def _answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII: a lone surrogate has no other form. Not finite numbers never come here.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return Response(text, status, headers, media_type="application/json")
