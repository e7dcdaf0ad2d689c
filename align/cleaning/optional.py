"""Packages of the extras: imported where a step needs them, or the install line instead."""

from __future__ import annotations

import importlib
from typing import Any

from align.config_errors import UserError


def package(module: str, field: str, value: Any, *, extra: str = "data", without: str = "") -> Any:
    """The module; UserError about `field` with the install line where its package is missing.

    without: how to go on without the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        raise UserError(
            field, value, f"needs the package {_PACKAGES.get(name, name)}, which is not installed",
            f"pip install 'align[{extra}]'" + (f", or pass {without}" if without else ""),
        ) from error  # fmt: skip


# Packages that are imported under another name than they are installed by.
_PACKAGES = {"opencc": "OpenCC", "sklearn": "scikit-learn",
             "charset_normalizer": "charset-normalizer"}  # fmt: skip
