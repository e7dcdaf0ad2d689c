"""A stand-in for the module `vllm`: what `VllmLocal` calls of it, a small model behind.

Requests end in the order opposite to that in which they came. What an engine gets wrong on purpose
is in `Faults`.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from vllm_stub import Stub


@dataclass
class Faults:
    """deaf: a reload is acknowledged and not done. dies_after: completions before it raises."""

    deaf: bool = False
    dies_after: int | None = None
    start: str | None = None
    finish_reason: str | None = None


@dataclass
class SamplingParams:
    """vLLM's fields that a request sets; another name is an error."""

    n: int
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    ignore_eos: bool
    stop_token_ids: list[int]
    stop: list[str]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    logprobs: int
    detokenize: bool


@dataclass
class LoRARequest:
    """vLLM's name for an adapter."""

    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Fake:
    """The module's state. made: every LLM. log: what was called of them, by name."""

    faults: Faults = field(default_factory=Faults)
    made: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def install(monkeypatch: Any) -> Fake:
    """Put the stand-in where `import vllm` finds it."""
    fake = Fake()

    class LLM(_LLM):
        state = fake

    for name, content in (
        ("vllm", {"LLM": LLM, "SamplingParams": SamplingParams}),
        ("vllm.lora", {}),
        ("vllm.lora.request", {"LoRARequest": LoRARequest}),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return fake


class _LLM:
    state: Fake

    def __init__(self, model: str, **settings: Any) -> None:
        if self.state.faults.start:
            raise RuntimeError(self.state.faults.start)
        self.settings, self.environment = settings, dict(os.environ)
        self.stub = Stub(model, "policy", settings["max_model_len"], True, True)
        self.model_config = SimpleNamespace(dtype=torch.float32)
        self.llm_engine = _Engine(self)
        self.state.made.append(self)

    def enqueue(
        self, prompts: Any, sampling_params: Any, *, lora_request: Any, use_tqdm: bool
    ) -> list[str]:
        assert not use_tqdm
        assert len(prompts) == len(sampling_params) == len(lora_request)
        return [
            self.llm_engine.add(prompt["prompt_token_ids"], p, adapter)
            for prompt, p, adapter in zip(prompts, sampling_params, lora_request, strict=True)
        ]

    def collective_rpc(self, method: str, kwargs: Any = None) -> list[None]:
        self.state.log.append(method)
        if method == "reload_weights" and not self.state.faults.deaf:
            self.stub.load(kwargs["weights_path"])
        return [None]

    def reset_prefix_cache(self) -> bool:
        self.state.log.append("reset_prefix_cache")
        return True

    def sleep(self, level: int) -> None:
        self.state.log.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.state.log.append("wake_up")


class _Engine:
    def __init__(self, llm: _LLM) -> None:
        self.llm, self.numbers = llm, itertools.count()
        self.waiting: list[tuple[str, dict[str, Any]]] = []
        self.largest = 0  # number of requests that were under way at once
        self.names: dict[int, str] = {}  # of adapters

    def add(self, prompt: list[int], params: SamplingParams, adapter: LoRARequest | None) -> str:
        number = str(next(self.numbers))
        name = adapter.lora_name if adapter else "policy"
        self.waiting.append((number, {"prompt": prompt, "model": name, **vars(params)}))
        self.largest = max(self.largest, len(self.waiting))
        return f"{number}-internal"

    def step(self) -> list[Any]:
        faults, stub = self.llm.state.faults, self.llm.stub
        if faults.dies_after is not None and stub.completions >= faults.dies_after:
            raise RuntimeError("EngineCore encountered an issue. 引擎出错")
        number, body = self.waiting.pop()
        self.llm.state.log.append("step")
        (choice,) = stub.complete(body)["choices"]
        ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        table = [
            {i: SimpleNamespace(logprob=x), i + 1: SimpleNamespace(logprob=0.0)}
            for i, x in zip(ids, logps, strict=True)
        ]
        reason = faults.finish_reason or choice["finish_reason"]
        one = SimpleNamespace(token_ids=ids, logprobs=table, finish_reason=reason)
        under_way = [SimpleNamespace(request_id=n, finished=False) for n, _ in self.waiting]
        return [*under_way, SimpleNamespace(request_id=number, finished=True, outputs=[one])]

    def abort_request(self, request_ids: list[str], internal: bool) -> None:
        assert internal
        self.waiting = [w for w in self.waiting if f"{w[0]}-internal" not in request_ids]

    def add_lora(self, adapter: LoRARequest) -> None:
        self.llm.stub.load_adapter(adapter.lora_name, adapter.lora_path)
        self.names[adapter.lora_int_id] = adapter.lora_name
        self.llm.state.log.append(f"add_lora {adapter.lora_int_id}")

    def remove_lora(self, lora_id: int) -> None:
        self.llm.stub.adapters.pop(self.names[lora_id])
        self.llm.state.log.append(f"remove_lora {lora_id}")
