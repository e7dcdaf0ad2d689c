"""How transformers' own server, `transformers serve`, is started on a local folder. No torch.

It answers for the one model that it is given, loads it before it listens, and calls it by the path
of its command line: so it is started in a folder with a link (`linked`) of the wanted name.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from align.config_errors import UserError
from align.engines.process import Launch

PACKAGES = ("fastapi", "httpx", "openai", "pydantic", "uvicorn")
"""What `transformers serve`, and what stands before it, need."""

PROGRAM = "transformers"


def program(python: str | None) -> str:
    """Its command: beside the given interpreter, else beside this one, else on PATH."""
    beside = Path(python or sys.executable).parent / PROGRAM
    if python is not None and not beside.exists():
        raise UserError(
            "python", python, f"has no {PROGRAM} program beside it",
            "Give the bin/python of an environment with transformers, or leave it out",
        )  # fmt: skip
    found = str(beside) if beside.exists() else shutil.which(PROGRAM)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing or found is None:
        reason = f"needs {', '.join(missing) or 'the program transformers'}, not installed here"
        raise UserError("engine", "transformers", reason, "Run: pip install 'align[serve]'")
    return found


def launch(
    *,
    name: str,
    folder: Path,
    log: Path,
    port: int,
    python: str | None = None,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cpu: bool = True,
) -> Launch:
    """Launch of the model that `name` in `folder` leads to, on the loopback address alone.

    options: further words of its command line. cpu: compute in float32, because bfloat16 is slower
    there; else in the precision of the weights. Its own paths /load_model and /reset let any client
    load another model: it must not be reached directly.
    """
    words = [program(python), "serve", name, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32" if cpu else "auto"]
    added = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | dict(env or {})
    return Launch(
        "transformers serve", [*words, *options], f"http://127.0.0.1:{port}", log, "/health",
        added, cwd=folder,
    )  # fmt: skip


def linked(model: Path, folder: Path, name: str) -> Path:
    """`folder`, in which `name` now leads to the model."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(model.resolve(), target_is_directory=True)
    place = folder / name
    if place.exists() and not place.is_symlink():
        raise UserError("log_dir", str(place), "is in the way", "Remove it, or use another log_dir")
    os.replace(temporary, place)
    return folder
