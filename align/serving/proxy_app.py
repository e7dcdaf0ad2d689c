"""The proxy as an ASGI application: passes everything on as it comes, and notes chat completions.

What is not passed on unchanged: headers that hold for one connection only and Date; of chat
completions the client's Accept-Encoding, so that answers can be read; and X-Request-Id, which in an
answer is the line's id in the log, and goes to the engine where the client sent none of its own.
aiohttp is the client because it hands on the bytes of a stream at a fifth of httpx's CPU time.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import yarl
from multidict import CIMultiDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from align.feedback.records import now
from align.serving.chat_reply import ChatReply
from align.serving.exchange import Exchange, failure_of, record_of
from align.serving.proxy_metrics import ProxyMetrics
from align.serving.request_log import RequestLog, UnknownAnswer
from reward_models.annotations.feedback import SINGLE_VOTES
from reward_models.server_options import bears

CHAT = "/chat/completions"
REQUEST_ID = "X-Request-Id"
NO_TEXTS = "X-Log-Texts"  # "no": of this request figures only
MAX_VOTE, MAX_NAME, MAX_COMMENT = 64 << 10, 80, 2000
CONNECT_S = 10.0
# RFC 9110, 7.6.1; Host is the engine's.
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "host"}  # fmt: skip
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Proxy:
    """State of one proxy. upstream: http://host:port of the engine. log: None: nothing is kept."""

    def __init__(self, upstream: str, log: Path | None, *, log_texts: bool, token: str | None):
        self.upstream, self.log_texts, self.token = upstream.rstrip("/"), log_texts, token
        self.metrics = ProxyMetrics()
        self.log = log and RequestLog(
            log, written=self.metrics.lines.inc,
            lost=lambda reason: self.metrics.lost.labels(reason).inc(),
        )  # fmt: skip
        self._client: aiohttp.ClientSession | None = None

    @property
    def client(self) -> aiohttp.ClientSession:
        """The connections to the engine; the application opens and closes them."""
        assert self._client is not None
        return self._client

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Hold connections to the engine; write what waits for the log at the end."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with aiohttp.ClientSession(
            # Kept connections end as they are used: on the loopback a new one costs nothing.
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=limits,
            auto_decompress=False, skip_auto_headers=_AUTOMATIC,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as self._client:  # fmt: skip
            yield
        if self.log is not None:
            await asyncio.to_thread(self.log.close)

    async def forward(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI call: pass it on until the answer has ended or the client has left."""
        request = Request(scope, receive)
        passing = Passing(self, request, await request.body())
        work = asyncio.ensure_future(passing.run(send))
        gone = asyncio.ensure_future(_gone(receive))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def feedback(self, request: Request) -> Response:
        """Take {"id", "vote": "up" | "down", "annotator"?, "comment"?}."""
        if not self.knows(request):
            return _wrong(401, "Authorization has no valid token")
        if self.log is None:
            return _wrong(404, "nothing is logged here: start with a request log")
        data = await request.body()
        try:
            vote = _vote_of(data)
        except ValueError as error:
            return _wrong(422, str(error))
        try:
            taken = await asyncio.wrap_future(self.log.vote(**vote))
        except UnknownAnswer:
            reason = "is no answer that was logged today or yesterday"
            return _wrong(404, f"id={vote['answer'][:80]!r} {reason}")
        except OSError as error:
            return _wrong(503, f"the vote could not be written: {error.strerror or error}")
        self.metrics.votes.labels(vote["vote"]).inc()
        return JSONResponse({"id": taken.id, "answer": taken.answer, "vote": vote["vote"],
                             "replaced": taken.replaced, "texts": taken.texts})  # fmt: skip

    async def show_metrics(self, request: Request) -> Response:
        """The proxy's own figures and the engine's page."""
        if not self.knows(request):
            return _wrong(401, "Authorization has no valid token")
        engine = None
        headers = {"accept": "text/plain; version=0.0.4"}
        if "authorization" in request.headers:
            headers["authorization"] = request.headers["authorization"]
        try:
            limit = aiohttp.ClientTimeout(total=CONNECT_S)
            url = f"{self.upstream}/metrics"
            async with self.client.get(url, headers=headers, timeout=limit) as answer:
                if answer.status == 200:
                    engine = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            pass
        return Response(self.metrics.page(engine), media_type=self.metrics.content_type)

    def knows(self, request: Request) -> bool:
        """Whether a request for the proxy itself has the token, or none is asked for."""
        return bears(request.headers.get("authorization", ""), self.token)


class Passing:
    """One request on its way through."""

    def __init__(self, proxy: Proxy, request: Request, body: bytes) -> None:
        self.proxy, self.request, self.body = proxy, request, body
        self.id, self.time, self.start = uuid.uuid4().hex, now(), time.perf_counter()
        path = request.url.path.rstrip("/")
        self.is_chat = request.method == "POST" and path.endswith(CHAT)
        self.reply: ChatReply | None = None
        self.status: int | None = None
        self.failure: str | None = "disconnected"  # until something else is known
        self.begun = False

    async def run(self, send: Any) -> None:
        """Ask the engine and send its answer; then note it, whatever came of it."""
        if not self.is_chat:
            return await self._run(send)
        self.proxy.metrics.under_way.inc()
        try:
            return await self._run(send)
        finally:
            self.proxy.metrics.under_way.dec()
            self._note()

    async def _run(self, send: Any) -> None:
        try:
            async with self.proxy.client.request(
                self.request.method, self._url(), headers=self._headers(), data=self.body or None,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                try:
                    await self._pass_on(answer, send)
                except asyncio.CancelledError:
                    answer.close()  # the engine stops writing what nobody reads
                    if self.reply is not None and self.reply.ended:  # nothing was left to read
                        self.failure = failure_of(answer.status, self.reply)
                    raise
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            self.failure = "connection"
            if self.begun:  # without its last part the client sees that the answer was cut
                return
            reason = f"the engine does not answer: {type(error).__name__}"
            response = _wrong(502, reason, {REQUEST_ID: self.id})
            await response(self.request.scope, self.request.receive, send)

    async def _pass_on(self, answer: aiohttp.ClientResponse, send: Any) -> None:
        self.status, self.begun = answer.status, True
        streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
        self.reply = ChatReply(streamed)
        left_out = {*_HOP, "date", REQUEST_ID.lower()}
        headers = [(k.lower(), v) for k, v in answer.raw_headers
                   if k.lower().decode("latin-1") not in left_out]  # fmt: skip
        headers.append((REQUEST_ID.lower().encode(), self.id.encode()))
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        await send(start)
        async for data in answer.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if self.is_chat:
                self.reply.feed(data, time.perf_counter())
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.reply.close(time.perf_counter())
        self.failure = failure_of(answer.status, self.reply)

    def _url(self) -> yarl.URL:
        """The engine's URL with path and query as the client wrote them."""
        path = self.request.scope.get("raw_path") or self.request.scope["path"].encode()
        query = self.request.scope.get("query_string", b"")
        tail = path + (b"?" + query if query else b"")
        return yarl.URL(self.proxy.upstream + tail.decode("latin-1"), encoded=True)

    def _headers(self) -> CIMultiDict[str]:
        left_out = {*_HOP, "accept-encoding"} if self.is_chat else _HOP
        given = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in self.request.headers.raw]
        kept = CIMultiDict([(k, v) for k, v in given if k.lower() not in left_out])
        kept.setdefault(REQUEST_ID, self.id)
        return kept

    def _note(self) -> None:
        spent = time.perf_counter() - self.start
        first = None
        if self.reply is not None and self.reply.first_at is not None:
            first = self.reply.first_at - self.start
        exchange = Exchange(
            self.id, self.time, self.body, self.reply, self.status, self.failure, spent, first
        )
        self.proxy.metrics.observe(exchange)
        if self.proxy.log is not None:
            refused = self.request.headers.get(NO_TEXTS, "").strip().lower() == "no"
            texts = self.proxy.log_texts and not refused
            self.proxy.log.put(partial(record_of, exchange, texts=texts))


def create_app(
    upstream: str, log: Path | None, *, log_texts: bool = False, token: str | None = None
) -> Starlette:
    """The application. token: what /feedback and /metrics ask for; the engine has its own keys.

    ``app.state.proxy`` is the Proxy.
    """
    proxy = Proxy(upstream, log, log_texts=log_texts, token=token)
    app = Starlette(
        routes=[
            Route("/feedback", proxy.feedback, methods=["POST"]),
            Route("/metrics", proxy.show_metrics, methods=["GET"]),
            Mount("/", app=proxy.forward),
        ],
        lifespan=proxy.running,
    )
    app.state.proxy = proxy
    return app


async def _gone(receive: Any) -> None:
    """Returns when the client has closed the connection; the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        continue


def _vote_of(data: bytes) -> dict[str, Any]:
    """The arguments of `RequestLog.vote`; ValueError with what is wrong."""
    if len(data) > MAX_VOTE:
        raise ValueError(f"the body has {len(data)} bytes; at most {MAX_VOTE} are taken")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError('the body is not an object: write {"id": …, "vote": "up"}')
    unknown = sorted(value.keys() - {"id", "vote", "annotator", "comment"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field; there are id, vote, annotator, comment")
    if value.get("vote") not in SINGLE_VOTES:
        raise ValueError(f"vote={value.get('vote')!r} is not known: use up or down")
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise ValueError(f"id is missing: send the header {REQUEST_ID} of the answer, or its id")
    for name, most in (("annotator", MAX_NAME), ("comment", MAX_COMMENT)):
        given = value.get(name)
        if given is not None and (not isinstance(given, str) or not 0 < len(given) <= most):
            raise ValueError(f"{name} is not a text of 1 to {most} characters")
    return {"answer": value["id"], "vote": value["vote"],
            "annotator": value.get("annotator"), "comment": value.get("comment")}  # fmt: skip


def _wrong(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the form that clients of the OpenAI API read."""
    error = {"message": message, "type": "proxy_error", "code": status}
    return JSONResponse({"error": error}, status, headers)
