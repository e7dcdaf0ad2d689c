"""A key of the configuration: a dataclass field with its help text and its numeric range."""

from __future__ import annotations

from dataclasses import MISSING, Field
from dataclasses import field as _field
from typing import Any


def key(
    default: Any = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    factory: Any = MISSING,
) -> Any:
    """Return a dataclass field that carries its help text and its numeric range."""
    limits = {
        name: limit
        for name, limit in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt))
        if limit is not None
    }
    metadata = {"help": help, "limits": limits}
    if factory is not MISSING:
        return _field(default_factory=factory, metadata=metadata)
    return _field(default=default, metadata=metadata)


def name_of(field: Field[Any]) -> str:
    """Return the key that a field stands for: `async_` is `async`, a word that Python keeps."""
    return field.name.removesuffix("_")
