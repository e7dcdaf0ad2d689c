"""What /metrics shows, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One server's counters; each has a registry of its own. queue: texts that wait now."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queue: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "reward_requests",
            "Requests, by path and status",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "reward_request_seconds",
            "Seconds from request to answer, of requests that score",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "reward_batch_size", "Texts scored in one pass", buckets=TEXTS, registry=registry
        )
        self.texts = Counter("reward_texts", "Texts scored", registry=registry)
        self.cut = Counter("reward_texts_truncated", "Texts shortened", registry=registry)
        depth = Gauge("reward_queue_depth", "Texts that wait", registry=registry)
        depth.set_function(queue)

    def batch_scored(self, texts: int, cut: int) -> None:
        """Count one pass of the model."""
        self.batch.observe(texts)
        self.texts.inc(texts)
        self.cut.inc(cut)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
