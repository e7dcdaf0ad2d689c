"""Embeddings for new tokens: a model's rows for them are means of the rows that they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.checkpoints import only_adapter
from align.config_errors import UserError

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


def check_base(path: str) -> None:
    """Raise UserError for a base that has no embeddings of its own to extend."""
    if only_adapter(path):
        reason = "is an adapter: its base holds the embeddings"
        raise UserError("tokenizer.extend", path, reason, "Merge it with recipes/export_model.py")


def has_model(path: str) -> bool:
    """Whether a folder holds weights and not a tokenizer alone; a hub id is asked for its model."""
    folder = Path(path)
    if not folder.is_dir():
        return True
    weights = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    return weights and (folder / "config.json").is_file()


def extend_model(
    path: str,
    target: Path,
    parts: Mapping[int, Sequence[int]],
    say: Callable[[str], None] | None = None,
) -> bool:
    """Write the model of `path` with rows for new tokens to target; False where it has none.

    parts: {new id: the base's ids of the same text}.
    """
    if not has_model(path):
        return False
    from transformers import AutoConfig, AutoModelForCausalLM

    from align.model_safety import code_options, weight_options

    options = weight_options(path, "tokenizer.extend")
    try:
        shape = AutoConfig.from_pretrained(path, **code_options(path, "tokenizer.extend"))
        names = shape.architectures or []
        if names and not any("CausalLM" in n or "LMHead" in n for n in names):
            reason = f"is no causal language model ({names[0]})"
            raise UserError("tokenizer.extend", path, reason, "Give one, or a tokenizer's folder")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **options)
    except (OSError, ValueError, KeyError) as error:
        reason = f"holds a model that cannot be loaded ({str(error).strip().splitlines()[0]})"
        fix = "Check that the folder is complete"
        raise UserError("tokenizer.extend", path, reason, fix) from error
    add_rows(model, parts)
    model.save_pretrained(target)
    if say:
        rows = model.get_input_embeddings().weight.shape[0]
        say(f"embeddings for {len(parts):,} new tokens, {rows:,} rows")
    return True


def add_rows(model: Any, parts: Mapping[int, Sequence[int]]) -> None:
    """Resize a model's embeddings and set the rows of new tokens, in place.

    A new row, of the input and of an output that is not tied to it, is the mean of the rows in
    `parts`, taken in float32; with no parts, of all old rows. Old rows stay as they are.
    """
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    rows = max(old, max(parts) + 1)
    used = min(parts)  # a base may have more rows than tokens: those are set too
    if rows > old:
        model.resize_token_embeddings(rows, mean_resizing=False)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        tables.append(outputs.weight)
    bias = getattr(outputs, "bias", None)
    if bias is not None:
        tables.append(bias)
    with torch.no_grad():
        for table in tables:
            everything = table[:used].float().mean(0)
            for number, ids in parts.items():
                mean = table[list(ids)].float().mean(0) if ids else everything
                table[number] = mean.to(table.dtype)
