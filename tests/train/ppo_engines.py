"""Engines that hold weights of their own, as a server does, for the tests of PPO."""

from __future__ import annotations

import copy
import threading
import time
from contextlib import contextmanager
from typing import Any

import torch

from align.rollout import Interrupted, make_sampler
from align.train import prefetch


class CopyEngine:
    """Samples from a copy of the policy, made at a sync: what the optimiser does is not seen.

    noise: of the copied weights, in deviations of each. temperature: of sampling and its log-probs,
    beside that of the trainer. delay: seconds before a sample. log: ("sync" or "sample", version,
    thread's name).
    """

    def __init__(
        self, trainer: Any, noise: float = 0.0, temperature: float | None = None, delay: float = 0.0
    ) -> None:
        self.trainer, self.noise, self.temperature, self.delay = trainer, noise, temperature, delay
        self.version = -1
        self.model: Any = None
        self.log: list[tuple[str, int, str]] = []
        self.closed = 0
        self.fails_at: int | None = None
        self.stuck_at: int | None = None  # samples nothing until it is told to give up
        self.drawing = threading.Event()

    def sync(self, version: int) -> None:
        assert not self.drawing.is_set(), "weights changed while a thread was sampling"
        self.model = copy.deepcopy(self.trainer.policy.module.lm).eval()
        drawn = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in self.model.parameters():
                p += self.noise * p.std(correction=0) * torch.randn(p.shape, generator=drawn)
        self.version = version
        self.log.append(("sync", version, threading.current_thread().name))

    @contextmanager
    def sampling(self, **overrides: Any):
        if self.temperature is not None:
            overrides.setdefault("temperature", self.temperature)
        options = {"want_logps": True, **overrides}
        sampler = make_sampler(
            self.trainer.settings.rollout, self.model, self.trainer.policy.tokenizer, **options
        )
        yield _Slow(self, sampler, overrides.get("interrupted"))

    def close(self) -> None:
        self.closed += 1


class _Slow:
    def __init__(self, engine: CopyEngine, sampler: Any, interrupted: Any) -> None:
        self.engine, self.sampler, self.interrupted = engine, sampler, interrupted

    def sample(self, prompts, n, seed):
        engine, name = self.engine, threading.current_thread().name
        in_thread = name == "align-sampling"
        if in_thread:
            engine.drawing.set()
        try:
            time.sleep(engine.delay)
            while engine.stuck_at == engine.version and in_thread:
                if self.interrupted():
                    raise Interrupted
                time.sleep(0.01)
            if engine.fails_at == engine.version and in_thread:
                raise ConnectionError("the sampler has gone away 采样器已断开")
            engine.log.append(("sample", engine.version, name))
            return self.sampler.sample(prompts, n, seed)
        finally:
            engine.drawing.clear()


def inject(monkeypatch: Any, **options: Any) -> list[CopyEngine]:
    """Make every trainer from now on sample with a CopyEngine; the list fills with them."""
    made: list[CopyEngine] = []

    def make(trainer: Any) -> CopyEngine:
        made.append(CopyEngine(trainer, **options))
        return made[-1]

    monkeypatch.setattr(prefetch, "make_engine", make)
    return made
