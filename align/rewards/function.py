"""A Python function as a reward.

    def brevity(prompts, completions, **kwargs):
        return [-len(text) / 100 for text in completions]

is named `my_rewards:brevity` (a module that can be imported, the current folder included) or
`path/to/my_rewards.py:brevity` (a file).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from align.config_errors import UserError
from align.records import Message
from align.rewards.base import RewardError, checked

FORM = "Write module:function or file.py:function"


class FunctionReward:
    """Calls f(prompts, completions, …) → B numbers.

    prompts: B lists of {"role", "content"}. completions: B texts. finished: B bools, passed by name
    to functions that take it (or take **kwargs). Raises RewardError, naming the function, when it
    raises or returns anything but B finite numbers.
    """

    def __init__(self, path: str, field: str = "rewards.path") -> None:
        self.path = path
        self.function = load_function(path, field)
        self.name = path.rsplit(":", 1)[1]
        self._extra = _accepts_finished(self.function)

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the function's numbers, checked."""
        chats = [[m.to_json() for m in prompt] for prompt in prompts]
        extra = {"finished": list(finished)} if self._extra else {}
        try:
            values = self.function(chats, list(completions), **extra)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise RewardError(
                f"reward {self.path!r} raised {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error
        return checked(self.path, values, completions)


def load_function(path: str, field: str = "rewards.path") -> Callable[..., Any]:
    """Return the function that `module:function` or `file.py:function` names.

    Raises UserError when the form is wrong, or the module or function is missing or broken.
    """
    place, _, name = path.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(field, path, "does not name a function", FORM)
    try:
        module = _load_file(place) if place.endswith(".py") else _load_module(place)
    except FileNotFoundError:
        raise UserError(field, path, f"names a file that does not exist: {place}", FORM) from None
    except Exception as error:
        reason = f"could not be imported: {type(error).__name__}: {error}"
        raise UserError(field, path, reason, FORM) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        what = "is not a function" if hasattr(module, name) else "has no such function"
        fix = f"{place} has: {', '.join(sorted(known)[:8])}" if known else FORM
        raise UserError(field, path, what, fix)
    return function


def _load_file(place: str) -> ModuleType:
    """Import a file under a name of its own; its folder need not be importable."""
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(place)
    spec = importlib.util.spec_from_file_location(f"align_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling inside the file look it up
    spec.loader.exec_module(module)
    return module


def _load_module(place: str) -> ModuleType:
    """Import a module; the current folder counts as importable, after everything else."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(place)
    finally:
        if added:
            sys.path.remove(here)


def _accepts_finished(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return False
    return any(p.name == "finished" or p.kind is p.VAR_KEYWORD for p in parameters)
