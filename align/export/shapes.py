"""What a model folder says of itself without being loaded: config.json and tensor shapes.

The checks of quantised forms read this, so that an impossible one is refused at once. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.checkpoints import adapter_base, only_adapter
from align.config_errors import UserError
from align.files import read_object

GROUP_SIZES = (128, 64, 32)
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit
# Parts of the names of two-dimensional weights that are tables, not projections.
_TABLES = ("embed", "wte", "wpe", "lm_head", "score", "relative_attention_bias")
# Types whose projections are transformers' Conv1D, which holds a matrix transposed.
_CONV1D = ("gpt2", "openai-gpt", "imagegpt")


@dataclass(frozen=True)
class Facts:
    """config: config.json. linears: name → (outputs, inputs) of every projection but the head.

    weight_bytes: of all tensors. tied: whether the head is the embedding table.
    """

    folder: Path
    config: dict[str, Any]
    linears: dict[str, tuple[int, int]]
    weight_bytes: int
    tied: bool

    @property
    def kind(self) -> str:
        """model_type, "" where there is none."""
        return str(self.config.get("model_type") or "")

    @property
    def architecture(self) -> str:
        """The first of `architectures`, "" where there is none."""
        return str(next(iter(self.config.get("architectures") or []), ""))

    @property
    def conv1d(self) -> bool:
        """Whether the projections are Conv1D."""
        return self.kind in _CONV1D


def read_facts(folder: str | Path) -> Facts | None:
    """Facts of a folder with config.json and safetensors; of an adapter, those of its base.

    None where the weights lie elsewhere (a hub id) or in another format.
    """
    folder = Path(folder)
    if only_adapter(folder):
        folder = Path(adapter_base(folder))
    config = read_object(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not config or not files:
        return None
    shapes: dict[str, list[int]] = {}
    size = 0
    for file in files:
        for name, entry in read_header(file).items():
            shapes[name] = entry["shape"]
            begin, end = entry["data_offsets"]
            size += end - begin
    turned = config.get("model_type") in _CONV1D
    linears = {
        name.removesuffix(".weight"): (shape[1], shape[0]) if turned else (shape[0], shape[1])
        for name, shape in sorted(shapes.items())
        if len(shape) == 2 and name.endswith(".weight") and not any(t in name for t in _TABLES)
    }
    tied = not any("lm_head" in name or "embed_out" in name for name in shapes)
    return Facts(folder, config, linears, size, tied)


def read_header(file: Path) -> dict[str, Any]:
    """Names, shapes and places of the tensors in a safetensors file; UserError if it has none."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _HEADER_LIMIT:
                raise ValueError
            found = json.loads(stream.read(size))
        return {name: entry for name, entry in found.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError):
        reason = "is no complete safetensors file"
        raise UserError("model", str(file), reason, "Copy or save the model again") from None


def choose_group_size(facts: Facts, asked: int | None) -> int:
    """The group size asked for, else the largest of 128, 64 and 32 that divides every width.

    UserError that names the widths where it does not divide them all: engines would leave the rest
    of a row out or refuse to load it.
    """
    widths = sorted({inputs for _, inputs in facts.linears.values()})
    for size in GROUP_SIZES if asked is None else (asked,):
        if not any(width % size for width in widths):
            return size
    sizes = GROUP_SIZES if asked is None else (asked,)
    odd = [width for width in widths if width % sizes[-1]]
    example = next(name for name, (_, inputs) in facts.linears.items() if inputs == odd[0])
    fits = [size for size in GROUP_SIZES if not any(width % size for width in widths)]
    fix = "Use --to w8a8, int8 or gguf, which have no groups of this kind"
    raise UserError(
        "--group_size", "auto" if asked is None else asked,
        f"divides not all row widths of the model ({', '.join(map(str, widths))}); {example} has "
        f"{odd[0]}",
        f"Use --group_size {fits[0]}" if fits else fix,
    )  # fmt: skip
