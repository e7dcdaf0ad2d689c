"""Write a finished policy as the plain folder that servers and `from_pretrained` read.

Adapters are merged, weights are safetensors, and the tokenizer, its chat template and a
generation_config with the stop tokens lie beside them. The written folder is loaded again and
its logits are compared with the source's before anything is called done; so are the prompts that
its own tokenizer renders, with those of training.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.checkpoints import default_device, find_model, load_causal_lm, max_positions
from align.config_errors import Failed, UserError
from align.export.formats import run_of
from align.export.tokens import save_tokenizer, serving_tokenizer, set_generation_config
from align.files import read_object

DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = 1e-5
SHARD = "5GB"


def export(
    model_path: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    chat_template: str | None = None,
    device: Any = None,
    max_shard_size: str = SHARD,
    parity: int = 0,
    run: Path | None = None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Export a model and check it; returns {"source", "dtype", "max_logit_difference", …}.

    model_path: run directory, model folder or LoRA adapter. dtype: one of DTYPES, None keeps the
    stored one. chat_template: a named template or jinja file to write in place of the stored one.
    max_shard_size: of one weights file, as transformers reads it. parity: conversations in
    parity.jsonl, 0 for no such file. run: run directory that the model came from, where the path
    does not say it. card: {"license", "language", "base"} of the model card, None for no card.
    Parity: with float32 weights the exported logits must equal those of the source, an adapter
    still unmerged, to 1e-5 of their largest value (at least 1); with a cast, the reloaded model
    must equal the cast one to the same tolerance. The folder appears whole or not at all. UserError
    for a non-empty output without overwrite, RuntimeError when logits or rendered prompts differ.
    """
    source, output = find_model(model_path), Path(output)
    check_output(source, output, overwrite)
    check_causal(source)
    check_shard_size(max_shard_size)
    if dtype is not None and dtype not in DTYPES:
        raise UserError("dtype", dtype, "is not supported", f"use one of {', '.join(DTYPES)}")
    device = device or default_device()
    run = run or run_of(model_path)
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        report, tokenizer, again = _write(
            source, staging, dtype or stored_dtype(source), chat_template, device, max_shard_size
        )
        if parity:
            _write_parity(staging, tokenizer, again, parity, run, report)
        if card is not None:
            from align.export.card import write_card

            write_card(staging, source=source, run=run, report=report, **card)
        text = json.dumps({k: v for k, v in report.items() if k != "source"}, indent=1)
        (staging / "export.json").write_text(text, encoding="utf-8")
        replace_folder(staging, output)
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
    check_output(checkpoint, output, overwrite)
    staging = output.with_name(f".{output.name}.whole")
    try:
        config = consolidate(checkpoint, staging)
        if config.method != "reward":
            options = {"run": run_of(checkpoint), **options}
            report = export(staging, output, overwrite=overwrite, **options)
            return report | {"source": str(checkpoint)}
        for name in ("dtype", "chat_template"):
            if options.get(name):
                reason = "is for causal models, and this is a reward model's checkpoint"
                raise UserError(name, options[name], reason, "Leave it out")
        replace_folder(staging, output)
        return {"source": str(checkpoint), "dtype": stored_dtype(output)}
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse a place that is taken, or that holds the source itself."""
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


def check_causal(source: Path) -> None:
    """Refuse a reward model or a masked one, which no server samples from."""
    names = read_object(source / "config.json").get("architectures") or []
    for name in names:
        if name.endswith(("ForSequenceClassification", "ForMaskedLM", "ForTokenClassification")):
            raise UserError(
                "model", str(source), f"is a {name}, which gives no text",
                "Export a policy; a reward model is served by reward_models.server",
            )  # fmt: skip


def check_shard_size(text: str) -> None:
    """Refuse a size that transformers does not read."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?\s?[KMGT]i?B", text, re.IGNORECASE):
        raise UserError("max_shard_size", text, "is no size", "Write 5GB or 500MB")


def _write(
    source: Path, folder: Path, target: str, chat_template: str | None, device: Any, shard: str
) -> tuple[dict[str, Any], Any, Any]:
    """Save into folder and compare; the report, training's tokenizer and the reloaded model."""
    import torch

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
    served, notes = serving_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0])
    set_generation_config(model, served)
    model.config.dtype = getattr(torch, target)
    model.save_pretrained(str(folder), safe_serialization=True, max_shard_size=shard)
    save_tokenizer(served, folder)
    del model, unmerged
    again, _ = load_causal_lm(folder, device=device, dtype=target, need_template=False)
    with torch.no_grad():
        got = again(input_ids=ids).logits.float()
    report = {
        "source": str(source),
        "dtype": target,
        "parameters": sum(p.numel() for p in again.parameters()),
        "stop_ids": as_list(again.generation_config.eos_token_id),
        "pad_id": again.generation_config.pad_token_id,
        "max_logit_difference": float((got - expected).abs().max()),
        "reload_difference": float((got - cast).abs().max()),
        "notes": notes,
    }
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    measured = "max_logit_difference" if target == "float32" else "reload_difference"
    if not report[measured] <= limit:
        raise Failed(
            f"the exported model does not compute what {source} computes: {measured} is "
            f"{report[measured]:.2e}, allowed {limit:.2e}; nothing was written"
        )
    return report, tokenizer, again


def _write_parity(
    folder: Path, tokenizer: Any, model: Any, count: int, run: Path | None, report: dict[str, Any]
) -> None:
    """Write parity.jsonl beside the weights; Failed where the folder renders otherwise."""
    from transformers import AutoTokenizer

    from align.export import parity
    from align.jsonl import write_jsonl

    if not tokenizer.chat_template:
        report["notes"].append(f"no {parity.FILE}: the tokenizer has no chat template")
        return
    served = AutoTokenizer.from_pretrained(str(folder))
    asked = parity.choose(parity.own_prompts(run), count)
    rows, notes = parity.render(tokenizer, served, asked, max_positions(model))
    parity.answer(model.float(), served, rows, report["stop_ids"])
    write_jsonl(folder / parity.FILE, rows)
    report["parity"] = {
        "conversations": len(rows),
        "read_as_special": sum("plain_ids" in row for row in rows),
        "ended": sum(row["greedy_ids"][-1] in row["stop_ids"] for row in rows),
    }
    report["notes"] += notes


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


def replace_folder(staging: Path, output: Path) -> None:
    """Move the finished folder into place; what was there is removed only then."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(staging, output)
    shutil.rmtree(old, ignore_errors=True)
