"""A folder of several adapters on one base, and how vLLM is told of them. No torch.

base/            the model below all of them, where it was written too
adapters/NAME/   a peft folder each
adapters.json    {"base": "base", a hub id or a path; "adapters": {NAME: {"path", "rank"}}}
serve_args.txt   vLLM's words, to be used in this folder
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.config_engine import LORA_RANKS, max_lora_rank
from align.config_errors import UserError
from align.files import read_object, write_atomic

FILE = "adapters.json"
ARGS = "serve_args.txt"


def write_adapters(folder: Path, base: str, adapters: Sequence[tuple[str, str, int]]) -> None:
    """Write adapters.json and serve_args.txt; adapters: (name, path in the folder, rank)."""
    entries = {name: {"path": path, "rank": rank} for name, path, rank in adapters}
    said = {"base": base, "adapters": entries}
    write_atomic(folder / FILE, json.dumps(said, ensure_ascii=False, indent=1) + "\n")
    write_atomic(folder / ARGS, " ".join(serve_args(adapters)) + "\n")


def read_adapters(folder: str | Path) -> list[tuple[str, Path, int]]:
    """(name, path, rank) of every adapter in a folder; UserError where one is not there."""
    folder = Path(folder)
    entries = read_object(folder / FILE).get("adapters")
    fix = "Export it again: recipes/export_model.py --adapters NAME=PATH … --to adapter"
    if not isinstance(entries, dict) or not entries:
        raise UserError("model", str(folder), f"has no {FILE} that can be read", fix)
    found = []
    for name, entry in entries.items():
        try:
            path, rank = folder / entry["path"], int(entry["rank"])
        except (KeyError, TypeError, ValueError):
            raise UserError("model", str(folder), f"says nothing usable of {name}", fix) from None
        if not (path / "adapter_config.json").is_file():
            raise UserError("model", str(folder), f"lacks the adapter {name} ({path})", fix)
        found.append((name, path, rank))
    return found


def read_base(folder: str | Path) -> str:
    """The base of a folder of adapters: a path where it lies there, else as it was named."""
    folder = Path(folder)
    base = str(read_object(folder / FILE).get("base"))
    return str(folder / base) if (folder / base / "config.json").is_file() else base


def serve_args(adapters: Sequence[tuple[str, str | Path, int]]) -> list[str]:
    """Words of vLLM's command line that serve adapters by name."""
    limit = rank_limit(max(rank for _, _, rank in adapters))
    named = [f"{name}={path}" for name, path, _ in adapters]
    return ["--enable-lora", "--max-lora-rank", str(limit), "--max-loras", str(len(named)),
            "--lora-modules", *named]  # fmt: skip


def rank_limit(rank: int) -> int:
    """The --max-lora-rank that serves a rank; above vLLM's largest the rank, which it refuses."""
    return max_lora_rank(rank) if rank <= LORA_RANKS[-1] else rank
