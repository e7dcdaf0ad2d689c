"""Which process serves a model, and what stands before it: decided before anything is started."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from align.engines import llama_cpp, transformers_serve, vllm
from align.engines.devices import has_gpu
from align.engines.process import Launch, free_port
from align.serving.proxy import PACKAGES as PROXY_PACKAGES
from align.serving.proxy import check_packages
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
    if front:
        check_packages(FRONT_PACKAGES, "engine", engine)
    if args.request_log:
        check_packages(PROXY_PACKAGES, "request_log", args.request_log)
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
