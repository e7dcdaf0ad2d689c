"""Several LoRA runs on one base as one folder, which vLLM serves by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.export.adapter import (
    Adapter,
    find_adapter,
    place_base,
    policy_tokenizer,
    same_base,
    shown_base,
    write_adapter,
)
from align.export.adapter_folder import ARGS, serve_args, write_adapters
from align.export.hf import check_output, replace_folder
from align.files import write_atomic

_NAME = re.compile(r"[\w.-]+")
BASE_NAME = "base"


def export_adapters(
    given: Sequence[str],
    output: str | Path,
    *,
    base: str | None = None,
    overwrite: bool = False,
    license: str | None = None,
    language: Sequence[str] | None = None,
    parity: int = 0,
    device: Any = None,
) -> dict[str, Any]:
    """Write adapters/NAME/ each, base/ where it lies on this disk, and how to serve them.

    given: NAME=PATH, of runs or peft folders. The others as in `export_adapter`. UserError for a
    name that is used twice, for bases or chat templates that are not the same.
    """
    named, output = _named(given), Path(output)
    for _, adapter in named:
        check_output(adapter.folder, output, overwrite)
    same_base(named)
    _same_template(named)
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    notes: list[str] = []
    try:
        name, used = place_base(named[0][1], staging, output, base, notes, device, always=True)
        rows, worst = [], 0.0
        for own, adapter in named:
            path = f"adapters/{own}"
            report = write_adapter(
                adapter, staging / path, base=name, used=used, device=device, parity=parity
            )
            rows.append((own, path, report["rank"]))
            worst = max(worst, report["max_logit_difference"])
            notes += [f"{own}: {note}" for note in report["notes"] if note not in notes]
        shown = "base" if (staging / "base").is_dir() else name
        write_adapters(staging, shown, rows)
        _write_readme(staging, shown_base(shown), rows, license, language)
        replace_folder(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    rank = max(rank for _, _, rank in rows)
    return {"rank": rank, "base": shown, "max_logit_difference": worst, "notes": notes}


def _named(given: Sequence[str]) -> list[tuple[str, Adapter]]:
    """Names and adapters of NAME=PATH words."""
    found: dict[str, Adapter] = {}
    for word in given:
        name, equals, path = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or not path:
            raise UserError("adapters", word, "is not NAME=PATH", "Write ppo=runs/ppo dpo=runs/dpo")
        if name in found or name == BASE_NAME:
            reason = f"uses the name {name}" + (", the base's" if name == BASE_NAME else " twice")
            raise UserError("adapters", word, reason, "Give each another name")
        found[name] = find_adapter(path, "adapters")
    return list(found.items())


def _same_template(named: Sequence[tuple[str, Adapter]]) -> None:
    """One server renders for all: UserError where a run was trained with another template."""
    from align.chat import template_hash

    hashes = {}
    for name, adapter in named:
        tokenizer = policy_tokenizer(adapter)
        hashes[name] = template_hash(tokenizer) if tokenizer.chat_template else ""
    first = next(iter(hashes))
    for name, found in hashes.items():
        if found != hashes[first]:
            reason = f"was trained with another chat template than {first}"
            fix = "Export it by itself: a server renders with one template"
            raise UserError("adapters", name, reason, fix)


def _write_readme(
    folder: Path, base: str, rows: list[tuple[str, str, int]], license: str | None,
    language: Sequence[str] | None,
) -> None:  # fmt: skip
    """README.md with front matter, the adapters and vLLM's words."""
    from huggingface_hub import ModelCardData

    from align.export.card import table
    from align.export.card_facts import license_of

    identifier, name = license_of(license) if license else ("unknown", None)
    values = {"license": identifier, "license_name": name, "language": list(language or ())}
    head = ModelCardData(
        library_name="peft", pipeline_tag="text-generation", tags=["align", "lora"],
        **{k: v for k, v in values.items() if v},
    ).to_yaml()  # fmt: skip
    words = " ".join(serve_args(rows))
    lines = table(("model name", "folder", "rank"), rows)
    text = (
        f"---\n{head}\n---\n\n# Adapters on one base\n\n{lines}\n\nBase: `{base}`.\n\n## How to "
        f"serve\n\nIn this folder (the words are in {ARGS} too):\n\n    vllm serve {base} "
        f"--served-model-name {BASE_NAME} {words}\n\nEach name is a model of the server; "
        f"`{BASE_NAME}` is the base itself.\n"
    )
    write_atomic(folder / "README.md", text)
