"""The samples of an update: drawn when they are due, or while the update before is optimised.

With rollout.async 1 the samples of update t+1 are drawn with the weights that update t begins with:
at most one update old. An engine that holds weights of its own draws them in a thread; the policy
in this process draws them at once, before it is optimised, which gains no time and is the same
mathematics. Weights only change hands when no thread is drawing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from align.distributed import any_rank
from align.rollout import Samples, rank_seed
from align.train.halt import agreed, told_to_stop
from align.train.rollout_engines import HFEngine, RolloutEngine, make_engine, may_thread
from align.train.rollout_parts import prompt_indices

if TYPE_CHECKING:
    from align.train.ppo import PpoTrainer
    from align.train.rollouts import PromptItem

POLL_S = 0.2
"""How often a wait for the thread lets a signal through."""


@dataclass
class Drawn:
    """This rank's samples of an update. version: the update whose weights drew them."""

    update: int
    version: int
    samples: Samples

    @property
    def staleness(self) -> int:
        """Updates since the weights that drew them."""
        return self.update - self.version

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Drawn:
        """Restore `state_dict()`."""
        return cls(state["update"], state["version"], Samples(**state["samples"]))


class Ahead:
    """Room for the samples of one update: drawn, or being drawn by a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._drawn: Drawn | None = None
        self._error: Exception | None = None
        self.given_up = threading.Event()  # asked by the thread beside the signals

    def put(self, drawn: Drawn | None) -> None:
        """Hold these, or nothing."""
        self.wait()
        self._drawn, self._error = drawn, None

    def start(self, draw: Callable[[], Drawn]) -> None:
        """Draw in a thread; what was held is used up."""
        self.put(None)
        self._thread = threading.Thread(
            target=self._run, args=(draw,), name="align-sampling", daemon=True
        )
        self._thread.start()

    def _run(self, draw: Callable[[], Drawn]) -> None:
        try:
            self._drawn = draw()
        except Exception as error:  # raised by get()
            self._error = error

    def wait(self) -> None:
        """Return when no thread is drawing."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(POLL_S)
        self._thread = None

    def get(self, update: int) -> Drawn | None:
        """The samples of this update, which stay; None without. Raises what the thread raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._drawn if self._drawn and self._drawn.update == update else None

    def state_dict(self) -> dict[str, Any] | None:
        """What is held, when it is there; None after an error, which `get` raises."""
        self.wait()
        return self._drawn.state_dict() if self._drawn else None


class Draws:
    """Draws this rank's samples from the engine; see the module's text."""

    def __init__(self, trainer: PpoTrainer, prompts: Sequence[PromptItem]) -> None:
        self.trainer, self.prompts = trainer, prompts
        self.rollout = trainer.settings.rollout
        self.seed: int = trainer.settings.train.args.get("seed", 42)
        self.ahead = Ahead()
        self.told: Callable[[], bool] = partial(told_to_stop, trainer)
        self._engine: RolloutEngine | None = None
        self._synced: tuple[int, int] | None = None  # update and step of the engine's weights

    @property
    def engine(self) -> RolloutEngine:
        """What samples, made when it is first asked for; every rank must ask."""
        if self._engine is None:
            self._engine = agreed(partial(make_engine, self.trainer))
        return self._engine

    @property
    def elsewhere(self) -> bool:
        """Whether samples may be of another model than the one that is optimised."""
        return self.rollout.async_ == 1 or not isinstance(self.engine, HFEngine)

    def sync(self, update: int, *, again: bool = False) -> None:
        """Let the engine sample from the current weights, which are those of `update`.

        Waits for the thread first. again: also where it should have them, for weights that were
        loaded and not trained. Every rank must call; Halt on all if it fails on one.
        """
        self.ahead.wait()
        engine, at = self.engine, (update, self.trainer.state.global_step)
        if again or self._synced != at:
            agreed(partial(engine.sync, update))
            self._synced = at

    def close(self) -> None:
        """Give up what is being drawn and stop the engine, where one was made."""
        self.ahead.given_up.set()
        self.ahead.wait()
        if self._engine is not None:
            self._engine.close()

    def prompts_of(self, update: int) -> list[PromptItem]:
        """This rank's prompts of an update."""
        args, shuffle = self.trainer.args, self.trainer.settings.data.shuffle
        chosen = prompt_indices(
            update, len(self.prompts), self.rollout.prompts_per_update, self.seed, shuffle
        )
        return [self.prompts[i] for i in chosen[args.process_index :: args.world_size]]

    def due(self, update: int) -> Drawn:
        """The samples of an update that begins: those drawn ahead, if all ranks have them.

        Else they are drawn now. Halt on every rank if that fails on one, or a signal comes.
        """
        if self.rollout.async_:
            held = agreed(partial(self.ahead.get, update), self.told)
            if not any_rank(held is None):
                assert held is not None
                return held
        self.sync(update)
        return agreed(partial(self._draw, update), self.told)

    def follow(self, update: int) -> None:
        """Have the next update's samples drawn, where there is one; those of `update` are used up.

        Called before the update is optimised. After a Halt here what was held is held still.
        """
        if not self.rollout.async_ or not self._another_follows():
            return self.ahead.put(None)
        self.sync(update)
        if may_thread(self.engine):
            return self.ahead.start(partial(self._draw, update + 1))
        return self.ahead.put(agreed(partial(self._draw, update + 1), self.told))

    def _draw(self, update: int) -> Drawn:
        """This rank's samples with the engine's weights."""
        engine, ids = self.engine, [p.ids for p in self.prompts_of(update)]
        seed = rank_seed(self.seed + update, self.trainer.args.process_index)
        with engine.sampling(interrupted=self._interrupted) as sampler:
            return Drawn(update, engine.version, sampler.sample(ids, self.rollout.n, seed))

    def _interrupted(self) -> bool:
        return self.ahead.given_up.is_set() or self.told()

    def _another_follows(self) -> bool:
        """Whether the update that begins cannot be the last; with target_kl it may end early."""
        ppo, trainer = self.trainer.settings.ppo, self.trainer
        passes = ppo.ppo_epochs if ppo.target_kl is None else 1
        left = trainer.args.max_steps - trainer.state.global_step
        return left > passes * ppo.num_minibatches
