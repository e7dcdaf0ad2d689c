"""Options of recipes/serve_model.py, and what is wrong with them before anything is started."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence

from align.argument_types import number, whole
from align.config_errors import NO_VALUE, UserError
from align.engines.devices import has_gpu
from align.engines.venvs import find_python
from align.serving.proxy import check_log
from align.serving.served_model import ENGINES, Served

DEFAULT_LOGS = "runs/serve"
# Forms of weights that vLLM computes in, and the others only unpack or cannot read.
_OF_VLLM = ("compressed-tensors", "awq", "gptq")
_NAME = re.compile(r"\w[\w.-]*")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(
        prog="serve_model.py",
        description="Serve an exported model as an OpenAI-compatible endpoint.",
        epilog="Words after -- are the engine's own, e.g. -- --gpu-memory-utilization 0.8",
    )
    add = p.add_argument
    add("--model", required=True, help="folder of an export, or a .gguf file")
    auto = "auto: llama.cpp for GGUF, vllm on a GPU where it is installed, else transformers"
    add("--engine", choices=("auto", *ENGINES), default="auto", help=auto)
    add("--host", default="127.0.0.1", help="address to listen on; default %(default)s")
    add("--port", type=whole(0, 65535), default=8000, help="0: any free one; default %(default)s")
    add("--python", help="bin/python of the engine's environment; default: where it is found")
    add("--log_dir", default=DEFAULT_LOGS, help="server.log, command.txt; default %(default)s")
    add("--max_model_len", type=whole(2), help="tokens of prompt and answer; default: the model's")
    add("--served_model_name", help="name of the model for clients; default: of its folder")
    add("--api_key_env", metavar="VAR", help="environment variable with the key that clients send")
    add("--allow_public", action="store_true", help="other machines may ask without a key")
    add("--timeout", type=number(0, 86400, open_low=True), default=600.0,
        help="seconds for the model to load; default %(default)g")  # fmt: skip
    add("--request_log", metavar="DIR", help="keep a line per request there, docs/monitoring.md")
    add("--log_texts", action="store_true", help="keep prompts and answers in it too")
    add("--dry_run", action="store_true", help="print the engine's command, start nothing")
    return p


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before and after the first `--`."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def check_options(args: argparse.Namespace) -> None:
    """UserError for options that do not go together."""
    name = args.served_model_name
    if name is not None and not _NAME.fullmatch(name):
        fix = "Use letters, digits, dots, dashes and underscores"
        raise UserError("served_model_name", name, "is no name for a model", fix)
    if args.log_texts and not args.request_log:
        raise UserError("log_texts", True, "needs --request_log", "Add --request_log DIR")
    if args.request_log:
        check_log(args.request_log, "request_log")


def read_key(args: argparse.Namespace) -> str | None:
    """The key that clients must send, of the variable that was named; never printed."""
    if args.api_key_env is None:
        return None
    key = os.environ.get(args.api_key_env, "")
    if not key:
        fix = f"Set it: export {args.api_key_env}=…"
        raise UserError("api_key_env", args.api_key_env, "is not set in the environment", fix)
    if not all("!" <= char <= "~" for char in key):
        reason = f"{args.api_key_env} has spaces or characters that a header cannot carry"
        raise UserError("api_key_env", NO_VALUE, reason, "Use letters and digits")
    return key


def choose_engine(asked: str, served: Served) -> str:
    """The engine that was asked for, or with `auto` the one that suits model and machine."""
    if asked != "auto":
        return asked
    if served.kind == "gguf":
        return "llama.cpp"
    if served.kind == "adapters" or served.quantized in _OF_VLLM:
        return "vllm"
    return "vllm" if has_gpu() and find_python("vllm") is not None else "transformers"
