"""What a path to serve holds, and which engine may serve it. No torch: answers in milliseconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.config_errors import UserError, missing_file
from align.files import read_object

ENGINES = ("transformers", "vllm", "llama.cpp")
GENERIC = ("final", "export", "hf", "gguf", "adapter", "awq", "gptq", "w8a8", "int8")
EXPORT = "python recipes/export_model.py --model {} --to {}"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


@dataclass(frozen=True)
class Served:
    """A model that can be served.

    kind: hf | gguf | adapters. path: what an engine reads: a folder, a .gguf file or, below
    adapters, perhaps a hub id. name: of the model in the API. adapters: (name, path, rank) of LoRAs
    on it. quantized: quant_method or None.
    """

    kind: str
    path: Path
    name: str
    adapters: Sequence[tuple[str, str, int]] = ()
    quantized: str | None = None


def find_served(given: str, name: str | None = None, *, gguf: bool = False) -> Served:
    """What is at a path. gguf: of a folder that has both, take the GGUF file.

    UserError for what is no export: a run, a checkpoint, a reward model, an adapter without base.
    """
    path = Path(given)
    if not path.exists():
        raise missing_file("model", given)
    name = name or default_name(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError("model", given, "is a file, and no .gguf", "Give an export's folder")
        return Served("gguf", path, name)
    if (path / "adapters.json").is_file():
        return _adapters(path, name)
    whole = (path / "config.json").is_file()
    files = sorted(path.glob("*.gguf"))
    if files and (gguf or not whole):
        if len(files) > 1:
            fix = f"Name one: {', '.join(f.name for f in files)}"
            raise UserError("model", given, f"has {len(files)} .gguf files", fix)
        return Served("gguf", files[0], name)
    _refuse_what_is_no_export(path)
    return _whole(path, name)


def default_name(path: Path) -> str:
    """The name of the folder or file, or the run's where the folder has the name of a stage."""
    path = path.resolve()
    if path.suffix == ".gguf":
        return path.stem
    named = next((p.name for p in (path, *path.parents) if p.name not in GENERIC), "")
    return named or path.name


def _refuse_what_is_no_export(path: Path) -> None:
    config = read_object(path / "config.json")
    kinds = config.get("architectures") or []
    if (path / "contract.json").is_file() or any(
        str(k).endswith("SequenceClassification") for k in kinds
    ):
        fix = f"Score texts with it: python -m reward_models serve --model {path}"
        raise UserError("model", str(path), "is a reward model, which writes no text", fix)
    if (path / "trainer_state.json").is_file():
        fix = f"Export it: python recipes/export_model.py --checkpoint {path} --to hf"
        raise UserError("model", str(path), "is a training checkpoint", fix)
    if (path / "adapter_config.json").is_file() and not config:
        reason = "is a LoRA adapter without its base"
        fix = f"Export it merged: {EXPORT.format(path, 'hf')}"
        raise UserError("model", str(path), reason, fix)
    run = not config and ((path / "final").is_dir() or any(path.glob("checkpoint-*")))
    final = (path.parent / "manifest.json").is_file() and not (path / "export.json").is_file()
    if run or (config and final):
        what = "a run directory" if run else "a run's final folder"
        reason = f"is {what}, not an export: stop tokens and template are not settled for a server"
        raise UserError("model", str(path), reason, f"Export it: {EXPORT.format(path, 'hf')}")
    if not config:
        reason = "holds no model (config.json, adapters.json or a .gguf file)"
        raise UserError("model", str(path), reason, "Give the folder that export_model.py wrote")


def _whole(path: Path, name: str) -> Served:
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise UserError("model", str(path), "has config.json but no weights", "Export it again")
    tokenizer = path / "tokenizer_config.json"
    if not tokenizer.is_file():
        raise UserError("model", str(path), "has no tokenizer_config.json", "Export it again")
    if not (path / "chat_template.jinja").is_file() and not read_object(tokenizer).get(
        "chat_template"
    ):
        fix = f"Export it with one: {EXPORT.format(path, 'hf')} --chat_template chatml"
        raise UserError("model", str(path), "has no chat template: it cannot chat", fix)
    quantized = read_object(path / "config.json").get("quantization_config") or {}
    return Served("hf", path, name, quantized=quantized.get("quant_method"))


def _adapters(path: Path, name: str) -> Served:
    from align.export.adapter_folder import read_adapters, read_base

    adapters, base = read_adapters(path), read_base(path)
    if not (Path(base) / "config.json").is_file() and not _HUB_ID.fullmatch(base):
        fix = "Put it there, or export the adapters again with their base"
        raise UserError("model", str(path), f"has adapters of {base}, which is no folder here", fix)
    return Served(
        "adapters", Path(base), name, adapters=tuple((n, str(p), r) for n, p, r in adapters)
    )


def check_pair(served: Served, engine: str, given: str) -> None:
    """UserError where an engine cannot read what is at the path."""
    if engine == "llama.cpp" and served.kind != "gguf":
        fix = f"Export it: {EXPORT.format(given, 'gguf')}"
        raise UserError("engine", engine, f"reads GGUF files, and {given} is none", fix)
    if engine != "llama.cpp" and served.kind == "gguf":
        fix = "Use --engine llama.cpp, or give the folder of an hf export"
        raise UserError("engine", engine, f"does not serve the GGUF file {served.path.name}", fix)
    if engine == "transformers" and served.kind == "adapters":
        fix = "Use --engine vllm, or export one adapter merged (--to hf)"
        raise UserError("engine", engine, "serves no folder of adapters by name", fix)
