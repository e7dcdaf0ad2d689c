"""How vLLM's OpenAI-compatible server is started; `align.engines.process` runs it. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from align.config_errors import UserError
from align.engines.process import Launch, url_of
from align.engines.venvs import find_python

MODULE = "vllm.entrypoints.openai.api_server"
# A prompt that is read in two steps draws a token too early, and vLLM 0.32 then sets the offset of
# the request's generator back, where it has a seed. A generator on a CPU has none: the engine dies
# (v1/worker/gpu_model_runner.py, _bookkeeping_sync).
CPU = ("--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill")
"""Words of the command line on a CPU."""


def interpreter(given: str | None, field: str) -> str:
    """The python that has vLLM: the given one, its own environment's, or this one."""
    if given is not None:
        if not Path(given).exists():
            raise UserError(field, given, "does not exist", "Give the bin/python of vLLM's venv")
        return given
    own = find_python("vllm")
    if own is not None:
        return str(own)
    if find_spec("vllm") is not None:
        return sys.executable
    raise UserError(
        field, given, "is needed: vLLM is neither here nor in an environment of its own",
        "Make one: python recipes/setup_engine.py vllm, or give the bin/python of one",
    )  # fmt: skip


def launch(
    model: str | Path,
    *,
    python: str,
    log: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cpu: bool = True,
    name: str | None = None,
) -> Launch:
    """Launch of `model` under `name`, by default its path.

    options: further words of vLLM's command line. Sampling defaults come from the model's
    generation_config.json, the precision on a GPU from its config.json.
    """
    words = [python, "-m", MODULE, "--model", str(model), "--host", host, "--port", str(port)]
    if name is not None:
        words += ["--served-model-name", name, "--generation-config", "auto"]
    added = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"} | dict(env or {})
    if cpu:
        words += CPU
        added = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"} | added
    return Launch("vLLM", [*words, *options], url_of(host, port), log, "/health", added)
