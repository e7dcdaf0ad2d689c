"""llama.cpp's server out of the wheel `xllamacpp`, under the words that `llama-server` has.

Started as a file by an interpreter that may have nothing else of ours:

    python llama_wheel.py -m model.gguf --host 127.0.0.1 --port 8000 --alias NAME …

Only the words that `align.engines.llama_cpp` writes are known, and a few that people add; the key
comes from LLAMA_API_KEY and the web pages that may ask from LLAMA_ARG_CORS_ORIGINS, as for
llama-server.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from typing import Any


def parser() -> argparse.ArgumentParser:
    """The words of llama-server that are known here."""
    p = argparse.ArgumentParser(prog="llama_wheel.py", allow_abbrev=False)
    add = p.add_argument
    add("-m", "--model", required=True)
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("-a", "--alias")
    add("-c", "--ctx-size", type=int, default=0)
    add("-np", "--parallel", type=int, default=4)
    add("-t", "--threads", type=int)
    add("-ngl", "--gpu-layers", type=int)
    add("--temp", type=float)
    add("--top-k", type=int)
    add("--top-p", type=float)
    add("--min-p", type=float)
    add("--no-kv-unified", action="store_true")
    for name in ("--jinja", "--metrics", "--no-webui", "--offline", "--no-repack"):
        add(name, action="store_true")
    return p


def settings(args: argparse.Namespace, params: Any) -> Any:
    """`params`, an xllamacpp.CommonParams, as the words ask."""
    params.model.path = args.model
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx, params.n_parallel = args.ctx_size, args.parallel
    params.kv_unified = not args.no_kv_unified
    params.use_jinja, params.endpoint_metrics = args.jinja, args.metrics
    params.ui, params.offline = not args.no_webui, args.offline
    if args.alias:
        params.model_alias = {args.alias}
    if os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [os.environ["LLAMA_API_KEY"]]
    if hasattr(params, "cors_origins"):  # since 2026: older ones allow every web page
        params.cors_origins = os.environ.get("LLAMA_ARG_CORS_ORIGINS", params.cors_origins)
    if args.no_repack:
        params.no_extra_bufts = True
    if args.threads is not None:
        params.cpuparams.n_threads = args.threads
    if args.gpu_layers is not None:
        params.n_gpu_layers = args.gpu_layers
    for name in ("temp", "top_k", "top_p", "min_p"):
        if getattr(args, name) is not None:
            setattr(params.sampling, name, getattr(args, name))
    return params


def main(words: list[str]) -> int:
    """Serve until SIGTERM or SIGINT."""
    args = parser().parse_args(words)
    xllamacpp: Any = importlib.import_module("xllamacpp")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = xllamacpp.Server(settings(args, xllamacpp.CommonParams()))
    print(f"listening at {server.listening_address}", flush=True)
    while not ended.wait(0.2):
        pass
    sys.stdout.flush()
    os._exit(0)  # the server's own threads do not end by themselves


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
