"""The vLLM server of a run: started on a model, started again when it dies, and stopped at the end.

A thread beside the run looks after it, so that it comes back also while the process that owns it
waits for others. Whoever was sampling asks `recover` to wait for that, and samples again. A server
that somebody else started is never restarted: its weights would be old ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.config_errors import Failed
from align.engines.process import Server, free_port
from align.engines.vllm import interpreter, launch
from align.files import write_atomic
from align.rollout.base import Interrupted, Sampler, Samples
from align.rollout.vllm import Served
from align.rollout.vllm_http import Asked, EngineDown, VllmHttp

if TYPE_CHECKING:
    from align.config_rollout import RolloutServer

NAME = "policy"
"""What the model is called on a server that a run starts."""
GAVE_UP = "gave_up"
POLL_S = 0.2
CLOSING_S = 20.0
HUNG_S = 30.0  # after a failed request a process that still lives is not going to end by itself


class Engine(Protocol):
    """A server as those who sample see it."""

    def mark(self) -> int:
        """Number of this start of the server; read before a request that may fail."""
        ...

    def answered(self) -> None:
        """Told after each sample."""
        ...

    def recover(self, mark: int, error: Exception, told: Callable[[], bool]) -> None:
        """Wait until a later start than `mark` serves. Failed where none will; Interrupted."""
        ...


class Managed:
    """A vLLM server that this process starts, watches and stops.

    words, env: of its command line and environment, beside what `launch` sets. log: its log.
    notes: folder for the word to other ranks that it was given up. after_start: called after each
    start but the first. model: the folder that the next start reads.
    """

    def __init__(
        self,
        settings: RolloutServer,
        log: Path,
        *,
        words: Sequence[str] = (),
        env: dict[str, str] | None = None,
        cpu: bool = True,
        notes: Path | None = None,
        after_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.log, self.cpu, self.notes = settings, log, cpu, notes
        self.words = ["--served-model-name", NAME, "--generation-config", "vllm",
                      "--logprobs-mode", "processed_logprobs", "--disable-uvicorn-access-log",
                      *words, *settings.args]  # fmt: skip
        gpus = {} if settings.gpus is None else {"CUDA_VISIBLE_DEVICES": settings.gpus}
        # Its own processes must not take themselves for ranks of this run.
        self.env = {"VLLM_SERVER_DEV_MODE": "1", **gpus, **(env or {})}
        self.after_start = after_start
        self.python = interpreter(settings.python, "rollout.server.python")
        self.port = settings.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = VllmHttp(self.url, settings.timeout_s)
        self.model = Path()
        self.restarts = 0
        self.gave_up: str | None = None
        self._server: Server | None = None
        self._starts, self._ready, self._closing = 0, False, threading.Event()
        self._answered = False  # since its last start
        self._thread = threading.Thread(target=self._look_after, name="align-engine", daemon=True)

    def start(self, model: Path, told: Callable[[], bool] = lambda: False) -> None:
        """Start on a model folder and wait. Failed, with its log's end; Interrupted."""
        self.model = model
        if self.notes is not None:
            (self.notes / GAVE_UP).unlink(missing_ok=True)
        print(f"[align] starting vLLM at {self.url}, log {self.log}", flush=True)
        if not self._start(told):
            raise Interrupted("the engine's start was interrupted")
        self._open()
        self._thread.start()

    def mark(self) -> int:
        """Number of this start."""
        return self._starts

    def answered(self) -> None:
        """Note that it has sampled: it can, and to start it again is worth it."""
        self._answered = True

    def recover(self, mark: int, error: Exception, told: Callable[[], bool]) -> None:
        """Wait for the start after `mark`; one that neither answers nor ends is ended."""
        since = time.monotonic()
        while self._starts == mark or not self._ready:
            if told():
                raise Interrupted("waiting for the engine was interrupted")
            if self.gave_up is not None or self._closing.is_set():
                raise Failed(self.gave_up or str(error)) from error
            hung = time.monotonic() - since > HUNG_S
            if hung and self._starts == mark and self._ready and self._server is not None:
                self._ready = False
                self._server.stop()
            time.sleep(POLL_S)

    def close(self) -> None:
        """Stop it; may be called twice."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSING_S)
        if self._server is not None:
            self._server.stop()

    def _start(self, told: Callable[[], bool]) -> bool:
        self._server = Server(
            launch(
                self.model, python=self.python, log=self.log, port=self.port,
                options=self.words, env=self.env, cpu=self.cpu,
            )
        )  # fmt: skip
        try:
            served = self._server.wait(self.settings.timeout_s, told)
        except BaseException:
            self._server.stop()
            raise
        if not served:
            self._server.stop()
            return False
        self._answered = False
        return True

    def _open(self) -> None:
        """It has all that it needs; until then whoever asked it too early waits in `recover`."""
        self._starts, self._ready = self._starts + 1, True

    def _look_after(self) -> None:
        """The thread: start it again when it has ended, as often as is allowed."""
        while not self._closing.wait(POLL_S):
            assert self._server is not None
            if self._server.alive():
                continue
            self._ready = False
            why = self._server.ended()
            self._server.stop()  # workers that it left
            if self.restarts >= self.settings.restarts or not self._answered:
                self._give_up(why)
                return
            self.restarts += 1
            ended = why.split(". ")[0]
            print(f"[align] {ended}, see {self.log}. Restart {self.restarts} of "
                  f"{self.settings.restarts}", flush=True)  # fmt: skip
            try:
                if self._start(self._closing.is_set):
                    self.after_start()
                    self._open()
            except Failed as error:
                print(f"[align] {error}", flush=True)
                self._server.stop()  # one that came back without its weights is no use

    def _give_up(self, why: str) -> None:
        if not self._answered:
            why = f"{why}\nIt had not answered a single request, and would not on another start"
        elif self.restarts:
            why = f"{why}\nIt was started again {self.restarts} times (rollout.server.restarts)"
        if self.notes is not None:
            with suppress(OSError):
                write_atomic(self.notes / GAVE_UP, why)
        self.gave_up = why


class Followed:
    """The server of rank 0 as another rank sees it: it waits for what rank 0 does.

    back: whether it serves again. notes: where rank 0 says that it has given up.
    """

    def __init__(self, back: Callable[[], bool], notes: Path, settings: RolloutServer) -> None:
        self.back, self.notes, self.settings = back, notes, settings

    def mark(self) -> int:
        """Not known here."""
        return 0

    def answered(self) -> None:
        """Of no use here."""

    def recover(self, mark: int, error: Exception, told: Callable[[], bool]) -> None:
        """Wait until it serves again, or rank 0 has given up."""
        patience = self.settings.timeout_s * (1 + self.settings.restarts)
        end = time.monotonic() + patience
        time.sleep(POLL_S)  # the end of a process takes a moment to be seen
        while not self.back():
            if told():
                raise Interrupted("waiting for the engine was interrupted")
            note = self.notes / GAVE_UP
            if note.is_file():
                raise Failed(note.read_text(encoding="utf-8")) from error
            if time.monotonic() > end:
                raise Failed(f"{error}. It was not back in {patience:g} s") from error
            time.sleep(POLL_S)


class Foreign:
    """A server that was there before the run."""

    def mark(self) -> int:
        """It has one start."""
        return 0

    def answered(self) -> None:
        """Of no use here."""

    def recover(self, mark: int, error: Exception, told: Callable[[], bool]) -> None:
        """Not ours to start again."""
        raise Failed(
            f"{error}. The run did not start it (rollout.server.url): start it again and resume"
        ) from error


@dataclass
class Lasting:
    """A sampler that asks again where the server died and came back."""

    inner: Sampler
    engine: Engine
    told: Callable[[], bool]

    def sample(self, prompts: list[list[int]], n: int, seed: int | Sequence[int]) -> Samples:
        """As the sampler; the same seeds give the same samples the second time."""
        while True:
            mark = self.engine.mark()
            try:
                found = self.inner.sample(prompts, n, seed)
                self.engine.answered()
                return found
            except EngineDown as error:
                self.engine.recover(mark, error, self.told)


def serves(http: Asked, model: str) -> bool:
    """Whether a server answers and has the model."""
    try:
        return model in [m["id"] for m in http.ask("GET", "/v1/models")["data"]]
    except (Failed, KeyError, TypeError):
        return False


def described(http: VllmHttp) -> Served:
    """The first model of a server, and how long its rows may be."""
    answer: Any = http.ask("GET", "/v1/models")
    first = answer["data"][0]
    return Served(http, first["id"], first.get("max_model_len"))
