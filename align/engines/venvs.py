"""Where the engines that need a virtual environment of their own are, and how one is made.

Their pins exclude each other and the training stack: `recipes/setup_engine.py NAME` makes one
folder an engine, and everything here only looks for what lies in it. No torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from align.config_errors import UserError

ENV = "ALIGN_ENGINES"
"""Environment variable: the folder that holds one virtual environment an engine."""


def root() -> Path:
    """The folder of all engines: $ALIGN_ENGINES, else ~/.cache/align/engines."""
    return Path(os.environ.get(ENV) or Path.home() / ".cache" / "align" / "engines")


def find_python(name: str) -> Path | None:
    """The interpreter of an engine's own environment; None where it was not made."""
    found = root() / name / "bin" / "python"
    return found if found.exists() else None


def find_program(name: str, program: str) -> Path | None:
    """A program of an engine's own environment; None where it is not there."""
    found = root() / name / "bin" / program
    return found if os.access(found, os.X_OK) else None


def need_python(name: str, field: str) -> Path:
    """The interpreter of an engine's own environment; UserError with the command that makes it."""
    found = find_python(name)
    if found is None:
        raise UserError(
            field, name, f"needs its own environment, which is not in {root()}",
            f"Make it once: python recipes/setup_engine.py {name}",
        )  # fmt: skip
    return found
