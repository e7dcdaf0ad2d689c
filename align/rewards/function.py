"""A Python function as a reward.

    def brevity(prompts, completions):
        return [-len(text) / 100 for text in completions]

is named `my_rewards:brevity` (a module that can be imported, the current folder included) or
`path/to/my_rewards.py:brevity` (a file).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from align.config_errors import UserError
from align.records import Message
from align.rewards.base import RewardError, checked

FORM = "Write module:function or file.py:function"
NAMES = ("prompts", "completions", "finished")


class FunctionReward:
    """Calls f(prompts, completions, …) → B numbers.

    prompts: B lists of {"role", "content"}. completions: B texts. finished: B bools. A function
    gets those of the three that it names (all with **kwargs), in any order; one whose parameters
    have other names gets prompts and completions by position.
    Raises UserError, naming field, for what cannot be loaded or called so; RewardError, naming the
    function, when it raises or returns anything but B finite numbers.
    """

    def __init__(self, path: str, field: str = "rewards.path") -> None:
        self.path = path
        self.function = load_function(path, field)
        self.name = path.rsplit(":", 1)[1]
        self._by_position, self._by_name = _call_form(self.function)
        _check_call(self.function, self._by_position, self._by_name, path, field)

    def __call__(
        self, prompts: list[list[Message]], completions: list[str], finished: list[bool]
    ) -> list[float]:
        """Return the function's numbers, checked."""
        chats = [[m.to_json() for m in prompt] for prompt in prompts]
        columns = (chats, list(completions), list(finished))
        given: dict[str, Any] = dict(zip(NAMES, columns, strict=True))
        try:
            values = self.function(
                *[given[name] for name in self._by_position],
                **{name: given[name] for name in self._by_name},
            )
            if inspect.isgenerator(values):  # its errors are the function's
                values = list(values)
        except Exception as error:
            raise RewardError(
                f"reward {self.path!r} raised {type(error).__name__}: {error} "
                f"({_where(self.function, error)})"
            ) from error
        return checked(self.path, values, completions)


def load_function(path: str, field: str = "rewards.path") -> Callable[..., Any]:
    """Return the function that `module:function` or `file.py:function` names.

    Raises UserError when the form is wrong, or the module or function is missing or broken.
    """
    place, _, name = path.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(field, path, "does not name a function", FORM)
    is_file = place.endswith(".py")
    if is_file and not Path(place).expanduser().is_file():
        raise UserError(field, path, f"names a file that does not exist: {place}", FORM)
    try:
        module = _load_file(Path(place)) if is_file else _load_module(place)
    except (Exception, SystemExit) as error:
        reason = f"could not be imported: {type(error).__name__}: {error}"
        raise UserError(field, path, reason, "Correct it, or " + FORM.lower()) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v) and k[0] != "_"]
        what = "is not a function" if hasattr(module, name) else "has no such function"
        fix = f"{place} has: {', '.join(sorted(known)[:8])}" if known else FORM
        raise UserError(field, path, what, fix)
    return function


def _load_file(place: Path) -> ModuleType:
    """Import a file under a name of its own; modules beside it can be imported at its top."""
    file = place.expanduser().resolve()
    tag = hashlib.sha256(str(file).encode()).hexdigest()[:8]  # two folders, one file name
    spec = importlib.util.spec_from_file_location(f"align_reward_{file.stem}_{tag}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling inside the file look it up
    try:
        with _importable(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _load_module(place: str) -> ModuleType:
    """Import a module; the current folder counts as importable, after everything else."""
    with _importable(Path.cwd()):
        return importlib.import_module(place)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in folder can be imported inside."""
    here = str(folder)
    added = here not in sys.path
    if added:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _call_form(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of NAMES to pass by position, and which by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return NAMES[:2], ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = tuple(name for name in NAMES if everything or name in named)
    foreign = [p for p in parameters if p.kind <= p.VAR_POSITIONAL and p.name not in NAMES]
    if not taken or (foreign and "prompts" not in named and "completions" not in named):
        return NAMES[:2], tuple(name for name in taken if name not in NAMES[:2])
    return (), taken


def _check_call(
    function: Callable[..., Any],
    by_position: tuple[str, ...],
    by_name: tuple[str, ...],
    path: str,
    field: str,
) -> None:
    """Refuse a function that our call does not fit, before any model is loaded for it."""
    fix = "Define it as def name(prompts, completions), optionally with finished or **kwargs"
    if inspect.iscoroutinefunction(function):
        raise UserError(field, path, "is an async function", fix)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*by_position, **{name: name for name in by_name})
    except TypeError as error:
        raise UserError(field, path, f"has the signature {signature}: {error}", fix) from None


def _where(function: Callable[..., Any], error: Exception) -> str:
    """File and line of an error: the last line of the function's own file, else the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
