"""An OpenAI-compatible server whose answers, delays and failures a test dictates; no model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse


@dataclass
class Say:
    """One answer. wait: seconds before the first piece; gap: between two; then: what comes after.

    then: "end" (as it should), "cut" (the connection breaks), "error" (an error event), "hang".
    """

    pieces: Sequence[str] = ("好", "的")
    wait: float = 0.0
    gap: float = 0.0
    then: str = "end"
    status: int = 200
    usage: bool = True
    finish: str = "stop"


@dataclass
class Stub:
    """answer: (number of the request from 0, its body) → Say. seen: bodies, headers and paths."""

    answer: Callable[[int, dict[str, Any]], Say]
    metrics: Callable[[], str] | None = None
    refused: Sequence[str] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: int = 0
    under_way: int = 0
    most: int = 0

    def __enter__(self) -> Stub:
        config = uvicorn.Config(
            self._app(), port=0, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.005)
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models() -> Any:
            return {"object": "list", "data": [{"id": "stub-model", "object": "model"}]}

        @app.get("/metrics")
        def metrics() -> Response:
            if self.metrics is None:
                return Response(status_code=404)
            return Response(self.metrics(), media_type="text/plain")

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            if any(name in body for name in self.refused):
                return Response('{"error": "unknown field"}', 422, media_type="application/json")
            say = self.answer(number, body)
            if say.status != 200:
                await asyncio.sleep(say.wait)
                text = '{"error": {"message": "今天不行"}}'
                return Response(text, say.status, media_type="application/json")
            if body.get("stream"):
                return StreamingResponse(self._events(number, body, say),
                                         media_type="text/event-stream")  # fmt: skip
            await asyncio.sleep(say.wait + say.gap * (len(say.pieces) - 1))
            message = {"role": "assistant", "content": "".join(say.pieces)}
            choice = {"index": 0, "message": message, "finish_reason": say.finish}
            value = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1,
                     "model": body["model"], "choices": [choice]}  # fmt: skip
            return Response(json.dumps(value | self._usage(say)), media_type="application/json")

        return app

    @staticmethod
    def _usage(say: Say) -> dict[str, Any]:
        n = len(say.pieces)
        counts = {"prompt_tokens": 7, "completion_tokens": n, "total_tokens": 7 + n}
        return {"usage": counts} if say.usage else {}

    async def _events(self, number: int, body: dict[str, Any], say: Say) -> Any:
        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            value = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1,
                     "model": body["model"], "choices": choices, **more}  # fmt: skip
            return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
            for i, piece in enumerate(say.pieces):
                await asyncio.sleep(say.gap if i else say.wait)
                yield event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            if say.then == "hang":
                await asyncio.sleep(30)
            if say.then == "cut":
                raise RuntimeError("the stub breaks the connection")
            if say.then == "error":
                yield 'data: {"error": {"message": "out of memory"}}\n\n'
                return
            yield event([{"index": 0, "delta": {}, "finish_reason": say.finish}])
            if (body.get("stream_options") or {}).get("include_usage") and say.usage:
                yield event([], **self._usage(say))
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.under_way -= 1
