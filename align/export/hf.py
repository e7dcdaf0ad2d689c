"""Write a finished policy as the plain folder that servers and `from_pretrained` read.

Adapters are merged, weights are safetensors, and the tokenizer, its chat template and a
generation_config with the stop tokens lie beside them. The written folder is loaded again and
its logits are compared with the source's before anything is called done.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from align.checkpoints import default_device, find_model, load_causal_lm, max_positions
from align.config_errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = 1e-5


def export(
    model_path: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    chat_template: str | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Export a model and check it; returns {"source", "dtype", "max_logit_difference", …}.

    model_path: run directory, model folder or LoRA adapter. dtype: one of DTYPES, None keeps the
    stored one. chat_template: a named template or jinja file to write in place of the stored one.
    Parity: with float32 weights the exported logits must equal those of the source, an adapter
    still unmerged, to 1e-5 of their largest value (at least 1); with a cast, the reloaded model
    must equal the cast one to the same tolerance. The folder appears whole or not at all. UserError
    for a non-empty output without overwrite, RuntimeError when the logits differ.
    """
    source, output = find_model(model_path), Path(output)
    _check_output(source, output, overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise UserError("dtype", dtype, "is not supported", f"use one of {', '.join(DTYPES)}")
    device = device or default_device()
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = _write(source, staging, dtype, chat_template, device)
        _replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def export_checkpoint(
    checkpoint: str | Path, output: str | Path, *, overwrite: bool = False, **options: Any
) -> dict[str, Any]:
    """Export a run's checkpoint-N as `export` does a finished model.

    A reward model's is written without a contract: its scores were not measured yet.
    """
    from align.consolidate import consolidate

    checkpoint, output = Path(checkpoint), Path(output)
    _check_output(checkpoint, output, overwrite)
    staging = output.with_name(f".{output.name}.whole")
    try:
        config = consolidate(checkpoint, staging)
        if config.method != "reward":
            return export(staging, output, overwrite=overwrite, **options) | {
                "source": str(checkpoint)
            }
        if any(options.values()):
            name = next(name for name, value in options.items() if value)
            reason = "is for causal models, and this is a reward model's checkpoint"
            raise UserError(name, options[name], reason, "Leave it out")
        _replace(staging, output)
        return {"source": str(checkpoint), "dtype": stored_dtype(output)}
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_output(source: Path, output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError("output", str(output), "is a file", "name a folder")
    inside = output.resolve() in [source.resolve(), *source.resolve().parents]
    if inside:
        raise UserError(
            "output", str(output), "contains the model that is exported", "name another folder"
        )
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UserError(
            "output", str(output), "is not empty", "name another folder or pass --overwrite"
        )


def _write(
    source: Path, folder: Path, dtype: str | None, chat_template: str | None, device: Any
) -> dict[str, Any]:
    """Save into folder and compare; nothing here touches the final place."""
    import torch

    stored = stored_dtype(source)
    target = dtype or stored
    unmerged, tokenizer = load_causal_lm(
        source, device=device, dtype="float32", merge=False, chat_template=chat_template,
        need_template=False,
    )  # fmt: skip
    ids = probe_ids(unmerged, tokenizer)
    with torch.no_grad():
        expected = unmerged(input_ids=ids).logits.float()
        model = unmerged.merge_and_unload() if hasattr(unmerged, "merge_and_unload") else unmerged
        model = model.to(getattr(torch, target))
        cast = model(input_ids=ids).logits.float()
    set_generation_config(model, tokenizer)
    model.config.dtype = getattr(torch, target)
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    again, _ = load_causal_lm(folder, device=device, dtype=target, need_template=False)
    with torch.no_grad():
        got = again(input_ids=ids).logits.float()
    size = max(1.0, float(expected.abs().max()))
    report = {
        "source": str(source),
        "dtype": target,
        "parameters": sum(p.numel() for p in again.parameters()),
        "stop_ids": as_list(again.generation_config.eos_token_id),
        "max_logit_difference": float((got - expected).abs().max()),
        "reload_difference": float((got - cast).abs().max()),
    }
    limit = TOLERANCE * size
    measured = "max_logit_difference" if target == "float32" else "reload_difference"
    if not report[measured] <= limit:
        raise RuntimeError(
            f"the exported model does not compute what {source} computes: {measured} is "
            f"{report[measured]:.2e}, allowed {limit:.2e}; nothing was written"
        )
    text = json.dumps({k: v for k, v in report.items() if k != "source"}, indent=1)
    (folder / "export.json").write_text(text, encoding="utf-8")
    return report


def set_generation_config(model: Any, tokenizer: Any) -> None:
    """Give a server what it must know to stop: every stop token, pad, and plain sampling."""
    from transformers import GenerationConfig

    from align.chat import stop_ids

    stops = list(stop_ids(tokenizer)) if tokenizer.chat_template else [tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        do_sample=True,
        # The policy was trained on its own distribution: no hidden truncation of it.
        top_k=0,
        top_p=1.0,
        temperature=1.0,
    )


def probe_ids(model: Any, tokenizer: Any) -> Any:
    """(1, T) ids on which logits are compared: zh and en text, then ids from all the vocabulary."""
    import torch

    text = tokenizer("今天天气很好。The quick brown fox. 你好，世界！", add_special_tokens=False)
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = [*text["input_ids"], *range(0, vocab, max(1, vocab // 16))]
    ids = ids[: min(64, max_positions(model) or 64)]
    return torch.tensor([ids], device=next(model.parameters()).device)


def stored_dtype(folder: Path) -> str:
    """Precision of the weights on disk: of the largest safetensors entry, else float32."""
    from safetensors import safe_open

    best, size = "F32", -1
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - a handle is no mapping
                entry = handle.get_slice(key)
                count = 1
                for n in entry.get_shape():
                    count *= n
                if count > size:
                    best, size = entry.get_dtype(), count
    return {"BF16": "bfloat16", "F16": "float16"}.get(best, "float32")


def as_list(value: Any) -> list[int]:
    """An id or several as a list."""
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]


def _replace(staging: Path, output: Path) -> None:
    """Move the finished folder into place; what was there is removed only then."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(staging, output)
    shutil.rmtree(old, ignore_errors=True)
