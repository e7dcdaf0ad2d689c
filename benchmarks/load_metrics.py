"""What the server says of itself: its Prometheus page, read before, during and after a level."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp

# Ours: the names under which vLLM and llama.cpp's server publish it, the newest first.
GAUGES = {
    "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred"),
    "running": ("vllm:num_requests_running", "llamacpp:requests_processing"),
    "kv_cache": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc",
                 "llamacpp:kv_cache_usage_ratio"),
}  # fmt: skip
COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "tokens": ("vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
    "prefix_queries": ("vllm:prefix_cache_queries_total",),
    "prefix_hits": ("vllm:prefix_cache_hits_total",),
}
POLL_S = 0.5


def parse(page: str) -> dict[str, float]:
    """Our names: value, summed over labels (a queue each engine core), of those on the page.

    ValueError where it is no Prometheus text.
    """
    from prometheus_client.parser import text_string_to_metric_families

    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    found = {}
    for name, theirs in {**GAUGES, **COUNTERS}.items():
        known = [sums[t] for t in theirs if t in sums]
        if known:
            found[name] = known[0]
    return found


async def scrape(client: aiohttp.ClientSession, url: str) -> dict[str, float] | None:
    """The figures of url; None where there is no such page or nothing that we know on it."""
    try:
        limit = aiohttp.ClientTimeout(total=10)
        async with client.get(url, headers={"accept": "text/plain"}, timeout=limit) as response:
            if response.status != 200:
                return None
            return parse(await response.text()) or None
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
        return None


class Watch:
    """Reads the page every half second inside `async with`; `result()` afterwards."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client, self._url = client, url
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None
        self.most: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self.before = await scrape(self._client, self._url)
        if self.before is not None:
            self._note(self.before)
            self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *_: Any) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self.after = await scrape(self._client, self._url)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._note(await scrape(self._client, self._url) or {})

    def _note(self, now: dict[str, float]) -> None:
        for name in GAUGES:
            if name in now:
                self.most[name] = max(self.most.get(name, 0.0), now[name])

    def result(self) -> dict[str, float] | None:
        """max_waiting, max_running, max_kv_cache, and what its counters grew by; None: no page."""
        if self.before is None or self.after is None:
            return None
        grown = {k: self.after[k] - self.before[k] for k in COUNTERS
                 if k in self.after and k in self.before}  # fmt: skip
        return {**{f"max_{k}": v for k, v in self.most.items()}, **grown}
