# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and a range
"""The section `rollout` of the configuration; the others are in config_schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.config_key import key


@dataclass
class RolloutServer:
    """The vLLM server that samples for rollout.engine: vllm_server."""

    url: str | None = key(None, "a server that runs already; null: the run starts one")
    python: str | None = key(None, "bin/python that has vLLM; null: the engine's own environment")
    port: int = key(0, "port of the started server; 0: a free one", ge=0, le=65535)
    gpus: str | None = key(None, "CUDA_VISIBLE_DEVICES of the started server")
    args: list[str] = key(factory=list, help="further words of vLLM's command line")
    timeout_s: float = key(600.0, "seconds for its start, and for one answer", gt=0)
    restarts: int = key(3, "times a run starts it again after it died", ge=0)
    log_dir: str | None = key(None, "folder of vllm.log; null: logs/ of the run")


@dataclass
class Rollout:
    """Sampling of completions."""

    engine: Literal["hf", "vllm_server", "vllm_colocate"] = key("hf", "what samples")
    prompts_per_update: int = key(16, "prompts of one rollout, all ranks together", ge=1)
    n: int = key(1, "completions a prompt", ge=1)
    max_new_tokens: int = key(64, "longest completion", ge=1)
    min_new_tokens: int = key(0, "a stop before this many tokens counts as missing", ge=0)
    temperature: float = key(1.0, "logits are divided by it in sampling and in training", gt=0)
    top_p: float = key(1.0, "nucleus; 1: off", gt=0, le=1)
    top_k: int = key(0, "0: off", ge=0)
    stop: list[str] = key(factory=list, help="strings of one token that also end a completion")
    batch_size: int = key(32, "sequences generated at once", ge=1)
    gather_chunk_mb: int = key(
        512, "MiB of weights gathered or written at once for sampling elsewhere", ge=1
    )
    sync: Literal["auto", "reload", "lora", "nccl"] = key(
        "auto", "how vLLM gets new weights: files (auto), the adapter alone, or over NCCL"
    )
    sync_dir: str | None = key(
        None, "folder of those files, seen by the server too; null: .rollout_weights of the run"
    )
    max_sampler_gap: float | None = key(
        None, "vLLM: nats per token after a sync that end the run; null: 1e-3, 16 bit: 0.1", gt=0
    )
    gpu_memory_utilization: float = key(
        0.3, "vllm_colocate: share of the GPU that vLLM takes while it samples", gt=0, lt=1
    )
    server: RolloutServer = key(factory=RolloutServer)
    async_: int = key(
        0, "1: sample the next rollout while this one is optimised, one update off", ge=0, le=1
    )
    importance: Literal["auto", "truncated", "off"] = key(
        "auto", "weights for tokens that other weights drew; auto: stale, or above importance_gap"
    )
    importance_cap: float = key(2.0, "largest weight of a token", ge=1)
    importance_gap: float = key(
        0.01, "auto: mean |log-prob of sampler − trainer| from which it corrects, nats", ge=0
    )
