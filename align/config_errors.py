"""What configuration and input problems look like to the user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SECRET = re.compile(
    r"(?:^|[_.-])(?:tokens?|secrets?|password|passwd|pwd|credentials?|auth(?:orization)?"
    r"|(?:api|access|private|secret)[_-]?key)$",
    re.IGNORECASE,
)
# Tokens of a text, and numbers of them.
_NO_SECRET = re.compile(
    r"(?:^|[._])(?:(?:pad|eos|bos|unk|sep|cls|mask|stop|image)_tokens?"
    r"|(?:max|min|num|new|max_new|min_new|shard|sample|total|special|extra)_tokens)$"
)


class _NoValue:
    """Marks an error about a field that has no value to show."""


NO_VALUE = _NoValue()


class UserError(Exception):
    """The user's input is wrong; nothing was started (exit code 2).

    field: dotted key or file position. value: what was given (NO_VALUE: nothing to show).
    reason: continues the sentence "field=value …". fix: what to write instead.
    """

    def __init__(self, field: str, value: Any, reason: str, fix: str = "") -> None:
        """Keep the four parts; `str()` joins them into one readable line."""
        super().__init__(field, value, reason, fix)
        self.field, self.value, self.reason, self.fix = field, value, reason, fix

    def __str__(self) -> str:
        """Return `field=value reason. fix`."""
        hidden = self.value is NO_VALUE or is_secret(self.field)
        head = self.field if hidden else f"{self.field}={show(self.value)}"
        reason = self.reason.strip().rstrip(".")
        fix = self.fix.strip()
        if fix and fix[-1] not in ".!?":
            fix += "."
        return f"{head} {reason}. {fix}".strip()


class StopRequested(Exception):
    """A signal asked the run to stop, on every rank; a checkpoint was saved (exit code 75)."""


class Failed(RuntimeError):
    """A run failed for a reason that its message explains, with what to do (exit code 1).

    everywhere: every rank raises it, so that all can wait for each other before they end.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        """Keep the message and whether all ranks fail alike."""
        super().__init__(message)
        self.everywhere = everywhere


def is_secret(name: str) -> bool:
    """Return whether a key's name is that of a token, password or key, whose value is not shown."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


def show(value: Any, limit: int = 240) -> str:
    """Return the value as a user would write it; the middle is left out beyond `limit` characters.

    What tells two long paths apart stands at their ends.
    """
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_simple(value) else None
    text = repr(value) if text is None else text
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"


def _is_simple(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `name`, or None if none is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def missing_file(field: str, path: str) -> UserError:
    """Return the error for a file that is not there, with the nearest name that is."""
    folder = Path(path).parent
    fix = f"The folder {folder} does not exist either"
    if folder.is_dir():
        close = nearest(Path(path).name, [entry.name for entry in folder.iterdir()])
        fix = f"Did you mean '{folder / close}'?" if close else "Check the path"
    return UserError(field, path, "does not exist", fix)
