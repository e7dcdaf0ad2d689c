"""vLLM in the process that samples: what `VllmHttp` is for a server, without one.

Only public methods of `vllm.LLM` and its `llm_engine` are called. The bodies and answers are those
of the server's endpoints, so that the sampler and the pushes of new weights are the same for both.
vLLM computes in a child process that it starts: the process group, the generators and the threads
of this one stay as they are.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import active_children, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from align.config_errors import Failed
from align.http_link import named
from align.launch_env import single_process_env
from align.rollout.vllm_http import EngineDown, EngineRefused

_NOT_SAMPLING = ("model", "prompt", "return_tokens_as_token_ids", "return_token_ids")
_FOR_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_WATCH = """
import os, signal, sys
sys.stdin.read()  # ends with the process at the other end
ended = {int(pid) for pid in sys.argv[1:]}
found = len(ended)
parents = {}
for name in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{name}/stat") as file:
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        pass
while True:
    ended |= {pid for pid, parent in parents.items() if parent in ended}
    if len(ended) == found:
        break
    found = len(ended)
for pid in ended:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
POLL_S = 0.1
DYING_S = 5.0  # between the end of a process and the error that may follow from it
ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class VllmLocal:
    """The methods of `VllmHttp` over one `vllm.LLM`; one thread only.

    llm, own: of `start`. model: its name in requests. sleeps: whether its memory on the device is
    given back by `sleep`; any request wakes it.
    """

    url = "vLLM in this process"

    def __init__(self, llm: Any, own: Processes, model: str, *, sleeps: bool = False) -> None:
        self.llm: Any = llm
        self.model, self.sleeps, self._own = model, sleeps, own
        self._asleep = False
        self._adapters: dict[str, Any] = {}
        self._loras = 0

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of an endpoint by which weights are pushed. EngineDown where vLLM raises."""
        does = {
            "/v1/models": self._models,
            "/collective_rpc": self._rpc,
            "/reset_prefix_cache": self._forget,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
        }[path]
        try:
            return self._own.during(lambda: (self.wake(), does(body))[1])
        except Exception as error:
            raise EngineDown(f"{self.url} failed ({path}): {named(error)}") from error

    def ask_all(
        self,
        path: str,
        bodies: Sequence[Any],
        width: int,
        told: Callable[[], bool] = lambda: False,
    ) -> list[Any] | None:
        """Answers to /v1/completions in the order of the bodies; None if told to.

        width: requests under way at once. `told` is asked between two steps of the engine.
        EngineRefused for a model that it has not, Failed where vLLM raises.
        """
        for name in {body["model"] for body in bodies} - {self.model, *self._adapters}:
            raise EngineRefused(f"{self.url} has no model {name!r}")
        try:
            return self._own.during(lambda: (self.wake(), self._run(list(bodies), width, told))[1])
        except Exception as error:
            if told():  # Ctrl-C reaches vLLM's own processes too
                return None
            raise Failed(
                f"{self.url} failed while sampling: {named(error)}. What it said is above"
            ) from error

    def healthy(self) -> bool:
        """Whether its workers answer."""
        try:
            self._own.during(lambda: self.llm.collective_rpc("check_health"))
        except Exception:
            return False
        return True

    def wake(self) -> None:
        """Take the device's memory again."""
        if self._asleep:
            _empty_cache()
            self.llm.wake_up()
            self._asleep = False

    def sleep(self) -> None:
        """Give the device's memory to others: weights wait on the CPU, keys and values are lost."""
        if self.sleeps and not self._asleep:
            self.llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """Let vLLM end its processes, as it does when nothing refers to it; may be called twice."""
        if self.llm is not None:
            self.llm = None
            gc.collect()
            self._own.end()

    def _run(
        self, bodies: list[Any], width: int, told: Callable[[], bool]
    ) -> list[dict[str, Any]] | None:
        engine = self.llm.llm_engine
        ids: list[str] = []
        done: list[Any] = []
        while len(done) < len(bodies):
            if told():
                engine.abort_request(ids, internal=True)  # as vLLM does with what enqueue returns
                return None
            free = width - (len(ids) - len(done))
            ids += self._enqueue(bodies[len(ids) : len(ids) + free])
            done += [output for output in engine.step() if output.finished]
        done.sort(key=lambda output: int(output.request_id))  # numbered as they were enqueued
        return [_answer(output.outputs[0]) for output in done]

    def _enqueue(self, bodies: Sequence[Mapping[str, Any]]) -> list[str]:
        if not bodies:
            return []
        made: Any = import_module("vllm")
        kept = [{k: v for k, v in body.items() if k not in _NOT_SAMPLING} for body in bodies]
        return self.llm.enqueue(
            [{"prompt_token_ids": body["prompt"]} for body in bodies],
            # Its text is only looked at for stop strings.
            [made.SamplingParams(**fields, detokenize=bool(fields["stop"])) for fields in kept],
            lora_request=[self._adapters.get(body["model"]) for body in bodies],
            use_tqdm=False,
        )

    def _models(self, body: Any) -> Any:
        return {"data": [{"id": name} for name in (self.model, *self._adapters)]}

    def _rpc(self, body: Any) -> Any:
        return {"results": self.llm.collective_rpc(body["method"], kwargs=body["kwargs"])}

    def _forget(self, body: Any) -> Any:
        return {"success": self.llm.reset_prefix_cache()}

    def _load(self, body: Any) -> None:
        made: Any = import_module("vllm.lora.request")
        self._loras += 1
        adapter = made.LoRARequest(body["lora_name"], self._loras, body["lora_path"])
        self.llm.llm_engine.add_lora(adapter)
        self._adapters[body["lora_name"]] = adapter

    def _unload(self, body: Any) -> None:
        adapter = self._adapters.pop(body["lora_name"])
        self.llm.llm_engine.remove_lora(adapter.lora_int_id)


class Processes:
    """vLLM's processes below this one, and the one that kills them when this one has gone."""

    def __init__(self, children: Sequence[BaseProcess]) -> None:
        self.children = children
        # vLLM's engine does not notice that, and its workers do not notice the end of the engine.
        self._watch = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WATCH, *(str(child.pid) for child in children)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def during(self, call: Callable[[], Any]) -> Any:
        """What the call returns, in a thread: vLLM waits for ever for an engine that has died."""
        found: list[tuple[Any, Exception | None]] = []
        ended = threading.Event()

        def work() -> None:
            try:
                found.append((call(), None))
            except Exception as error:
                found.append((None, error))
            ended.set()

        threading.Thread(target=work, daemon=True).start()
        while not ended.wait(POLL_S):
            dead = [child for child in self.children if not child.is_alive()]
            if dead and not ended.wait(DYING_S):
                raise RuntimeError(f"its process ended with code {dead[0].exitcode}")
        result, error = found[0]
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """End the process that watches; may be called twice."""
        self._watch.kill()
        self._watch.communicate()


def start(env: Mapping[str, str], **settings: Any) -> tuple[Any, Processes]:
    """A `vllm.LLM` and its processes. Failed where it does not start.

    env: variables of its processes. They end with this one, also when it is killed.
    """
    before = set(active_children())
    with _environment({**ENV, **env}), _deaf_children():
        try:
            made: Any = import_module("vllm")
            llm = made.LLM(**settings)
        except Exception as error:
            raise Failed(
                f"vLLM did not start in this process: {named(error)}. What it said is above"
            ) from error
    return llm, Processes([child for child in active_children() if child not in before])


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started in the block do not hear signals that are for the run.

    A signal for the process group would end an engine in mid-answer, and the run would wait for it.
    """
    resource_tracker.ensure_running()  # its start lets SIGINT and SIGTERM through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """Variables for the block, without those that would make vLLM's processes ranks of this run."""
    before, own = dict(os.environ), single_process_env()
    os.environ.clear()
    os.environ.update({**own, **added})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _answer(output: Any) -> dict[str, Any]:
    """One completion in the form of the server's."""
    ids = list(output.token_ids)
    logps = [at[token].logprob for at, token in zip(output.logprobs or [], ids, strict=False)]
    choice = {
        "token_ids": ids,
        "finish_reason": output.finish_reason,
        "logprobs": {"token_logprobs": [float(x) for x in logps]},
    }
    return {"choices": [choice]}


def _empty_cache() -> None:
    """What torch keeps of freed memory in this process is of use to vLLM."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
