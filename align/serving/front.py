"""A thin HTTP front before an engine: who may ask, which paths, and what the engine gets wrong.

Before `transformers serve` (5.24) it also
- answers 400 or 404 in OpenAI's words where the engine would fail, or read over a field;
- counts the prompt: one that does not fit is refused, and an answer ends where the context does;
- leaves the stop string out of the answer, and ends a stream with [DONE].
Everything else passes through byte for byte, a stream chunk by chunk. Remove what the engine learns
to do; `docs/serving.md` lists it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse

from align.serving.front_stream import cut_answer, cut_stream
from align.serving.openai_body import (
    CHAT,
    TEXT,
    Context,
    Refused,
    check_body,
    fit,
    read_body,
    stops_of,
)
from reward_models.server_options import bears

MAX_BODY = 16 << 20
OPEN = ("/health",)  # without a key: says nothing, and load balancers ask it
PATHS = ("/metrics", "/v1/models", "/tokenize", "/detokenize", "/version", CHAT, TEXT)
_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "te", "upgrade"}
_UPSTREAM = httpx.Timeout(10.0, read=None)  # a request may wait its turn for long


class Front:
    """What a front knows. upstream: http://host:port of the engine. name: the served model.

    key: that clients must send. context: of the model, where this front has to check requests.
    """

    def __init__(
        self, upstream: str, name: str, *, key: str | None = None, context: Context | None = None
    ) -> None:
        self.upstream, self.name, self.key, self.context = upstream, name, key, context
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self.client = httpx.AsyncClient(base_url=upstream, timeout=_UPSTREAM, limits=limits)

    async def answer(self, request: Request) -> Response:
        """The engine's answer, or a refusal."""
        path = request.url.path
        if path not in OPEN:
            self._admit(request)
        if path not in (*OPEN, *PATHS):
            raise Refused(404, f"There is no {path} here.")
        data = await _read(request)
        if self.context is None or path not in (CHAT, TEXT):
            return await self._forward(request, data)
        body = read_body(data)
        check_body(body, self.name, chat=path == CHAT)
        await asyncio.to_thread(fit, body, self.context, chat=path == CHAT)
        return await self._generate(request, body, stops_of(body))

    def _admit(self, request: Request) -> None:
        if not bears(request.headers.get("authorization", ""), self.key):
            message = "The API key is missing or wrong: send Authorization: Bearer KEY."
            raise Refused(401, message, code="invalid_api_key")

    async def _send(self, request: Request, data: bytes) -> httpx.Response:
        headers = [(k, v) for k, v in request.headers.raw if k.decode().lower() not in _HOP]
        outgoing = self.client.build_request(
            request.method, request.url.path, params=request.query_params, content=data,
            headers=headers,
        )  # fmt: skip
        try:
            return await self.client.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            message = f"The engine does not answer ({type(error).__name__}); see the server's log."
            raise Refused(502, message) from None

    async def _forward(self, request: Request, data: bytes) -> Response:
        got = await self._send(request, data)
        headers = {k: v for k, v in got.headers.items() if k.lower() not in _HOP}
        return StreamingResponse(_passed_on(got), got.status_code, headers)

    async def _generate(self, request: Request, body: dict[str, Any], stops: list[str]) -> Response:
        got = await self._send(request, json.dumps(body).encode())
        if body.get("stream") and got.status_code == 200:
            headers = {"cache-control": "no-cache"}
            chat = request.url.path == CHAT
            events = cut_stream(got, stops, chat=chat)
            return StreamingResponse(events, 200, headers, media_type="text/event-stream")
        try:
            text = (await got.aread()).decode("utf-8", "replace")
        except httpx.HTTPError:
            raise Refused(502, "The engine ended in mid-answer; see the server's log.") from None
        finally:
            await got.aclose()
        if got.status_code != 200:
            status = 400 if got.status_code == 422 else got.status_code
            raise Refused(status, f"The engine says: {_detail(text)}")
        return JSONResponse(cut_answer(json.loads(text), stops))


def make_app(front: Front) -> FastAPI:
    """The ASGI application of a front."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await front.client.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return JSONResponse(Refused(error.status_code, str(error.detail)).body(), error.status_code)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def everything(request: Request) -> Response:
        return await front.answer(request)

    return app


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise Refused(413, f"The body is over {MAX_BODY >> 20} MiB.")
        parts.append(part)
    return b"".join(parts)


async def _passed_on(got: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in got.aiter_raw():
            yield part
    finally:
        await got.aclose()


def _detail(text: str) -> str:
    """The words in an error of FastAPI, else the text."""
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500]
    return detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False)[:500]
