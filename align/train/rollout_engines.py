"""What PPO samples with: the policy in this process, or a server that is given its weights.

An engine samples with the weights of its last `sync`, whatever the optimiser has done since. For
the policy in this process there is nothing to hand over, and so it must not be asked to sample once
the optimiser has moved on: the order of things is kept by `align.train.rollouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from align.rollout import Sampler, Samples, make_sampler
from align.whole import whole_lm

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer


class RolloutEngine(Protocol):
    """Samplers of the policy at the weights of the last `sync`.

    version: number of the update whose weights it samples with; -1 before the first sync.
    """

    version: int

    def sync(self, version: int) -> None:
        """Sample from the policy's current weights from now on; every rank must call."""
        ...

    def sampling(self, **overrides: Any) -> AbstractContextManager[Sampler]:
        """A sampler as of `align.rollout.make_sampler`, with log-probs unless told otherwise.

        No collective inside, so that it may run in a thread; for hf every rank must enter.
        """
        ...

    def close(self) -> None:
        """Stop what was started; may be called twice."""
        ...


class HFEngine:
    """The policy itself, in this process; sharded weights are gathered for the block."""

    threads = False  # it needs the weights as they are, and entering it is a collective

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer
        self.version = -1

    def sync(self, version: int) -> None:
        """Note the version: the weights are the trainer's own."""
        self.version = version

    @contextmanager
    def sampling(self, **overrides: Any) -> Iterator[Sampler]:
        """Sampler of the whole model; its weights are gathered once for the block."""
        trainer = self.trainer
        rollout = trainer.settings.rollout
        module: Any = trainer.policy.module
        with whole_lm(module.lm, trainer.args.device, rollout.gather_chunk_mb) as lm:
            sampler = make_sampler(
                rollout, lm, trainer.policy.tokenizer, **{"want_logps": True, **overrides}
            )
            yield _Cast(sampler, trainer.accelerator.autocast)

    def close(self) -> None:
        """Nothing was started."""


@dataclass
class _Cast:
    """A sampler under autocast: the wrapper's forward casts (bf16), and sampling goes around it."""

    inner: Sampler
    autocast: Callable[..., AbstractContextManager[Any]]

    def sample(self, prompts: list[list[int]], n: int, seed: int | Sequence[int]) -> Samples:
        """As the sampler."""
        with self.autocast():
            return self.inner.sample(prompts, n, seed)


def make_engine(trainer: PpoTrainer) -> RolloutEngine:
    """Engine of rollout.engine; every rank must call."""
    if trainer.settings.rollout.engine == "hf":
        return HFEngine(trainer)
    if trainer.settings.rollout.engine == "vllm_colocate":
        from align.train.vllm_colocate import ColocatedEngine

        return ColocatedEngine(trainer)
    from align.train.vllm_engine import VllmEngine

    return VllmEngine(trainer)


def may_thread(engine: RolloutEngine) -> bool:
    """Whether it may sample in a thread while the policy is optimised; unless it says no."""
    return bool(getattr(engine, "threads", True))
