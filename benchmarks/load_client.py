"""The client side of serve_load.py: one timed chat request, and a level of many at once."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from align.serving.chat_reply import ChatReply

# Tried in turn at the warm-up until one is taken: the answer's length then is max_tokens, and the
# stream ends with the server's token counts. The second form is that of transformers' own server,
# which fills a null with the model's own end token: -1 is none.
USAGE = {"stream_options": {"include_usage": True}}
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ignore_eos", {"ignore_eos": True}),
    ("generation_config", {"generation_config": '{"do_sample": false, "eos_token_id": -1}'}),
    ("neither: answers may end early", {}),
)
_TOPICS = {
    "zh": ("酒店的早餐", "城市的地铁", "一本旧书", "海边的日出", "家里的猫", "山里的茶园",
           "学校的图书馆", "冬天的火锅", "第一次坐飞机", "公园里的银杏"),
    "en": ("a hotel breakfast", "the night bus", "an old bridge", "a rainy market",
           "learning chess", "a garden in spring", "the school library", "a long train ride",
           "a small bakery", "the first snow"),
}  # fmt: skip
_ASKS = {
    "zh": ("请详细介绍{0}，并说明你的理由。", "写一段关于{0}的文字，要有细节。",
           "{0}有什么优点和缺点？请逐条说明。"),
    "en": ("Describe {0} in detail and say why.", "Write a paragraph about {0}, with details.",
           "What speaks for {0}, and what against it? Go point by point."),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came of one request. failure: http_503, timeout, connection, empty, stream, or None.

    latency, first, per_token: seconds to the whole answer, to its first piece, and for each token
    after that. tokens: of the answer; counted: as pieces of the stream, the server sent no usage.
    """

    failure: str | None
    latency: float
    first: float | None = None
    per_token: float | None = None
    tokens: int | None = None
    counted: bool = False
    detail: str = ""


@dataclass
class Level:
    """What came of all requests at one concurrency. seconds: wall-clock time of the level.

    started: requests that were sent; those without a result were cut off. client_cpu: share of one
    core that this process used.
    """

    concurrency: int
    results: list[Result] = field(default_factory=list)
    started: int = 0
    seconds: float = 0.0
    client_cpu: float = 0.0
    stopped: str | None = None


def prompts(seed: int, own: Sequence[str] = ()) -> Iterator[str]:
    """Endless prompts, Chinese and English in turn (or one's own), no two of them alike.

    Each begins with a number of its own: what a server keeps of earlier prompts helps it no further
    than to the end of the chat template's opening.
    """
    rng = random.Random(seed)
    number = 0
    while True:
        tag = f"[{rng.randrange(16**6):06x}{number:x}]"
        if own:
            text = own[number % len(own)]
        else:
            language = ("zh", "en")[number % 2]
            text = rng.choice(_ASKS[language]).format(rng.choice(_TOPICS[language]))
        yield f"{tag} {text}"
        number += 1


def body_of(prompt: str, model: str, max_tokens: int, stream: bool, extra: dict[str, Any]) -> bytes:
    """The JSON body of one request; greedy, so that every engine does the same work."""
    value = {
        "model": model, "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens, "temperature": 0.0, "stream": stream,
        **(USAGE if stream else {}), **extra,
    }  # fmt: skip
    return json.dumps(value, ensure_ascii=False).encode()


def open_client(token: str | None = None) -> aiohttp.ClientSession:
    """A client without any limit on connections or time, and without the environment's proxies.

    aiohttp, because its parser is compiled: of 64 streams of 64 pieces at once it takes 1.5 ms of
    CPU a request where httpx takes 7, and what the client takes is the server's to lose.
    """
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    return aiohttp.ClientSession(
        # A connection each: a server that ends a kept one as it is used would count as failing
        # (llama.cpp did), and to open one takes a fraction of a millisecond.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None), headers=headers,
    )  # fmt: skip


async def ask(client: aiohttp.ClientSession, url: str, body: bytes, timeout: float) -> Result:
    """Send one request and read its answer; a request that takes longer than timeout failed."""
    start = time.perf_counter()
    try:
        return await asyncio.wait_for(_ask(client, url, body, start), timeout)
    except asyncio.TimeoutError:
        return Result("timeout", time.perf_counter() - start)
    except (aiohttp.ClientError, OSError) as error:
        detail = f"{type(error).__name__}: {error}"[:300]
        return Result("connection", time.perf_counter() - start, detail=detail)


async def _ask(client: aiohttp.ClientSession, url: str, body: bytes, start: float) -> Result:
    async with client.post(url, data=body) as response:
        if response.status != 200:
            text = await response.text(errors="replace")
            spent = time.perf_counter() - start
            return Result(f"http_{response.status}", spent, detail=text[:300])
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        reply = ChatReply(streamed)
        async for data in response.content.iter_any():
            reply.feed(data, time.perf_counter())
    end = time.perf_counter()
    reply.close(end)
    return _result(reply, start, end)


def _result(reply: ChatReply, start: float, end: float) -> Result:
    if reply.error or not reply.ended:
        return Result("stream", end - start, detail=reply.error or "ended early")
    if not reply.pieces:
        return Result("empty", end - start)
    tokens = reply.tokens("completion_tokens")
    counted = tokens is None and reply.streamed
    tokens = reply.pieces if counted else tokens
    first = None if reply.first_at is None else reply.first_at - start
    per_token = None
    if reply.first_at is not None and reply.last_at is not None and tokens and tokens > 1:
        per_token = (reply.last_at - reply.first_at) / (tokens - 1)
    return Result(None, end - start, first, per_token, tokens, counted)


async def run_level(
    send: Callable[[], Awaitable[Result]],
    concurrency: int,
    requests: int,
    *,
    seconds: float,
    total_left: float,
    stop: asyncio.Event,
) -> Level:
    """Keep `concurrency` requests under way until `requests` were sent.

    After `seconds` no new one is sent, and those under way end or time out. After total_left
    seconds, or when `stop` is set, they are cut off.
    """
    level = Level(concurrency)
    start, cpu = time.perf_counter(), time.process_time()

    async def worker() -> None:
        while level.started < requests and not stop.is_set():
            if time.perf_counter() - start > seconds:
                level.stopped = f"no new request after {seconds:g} s"
                return
            level.started += 1
            level.results.append(await send())

    workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, requests))]
    told = asyncio.create_task(stop.wait())
    everything = asyncio.gather(*workers, return_exceptions=True)
    await asyncio.wait({everything, told}, timeout=total_left, return_when="FIRST_COMPLETED")
    if not everything.done():
        level.stopped = "interrupted" if stop.is_set() else "the total time was over"
    for task in (*workers, told):
        task.cancel()
    errors = [e for e in await everything if isinstance(e, Exception)]
    level.seconds = time.perf_counter() - start
    level.client_cpu = (time.process_time() - cpu) / max(level.seconds, 1e-9)
    if errors:
        raise errors[0]
    return level


def percentile(values: Sequence[float], p: float) -> float | None:
    """The nearest-rank percentile: the ⌈p/100 · n⌉-th smallest value; None of none."""
    if not values:
        return None
    return sorted(values)[max(1, math.ceil(p / 100 * len(values))) - 1]


def summary(level: Level) -> dict[str, Any]:
    """The figures of a level; times in seconds, of completed requests only."""
    done = [r for r in level.results if r.failure is None]
    tokens = [r.tokens for r in done if r.tokens is not None]
    sources = {"counted" if r.counted else "usage" for r in done if r.tokens is not None}
    latency = [r.latency for r in done]
    first = [r.first for r in done if r.first is not None]
    per_token = [r.per_token for r in done if r.per_token is not None]
    details = {r.failure: r.detail for r in level.results if r.failure and r.detail}
    return {
        "concurrency": level.concurrency,
        "started": level.started,
        "completed": len(done),
        "failures": dict(Counter(r.failure for r in level.results if r.failure).most_common()),
        "failure_details": details,
        "unfinished": level.started - len(level.results),
        "stopped": level.stopped,
        "seconds": level.seconds,
        "latency": {f"p{p}": percentile(latency, p) for p in (50, 95, 99)},
        "first_token": {f"p{p}": percentile(first, p) for p in (50, 95)},
        "per_token": {f"p{p}": percentile(per_token, p) for p in (50, 95)},
        "tokens": sum(tokens) if tokens else None,
        "tokens_from": " and ".join(sorted(sources)) or None,
        "tokens_per_answer": sum(tokens) / len(tokens) if tokens else None,
        "tokens_per_s": sum(tokens) / level.seconds if tokens else None,
        "requests_per_s": len(done) / level.seconds if level.seconds else None,
        "client_cpu": level.client_cpu,
    }
