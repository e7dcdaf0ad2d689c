"""What a model folder may bring along: pickled weights and own code are refused unless allowed.

A .bin or .pt file is a pickle, and reading one can run code. A config.json with `auto_map` names
Python files of the folder, which `trust_remote_code` would run. The configuration allows either for
the paths that it names (`allow`); every other model is held to safetensors and the libraries' code.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.files import read_object

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Weights of a model, of an adapter; a Trainer leaves training_args.bin and others beside them.
_WEIGHTS = ("pytorch_model", "adapter_model", "model", "consolidated")
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
CONVERT = "Convert it to safetensors where you trust it, see docs/security.md"
ANY = "any model of the command line"
_pickled: set[str] = set()
_coded: set[str] = set()


def allow(paths: Iterable[str | None], *, pickle: bool, code: bool) -> list[str]:
    """Let models at these paths bring pickles or code; return what should be said aloud, once."""
    said = []
    for path in paths:
        for wanted, allowed, what in (
            (pickle, _pickled, "policy.allow_pickle: weights may be read from pickle files of"),
            (code, _coded, "policy.trust_remote_code: Python code may be run that comes with"),
        ):
            if path and wanted and _place(path) not in allowed:
                allowed.add(_place(path))
                said.append(f"{what} {path}")
    return said


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a tool's options that stand for the configuration's keys, see `allow_as_asked`."""
    add = parser.add_argument
    add("--allow_pickle", action="store_true", help="read weights from .bin and .pt files")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model")


def allow_as_asked(args: argparse.Namespace) -> None:
    """Let every model that a tool was given bring what its command line allows, and say so."""
    for line in allow([ANY], pickle=args.allow_pickle, code=args.trust_remote_code):
        print(f"[align] {line}", flush=True)


def code_options(path: str | Path, field: str) -> dict[str, Any]:
    """Return options of `from_pretrained` for a configuration or tokenizer.

    UserError about `field` if the folder, or an adapter's base, has code that is not allowed.
    """
    if {ANY, _place(path)} & _coded:
        return {"trust_remote_code": True}
    folder = Path(path)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        _refuse_code(folder / name, field)
    return {"trust_remote_code": False}


def weight_options(path: str | Path, field: str) -> dict[str, Any]:
    """Return options of `from_pretrained` for weights: those of `code_options`, and safetensors.

    UserError about `field` if what would be read is a pickle and that is not allowed.
    """
    options = code_options(path, field)
    if {ANY, _place(path)} & _pickled:
        return options
    check_weights(path, field)
    return options | {"use_safetensors": True}


def check_weights(path: str | Path, field: str) -> None:
    """Raise UserError if a model's or an adapter's weights in a folder are pickles."""
    folder = Path(path)
    if not folder.is_dir() or {ANY, _place(path)} & _pickled:
        return
    adapter = (folder / "adapter_config.json").is_file()
    whole = (folder / "config.json").is_file()
    safe = [p.name for p in folder.glob("*.safetensors*")]
    for name, there in (("adapter_model", adapter), ("model", whole or not adapter)):
        pickles = [p.name for p in sorted(folder.iterdir()) if _is_pickled(p.name, name)]
        if there and pickles and not any(s.startswith((f"{name}.", f"{name}-")) for s in safe):
            _refuse(path, field, f"has its weights in {pickles[0]}, a pickle file, which may run "
                    "code when it is read", "policy.allow_pickle")  # fmt: skip
    for index in folder.glob("*.safetensors.index.json"):
        named = read_object(index).get("weight_map")
        files = named.values() if isinstance(named, dict) else ()
        if bad := sorted({str(f) for f in files if not _is_plain(f)}):
            reason = f"has a {index.name} that names {bad[0]}, no safetensors file of the folder"
            raise UserError(field, str(path), reason, CONVERT)


def _is_pickled(name: str, kind: str) -> bool:
    stems = ("adapter_model",) if kind == "adapter_model" else _WEIGHTS
    return name.endswith(PICKLES) and name.startswith(stems) and (
        kind == "adapter_model" or not name.startswith("adapter_model")
    )  # fmt: skip


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _refuse_code(file: Path, field: str) -> None:
    told = read_object(file)
    folder = str(file.parent)
    if told.get("auto_map"):
        fix = "or take auto_map out of the file if transformers has the model's own class"
        _refuse(folder, field, f"comes with Python code of its own (auto_map in {file.name})",
                "policy.trust_remote_code", fix)  # fmt: skip
    for name in _KERNELS:
        value = told.get(name)
        if isinstance(value, str) and set("/|:") & set(value):
            reason = f"asks for compiled code from the hub ({name}: {value} in {file.name})"
            raise UserError(
                field, folder, reason, "Take it out; policy.attn_implementation is ours"
            )


def _refuse(path: str | Path, field: str, reason: str, key: str, more: str = "") -> None:
    """Raise the refusal; only where the configuration names the model can a key allow it."""
    if not field.startswith(("policy.", "ppo.")):
        # A tool's model, a reward model: the key is not theirs.
        raise UserError(field, str(path), reason, f"{CONVERT}; the recipes' tools take --{key[7:]}")
    fix = f"If you trust it, set {key}: true"
    raise UserError(field, str(path), reason, f"{fix}; {more or CONVERT[0].lower() + CONVERT[1:]}")


def _place(path: str | Path) -> str:
    return os.path.realpath(path) if os.path.exists(path) else str(path)
