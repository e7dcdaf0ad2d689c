"""From nested dicts to the sections of config_schema: strict keys, types and ranges.

jsonargparse was tried for this: it costs 0.1 s more at start, and its messages name neither the
nearest valid key nor the section where a misplaced key belongs. What is needed is small enough to
state directly.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from align import config_schema as schema
from align import config_train_args as train_args
from align.config_errors import UserError, nearest
from align.config_key import name_of

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def build(cls: type, given: Any, prefix: str) -> Any:
    """Return dataclass `cls` from mapping `given`; `prefix` is its dotted name in messages."""
    if not isinstance(given, Mapping):
        raise UserError(prefix, given, "is not a section", f"Write keys under {prefix}:")
    hints = typing.get_type_hints(cls)
    fields = {name_of(f): f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    args: dict[str, Any] = {}
    for name, value in given.items():
        field = f"{prefix}.{name}"
        if name in fields and not (cls is schema.Train and name == "args"):
            own = fields[name]
            values[own.name] = _value(hints[own.name], value, field)
            _range(own.metadata["limits"], values[own.name], field)
        elif cls is schema.Train and name in train_args.training_arguments():
            args[name] = train_args.check(name, value)
        else:
            raise unknown(field, value, names_of(cls))
    if args:
        values["args"] = args
    return cls(**values)


def names_of(cls: type) -> list[str]:
    """Return the keys a section takes."""
    names = [name_of(f) for f in dataclasses.fields(cls)]
    if cls is schema.Train:
        names.remove("args")
        names += [n for n in train_args.training_arguments() if n not in train_args.OWNED]
    return names


def unknown(field: str, value: Any, known: list[str]) -> UserError:
    """Return the error for a key that does not exist, with the nearest one that does."""
    prefix, _, name = field.rpartition(".")
    if prefix == "train" and name in train_args.REMOVED:
        reason = "is no longer a TrainingArguments name"
        return UserError(field, value, reason, train_args.REMOVED[name])
    elsewhere = [s for s, cls in schema.SECTIONS.items() if name in names_of(cls)]
    close = nearest(str(name), known)
    if elsewhere and not (close and prefix in schema.SECTIONS and elsewhere[0] == prefix):
        places = " or ".join(f"'{section}.{name}'" for section in elsewhere[:2])
        return UserError(field, value, "is not a known key", f"Did you mean {places}?")
    if close:
        close = f"{prefix}.{close}" if prefix else close
        return UserError(field, value, "is not a known key", f"Did you mean '{close}'?")
    shown = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
    return UserError(field, value, "is not a known key", f"Known here: {shown}")


def _value(hint: Any, value: Any, field: str) -> Any:
    """Return `value` if it fits type `hint` (int fits float), else raise UserError."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(hint), value, field)
    if origin is Literal:
        return _choice(typing.get_args(hint), value, field)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, field)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(field, value, "is not a list", "Write [a, b]")
        inner = typing.get_args(hint)[0]
        return [_value(inner, item, f"{field}.{i}") for i, item in enumerate(value)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(field, value, f"is not {_NAMES.get(hint, hint.__name__)}")
    if hint is float and not math.isfinite(value):
        raise UserError(field, value, "is not a finite number")
    return value


def _union(options: tuple[Any, ...], value: Any, field: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if any(typing.get_origin(option) is dict for option in rest):
        return value if isinstance(value, str) else _mixture(value, field)
    if len(rest) > 1:  # only `text or list of text` occurs
        return _value(rest[-1] if isinstance(value, list) else rest[0], value, field)
    try:
        return _value(rest[0], value, field)
    except UserError as error:
        if error.field == field and error.reason.startswith("is not") and not error.fix:
            error.fix = "Or null to leave it off"
        raise


def _mixture(value: Any, field: str) -> dict[str, float]:
    """Return {path: weight} of a mapping; of a list of paths, which then count alike."""
    fix = "Write a path, or {path: weight, …}"
    given = value
    if isinstance(value, list) and all(isinstance(path, str) for path in value):
        given = dict.fromkeys(value, 1.0) if len(set(value)) == len(value) else None
    if not isinstance(given, Mapping) or not given:
        raise UserError(field, value, "is neither a path nor paths with weights", fix)
    for path, weight in given.items():
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(path, str) or not good or not 0 < weight < math.inf:
            raise UserError(f"{field}.{path}", weight, "is not a weight above 0", fix)
    return {path: float(weight) for path, weight in given.items()}


def _choice(choices: tuple[Any, ...], value: Any, field: str) -> Any:
    if value in choices:
        return value
    close = nearest(str(value), choices)
    hint = f"Did you mean '{close}'? " if close else ""
    reason = "is not one of the choices"
    raise UserError(field, value, reason, f"{hint}One of: {', '.join(map(str, choices))}")


def _range(limits: Mapping[str, float], value: Any, field: str) -> None:
    if value is None or isinstance(value, (bool, str)) or not isinstance(value, (int, float)):
        return
    tests = {
        "ge": (lambda low: value >= low, "is below the smallest allowed value"),
        "gt": (lambda low: value > low, "must be above"),
        "le": (lambda high: value <= high, "is above the largest allowed value"),
        "lt": (lambda high: value < high, "must be below"),
    }
    for name, limit in limits.items():
        holds, words = tests[name]
        if not holds(limit):
            raise UserError(field, value, f"{words} {limit}", f"Allowed: {_allowed(limits)}")


def _allowed(limits: Mapping[str, float]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " and ".join(f"{signs[name]} {limit}" for name, limit in limits.items())
