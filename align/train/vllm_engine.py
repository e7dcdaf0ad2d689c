"""PPO's rollouts from a vLLM server: the policy's weights go there, samples come back.

After each sync the server completes one prompt and the trainer measures what came: stale or wrong
weights would otherwise only show in the results. A server that dies is started again on the weights
that were pushed last, and what was asked is asked again with the same seeds.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align.checkpoints import max_positions
from align.config_errors import Failed
from align.distributed import from_rank_zero, rank
from align.groups import TokenGroup
from align.policy_module import base_model
from align.rollout import Interrupted, Sampler, Samples, make_sampler
from align.rollout.vllm import Served
from align.rollout.vllm_http import EngineDown, VllmHttp
from align.rollout.vllm_server import Engine, Followed, Foreign, Lasting, Managed, serves
from align.train.halt import Halt, agreed, told_to_stop
from align.train.vllm_check import Found, check_server, described, server_words
from align.train.vllm_weights import Adapter, Reload, remove

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer

PROBE_TOKENS = 16
GAP_FLOAT32, GAP_16BIT = 1e-3, 0.1
"""Nats per token between trainer and server that are no rounding any more."""


class VllmEngine:
    """A `RolloutEngine` over a server that the run starts, or that rollout.server.url names.

    version: as in the protocol. `sync` is collective; `sampling` is not, and may run in a thread.
    everywhere: whether each rank has an engine of its own, which is checked by itself.
    """

    threads = True
    everywhere = False
    where = "the server"
    look = "Look at the server's log, at its dtype, and whether another run pushes to it"

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer, self.config = trainer, trainer.settings
        self.settings = self.config.rollout
        self.version = -1
        self.told = partial(told_to_stop, trainer)
        self.run = Path(str(trainer.args.output_dir)).absolute()
        own = self.settings.sync_dir
        self.folder = Path(own).absolute() if own else self.run / ".rollout_weights"
        self.push = _push_of(self.settings.sync)(trainer, self.folder)
        self.server: Managed | None = None
        self.engine: Engine = Foreign()
        self.served: Served | None = None
        self._found: Found | None = None
        url = self.settings.server.url
        if url is not None and rank() == 0:
            self._found = check_server(self._http(url), self.config)

    def sync(self, version: int) -> None:
        """Push the policy's weights, and check that the server samples with them; every rank."""
        start = time.monotonic()
        try:
            if self.served is not None or not self._begin():
                self._push()
            self._check(version)
        except Halt as halt:  # on every rank; the caller agrees on its cause once more
            raise halt.cause or Interrupted("the engine's sync was interrupted") from halt
        self.version = version
        restarts = float(from_rank_zero(lambda: self.server.restarts if self.server else 0))
        figures = {"engine_restarts": restarts, "time/sync": time.monotonic() - start}
        self.trainer.meter.add({name: (value, 1.0) for name, value in figures.items()})

    @contextmanager
    def sampling(self, **overrides: Any) -> Iterator[Sampler]:
        """A sampler of the weights of the last sync, that outlives the server's death."""
        if self.served is None:
            raise RuntimeError("sync comes first: the server has no weights yet")
        fields = {"want_logps": True, "interrupted": self.told, **overrides}
        tokenizer = self.trainer.policy.tokenizer
        sampler = make_sampler(self.settings, self.served, tokenizer, **fields)
        yield Lasting(sampler, self.engine, fields["interrupted"] or (lambda: False))

    def close(self) -> None:
        """Stop the server that was started, and remove the weights that were written for it."""
        if self.server is not None:
            self.server.close()
        self.push.close()
        if rank() == 0:
            remove(self.folder)

    def _begin(self) -> bool:
        """Find or start the server; whether it has the policy's weights now."""
        url, settings = self.settings.server.url, self.settings.server
        if url is None:
            self._collect()  # what it starts on
            agreed(self._start, self.told)
        address, found, stem = from_rank_zero(
            lambda: (url or self._managed.url, self._found, uuid.uuid4().hex[:8])
        )
        self._found = found
        self.push.named(found.model, stem, url=address)
        self.served = Served(self._http(address), found.model, found.positions)
        if self.server is not None:
            self.engine = self.server
        elif url is None:
            self.engine = Followed(self._back, self.folder, settings)
        return url is None and self.push.whole

    def positions(self) -> int:
        """Of prompt and completion together: those of the data, where the model has as many."""
        most = max_positions(base_model(self.trainer.policy.module.lm))
        return min(self.config.data.max_length, most or 10**9)

    def _start(self) -> None:
        """Rank 0: a server on what was written."""
        if rank() != 0:
            return
        self.push.check()
        settings = self.settings.server
        if not self.push.restartable:
            settings = dataclasses.replace(settings, restarts=0)
        words, env = server_words(self.config)
        words += ["--max-model-len", str(self.positions())]
        log = Path(settings.log_dir or self.run / "logs").absolute() / "vllm.log"
        self.server = Managed(
            settings, log, words=words, env=env, notes=self.folder,
            cpu=self.trainer.args.device.type == "cpu",
            after_start=lambda: self.push.restore(self._managed.http),
        )  # fmt: skip
        self.server.start(self.push.current, self.told)
        self._found = described(self.server.http).found

    def _push(self) -> None:
        """New weights, on every rank."""
        self._collect()
        agreed(self._deliver, self.told)
        assert self.served is not None
        self.served = dataclasses.replace(self.served, model=self.push.name)

    def _collect(self) -> None:
        """Write them; every rank."""
        self.push.collect()

    def _deliver(self) -> None:
        """Rank 0: tell the server; once more where it dies of it."""
        if rank() != 0:
            return None
        assert self.served is not None
        if self.server is not None and self.push.whole:
            self.server.model = self.push.current  # what a restart reads
        while True:
            mark = self.engine.mark()
            try:
                return self.push.deliver(self.served.http)
            except EngineDown as error:
                self.engine.recover(mark, error, self.told)

    def _check(self, version: int) -> None:
        """Halt where the server's log-probs are not the trainer's."""
        collector = self.trainer.collector
        prompts = collector.prompts
        prompt = prompts[version % len(prompts)].ids
        tokens = min(PROBE_TOKENS, self.settings.max_new_tokens)

        def complete() -> Samples | None:
            if rank() != 0 and not self.everywhere:
                return None
            with self.sampling(max_new_tokens=tokens, min_new_tokens=0) as sampler:
                return sampler.sample([prompt], 1, [version])

        drawn = agreed(complete, self.told)
        samples: Any = drawn if self.everywhere else from_rank_zero(lambda: drawn)
        measured = collector.measure([TokenGroup(prompt, samples.completions)])["logps"]
        assert samples.logps is not None
        gap = float((measured - torch.tensor(samples.logps[0])).abs().mean())
        agreed(lambda: self._judge(gap))

    def _judge(self, gap: float) -> None:
        limit = self.settings.max_sampler_gap or self._limit()
        if (rank() == 0 or self.everywhere) and not gap <= limit:
            raise Failed(
                f"{self.where} samples with other weights than the trainer's: right after a sync "
                f"their log-probs differ by {gap:.2g} nats per token, more than "
                f"rollout.max_sampler_gap={limit:g}. {self.look}"
            )

    def _limit(self) -> float:
        """The largest gap that rounding explains."""
        args, lm = self.trainer.args, base_model(self.trainer.policy.module.lm)
        ours = lm.dtype == torch.float32 and not (args.bf16 or args.fp16)
        assert self._found is not None
        return GAP_FLOAT32 if ours and self._found.float32 else GAP_16BIT

    def _back(self) -> bool:
        """Whether the server of rank 0 serves what this rank samples."""
        assert self.served is not None
        return serves(self.served.http, self.served.model)

    @property
    def _managed(self) -> Managed:
        assert self.server is not None
        return self.server

    def _http(self, url: str) -> VllmHttp:
        return VllmHttp(url, self.settings.server.timeout_s)


def _push_of(sync: str) -> Callable[..., Any]:
    if sync == "nccl":
        from align.train.vllm_nccl import Nccl

        return Nccl
    return Adapter if sync == "lora" else Reload
