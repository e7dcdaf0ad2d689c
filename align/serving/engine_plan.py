"""Which process serves a model, and what stands before it: decided before anything is started."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from align.config_errors import UserError
from align.engines import llama_cpp, transformers_serve, vllm
from align.engines.devices import has_gpu
from align.engines.process import Launch, free_port
from align.serving.served_model import Served

FRONT_PACKAGES = ("fastapi", "httpx", "uvicorn")


@dataclass(frozen=True)
class Plan:
    """engine: its name. launch: what starts it.

    front: whether `align.serving.front` stands before it, on the public port, the engine being on
    a private one. checks: whether the front reads the requests, see there.
    """

    engine: str
    served: Served
    launch: Launch
    front: bool
    checks: bool


def make_plan(
    args: argparse.Namespace, served: Served, engine: str, words: list[str], key: str | None,
    address: tuple[str, int],
) -> Plan:  # fmt: skip
    """The plan for the options. address: host and port that were found to be free.

    UserError where the engine is not installed.
    """
    logs = Path(args.log_dir).resolve()
    log, cpu = logs / "server.log", not has_gpu()
    # vLLM asks for its key under /v1 alone: /invocations answers whoever reaches it.
    front = engine == "transformers" or (engine == "vllm" and key is not None)
    if front or args.request_log:
        need_packages()
    host, port = ("127.0.0.1", free_port()) if front or args.request_log else address
    if engine == "transformers":
        launch = transformers_serve.launch(
            name=served.name, folder=logs / "engine", log=log, port=port, python=args.python,
            options=words, cpu=cpu,
        )  # fmt: skip
    elif engine == "vllm":
        launch = vllm.launch(
            served.path, python=vllm.interpreter(args.python, "python"), log=log, host=host,
            port=port, options=[*_vllm_words(args, served), *words],
            env={"VLLM_API_KEY": key} if key else None, cpu=cpu, name=served.name,
        )  # fmt: skip
    else:
        launch = llama_cpp.launch(
            served.path, name=served.name, log=log, host=host, port=port, python=args.python,
            max_model_len=args.max_model_len, options=words,
            env={"LLAMA_API_KEY": key} if key else None,
        )  # fmt: skip
    return Plan(engine, served, launch, front, checks=engine == "transformers")


def _vllm_words(args: argparse.Namespace, served: Served) -> list[str]:
    words = [] if args.max_model_len is None else ["--max-model-len", str(args.max_model_len)]
    if served.adapters:
        from align.export.adapter_folder import serve_args

        words += serve_args(served.adapters)
    return words


def need_packages() -> None:
    """UserError with the install line where the front cannot run."""
    missing = [name for name in FRONT_PACKAGES if find_spec(name) is None]
    if missing:
        reason = f"needs {', '.join(missing)}, not installed here"
        raise UserError("serve_model", None, reason, "Run: pip install 'align[serve]'")
