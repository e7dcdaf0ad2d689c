"""The forms that a model is exported to, and where they go. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from align.config_errors import UserError


class Format(NamedTuple):
    """help: one line. module: of `align.export`, which writes it."""

    help: str
    module: str


FORMATS = {
    "hf": Format("merged safetensors, for vLLM, TGI and from_pretrained", "hf"),
    "adapter": Format("the LoRA alone, as a peft folder", "adapter"),
    "gguf": Format("for llama.cpp and Ollama", "quantised"),
    "awq": Format("4-bit weights, by activation-aware scales", "quantised"),
    "gptq": Format("4-bit weights, by second-order rounding", "quantised"),
    "w8a8": Format("8-bit weights and activations", "quantised"),
    "bnb-4bit": Format("bitsandbytes NF4", "quantised"),
    "bnb-8bit": Format("bitsandbytes LLM.int8", "quantised"),
    "int8": Format("torchao int8, for CPUs", "quantised"),
}
RUN_FILES = ("manifest.json", "config.yaml")


def help_text() -> str:
    """All forms with their lines, for --help."""
    return "\n".join(f"  {name:9} {entry.help}" for name, entry in FORMATS.items())


def run_of(path: str | Path) -> Path | None:
    """The run directory that a model, its adapter or a checkpoint lies in; None for none."""
    path = Path(path)
    inner = path.name == "final" or path.name.startswith("checkpoint-")
    if path.name == "adapter" and path.parent.name == "final":
        return path.parent.parent
    if inner:
        return path.parent
    is_run = (path / "final").is_dir() or any((path / name).is_file() for name in RUN_FILES)
    return path if is_run else None


def default_root(path: str | Path) -> Path:
    """Folder that holds one folder a form where no --output is given.

    RUN/export for a run or its final/, RUN/export/checkpoint-N for a checkpoint, FOLDER-export
    beside any other model folder.
    """
    path = Path(path)
    run = run_of(path)
    if run is None:
        whole = path if path.name not in ("", "..") else path.resolve()
        return whole.with_name(f"{whole.name}-export")
    checkpoint = path.name.startswith("checkpoint-")
    return run / "export" / path.name if checkpoint else run / "export"


def places(names: Sequence[str], model: str | Path, output: str | None) -> dict[str, Path]:
    """{form: folder to write}: output itself for one form, output/FORM for several.

    UserError for a form that is named twice.
    """
    for name in names:
        if list(names).count(name) > 1:
            raise UserError("to", " ".join(names), f"names {name} twice", "Name each form once")
    if output is None:
        root = default_root(model)
        return {name: root / name for name in names}
    if len(names) == 1:
        return {names[0]: Path(output)}
    return {name: Path(output) / name for name in names}
