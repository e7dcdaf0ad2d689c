"""How llama.cpp's server is started on a GGUF file: `llama-server`, or the wheel `xllamacpp`.

No torch.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from align.config_errors import UserError
from align.engines import llama_wheel
from align.engines.process import Launch, url_of
from align.engines.venvs import find_program

ORIGINS = "LLAMA_ARG_CORS_ORIGINS"  # web pages that may ask; its default: every one in the world
ENGINE = "llama.cpp"
PROGRAM = "llama-server"
WHEEL = "xllamacpp"
SLOTS = 4  # answers at a time
# llama-server b11434 ends with SIGSEGV on quantised weights on some machines, and not with this.
NO_REPACK = "--no-repack"
# The policy as it was trained: llama.cpp's defaults cut its distribution (top-k 40, min-p 0.05).
SAMPLING = ("--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0")


def find(name: str) -> Path | None:
    """A program of llama.cpp: on PATH, else in its own environment."""
    found = shutil.which(name)
    return Path(found) if found else find_program(ENGINE, name)


def program(python: str | None) -> list[str]:
    """The words that start its server, of this order: PATH, its own environment, the wheel.

    python: an interpreter that has the wheel; it is taken then.
    """
    if python is not None:
        if not Path(python).exists():
            fix = f"Give the bin/python of an environment with {WHEEL}"
            raise UserError("python", python, "does not exist", fix)
        return [python, llama_wheel.__file__]
    found = find(PROGRAM)
    if found is not None:
        return [str(found)]
    if find_spec(WHEEL) is not None:
        return [sys.executable, llama_wheel.__file__]
    raise UserError(
        "engine", ENGINE, f"is not here: no {PROGRAM} on PATH, and no {WHEEL}",
        f"Run: pip install {WHEEL}, or put {PROGRAM} on PATH",
    )  # fmt: skip


def launch(
    model: str | Path,
    *,
    name: str,
    log: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    python: str | None = None,
    max_model_len: int | None = None,
    slots: int = SLOTS,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Launch:
    """Launch of a GGUF file under `name`, with the model's own chat template.

    max_model_len: tokens that each of `slots` answers at a time may have, prompt included; None:
    the context of the model, which they share. options: further words of its command line.
    """
    words = [*program(python), "-m", str(model), "--host", host, "--port", str(port)]
    words += ["--alias", name, "--jinja", "--metrics", "--no-webui", "--offline", *SAMPLING]
    if max_model_len is not None:
        each = ["--parallel", str(slots), "--no-kv-unified"]
        words += ["--ctx-size", str(slots * max_model_len), *each]
    added = {ORIGINS: os.environ.get(ORIGINS, "localhost")} | dict(env or {})
    url = url_of(host, port)
    return Launch(ENGINE, [*words, *options], url, log, env=added, after_crash=(NO_REPACK,))
