"""What the proxy's /metrics shows: its own counters, and the engine's page after them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from align.serving.exchange import Exchange

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ProxyMetrics:
    """Counters of one proxy, in a registry of their own; names begin with align_proxy_."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"align_proxy_{name}", text, labels, registry=registry)

        self.chats = counter("chats", "Chat completions, by the engine's status", "status")
        self.failures = counter("failures", "Chat completions without a whole answer", "kind")
        self.tokens = counter("tokens", "Tokens that the engine says it read or wrote", "kind")
        self.lines = counter("log_lines", "Lines written to the request log")
        self.lost = counter("log_lines_lost", "Lines that could not be written", "reason")
        self.votes = counter("votes", "Votes taken", "vote")
        self.under_way = Gauge(
            "align_proxy_chats_under_way", "Chat completions now", registry=registry
        )
        self.seconds = Histogram(
            "align_proxy_chat_seconds", "Seconds to the whole answer",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "align_proxy_first_token_seconds", "Seconds to the first piece of a stream",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.engine = Gauge(
            "align_proxy_engine_metrics", "1: the engine's page follows; 0: it has none",
            registry=registry,
        )  # fmt: skip

    def observe(self, exchange: Exchange) -> None:
        """Count one chat completion."""
        self.chats.labels(str(exchange.status or "none")).inc()
        if exchange.failure is not None:
            self.failures.labels(exchange.failure).inc()
            return
        self.seconds.observe(exchange.latency_s)
        if exchange.first_token_s is not None:
            self.first.observe(exchange.first_token_s)
        if exchange.reply is not None:
            for kind in ("prompt", "completion"):
                self.tokens.labels(kind).inc(exchange.reply.tokens(f"{kind}_tokens") or 0)

    def page(self, engine: bytes | None) -> bytes:
        """The text that Prometheus reads. engine: the engine's own page."""
        self.engine.set(float(engine is not None))
        return generate_latest(self.registry) + (engine or b"")
