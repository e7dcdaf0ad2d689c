# ruff: noqa: RUF009 - key() is dataclasses.field() with a help text and a range
"""The section `rollout.server` of the configuration; the others are in config_schema."""

from __future__ import annotations

from dataclasses import dataclass

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
