"""Files, models and functions that must exist before anything heavy is started."""

from __future__ import annotations

import ast
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from align.config_checks import NEEDED
from align.config_errors import NO_VALUE, UserError, missing_file, nearest
from align.config_own_data import data_read

if TYPE_CHECKING:
    from align.config import Config

# Weights, an adapter, or a GGUF export: what a model folder holds.
_MODEL_FILES = ("config.json", "adapter_config.json", "*.gguf")


def check_files(config: Config) -> None:
    """Raise UserError for a file or model that `config.method` reads and that does not exist."""
    data, method = config.data, config.method
    for name in (*data_read(config), *(["validation"] if method in NEEDED else [])):
        paths = config.texts if name == "text" else [getattr(data, name)]
        for path in paths:
            _file(f"data.{name}", path, folder_too=method in ("tokenizer", "pretrain"))
    if method in NEEDED:
        _output_dir(config.train.output_dir)
    if method in NEEDED and method != "tokenizer":
        for name in ("deepspeed", "fsdp_config", "accelerator_config"):
            value = config.train.args.get(name)
            if isinstance(value, str) and not value.lstrip().startswith("{"):
                _file(f"train.{name}", value)
        _template(data.chat_template)
        _model("policy.path", config.policy.path)
        if config.train.resume not in ("auto", "never"):
            _file("train.resume", config.train.resume, folder_too=True)
        if config.policy.lora is not None:
            _model("policy.lora.path", config.policy.lora.path)
    if method == "pretrain":
        _model("pretrain.tokenizer", config.pretrain.tokenizer, files=("tokenizer*",))
        if len(config.texts) > 1 and "auto" in config.texts:
            reason = "has the demo's own corpus among others"
            raise UserError("data.text", "auto", reason, "Give its path")
    if method == "tokenizer":
        _template(data.chat_template)
        base = (*_MODEL_FILES[:1], "tokenizer*")
        _model("tokenizer.extend", config.tokenizer.extend, files=base)
        for i, path in enumerate(config.tokenizer.compare_with):
            _model(f"tokenizer.compare_with.{i}", path, files=base)
    if method in ("pretrain", "sft", "dpo", "orpo", "ppo") and config.eval.judge is not None:
        _file("eval.judge", config.eval.judge.removeprefix("naive_bayes:"), folder_too=True)
    if method == "ppo":
        _model("ppo.critic_path", config.ppo.critic_path)
        _file("eval.prompts", config.eval.prompts)
        for i, reward in enumerate(config.rewards):
            if reward.kind == "model":
                _model(f"rewards.{i}.path", reward.path)
            elif reward.kind == "function":
                check_function(f"rewards.{i}.path", reward.path)
            else:
                check_url(f"rewards.{i}.path", reward.path)


def _file(field: str, path: str | None, folder_too: bool = False) -> None:
    if path is None or path == "auto":
        return
    if not Path(path).exists():
        raise missing_file(field, path)
    if Path(path).is_dir() and not folder_too:
        raise UserError(field, path, "is a folder, not a file", "Give a file in it")


def _output_dir(path: str) -> None:
    """Every part of the path that exists must be a folder."""
    folder = Path(path)
    for part in (folder, *folder.parents):
        if part.is_dir():
            return
        if part.exists():
            reason = "cannot be made" if part != folder else "is a file"
            fix = "Give a folder" if part == folder else f"{part} is a file"
            raise UserError("train.output_dir", path, reason, fix)


def _template(template: str | None) -> None:
    names = ("chatml", "zh_instruction", "inst")
    if template in (None, "auto", *names):
        return None
    if template.endswith((".jinja", ".jinja2", ".txt")) or os.sep in template:
        return _file("data.chat_template", template)
    close = nearest(template, names)
    raise UserError(
        "data.chat_template", template, "is neither a named template nor a .jinja file",
        f"Did you mean '{close}'?" if close else f"One of: {', '.join(names)}",
    )  # fmt: skip


def _model(field: str, path: str | None, files: tuple[str, ...] = _MODEL_FILES) -> None:
    """A folder must hold a model; what is no folder may be a hub id `name` or `owner/name`."""
    if path is None or path == "auto":
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        if any(next(folder.glob(pattern), None) for pattern in files):
            return None
        inner = folder / "final"
        fix = f"Did you mean '{inner}'?" if inner.is_dir() else "Check the path"
        raise UserError(field, path, f"is a folder without {files[0]}", fix)
    parts = path.strip("/").split("/")
    local = path.startswith((".", "/", "~")) or len(parts) > 2 or Path(parts[0]).is_dir()
    if folder.exists():
        raise UserError(field, path, "is a file, not a model folder", "Give the folder")
    if local:
        return _file(field, path)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        home = os.environ.get("HF_HUB_CACHE") or os.path.join(
            os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub"
        )
        if not (Path(home).expanduser() / ("models--" + "--".join(parts))).is_dir():
            reason = "is no folder, and HF_HUB_OFFLINE forbids asking the hub for it"
            raise UserError(field, path, reason, "Check the path, or unset HF_HUB_OFFLINE")
    return None


def check_url(
    field: str,
    path: str,
    *,
    fix: str = "Write http://host:port, as python -m reward_models serve prints it",
    token: str = "ALIGN_REWARD_TOKEN",
) -> None:
    """Raise UserError unless path is an http(s) URL that can be written into config.yaml.

    fix: what to write instead. token: the environment's variable that a password belongs in.
    """
    try:
        parts = urlsplit(path)
        named = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise UserError(field, path, f"is not a URL: {error}", fix) from None
    if parts.scheme not in ("http", "https") or not named or not path.isprintable() or " " in path:
        raise UserError(field, path, "is not an http or https URL", fix)
    if "@" in parts.netloc:  # its value is not shown either
        reason = "holds a name or password, which would be written into config.yaml"
        raise UserError(field, NO_VALUE, reason, f"Set {token} in the environment")
    if parts.fragment:
        raise UserError(field, path, "has a part after #, which is never sent", fix)


def check_function(field: str, path: str) -> None:
    """Raise UserError unless path names a python function that is there."""
    module, _, name = path.rpartition(":")
    if not module or not name.isidentifier():
        reason = "does not name a python function"
        raise UserError(field, path, reason, "Write module:function or file.py:function")
    if module.endswith(".py"):
        _file(field, module)
        return _defined(field, path, Path(module), name)
    top = module.split(".")[0]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a script's sys.path holds its own folder, not the cwd
    if find_spec(top) is None:
        raise UserError(field, path, f"names module '{top}', which is not found", "Check the name")
    return None


def _defined(field: str, path: str, file: Path, name: str) -> None:
    """The file's own text must define the function; a star import may hide it, then it is tried."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(field, path, f"cannot be read: {error}", "Correct the file") from error
    names = {
        getattr(node, slot, None)
        for node in ast.walk(tree)
        for slot in ("name", "asname", "id")  # def and class, import, assignment
    }
    if name not in names and "*" not in names:
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        close = nearest(name, functions)
        known = f"Did you mean '{close}'?" if close else f"It has: {', '.join(functions[:8])}"
        raise UserError(field, path, f"names '{name}', which {file.name} does not have", known)
