"""What a run folder says about its model, for the model card: no machine paths, only base names."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from align.config_yaml import load_yaml
from align.export.formats import run_of
from align.files import read_object
from align.run_manifest import read_manifest

# Identifiers that the hub knows, https://huggingface.co/docs/hub/repositories-licenses.
_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TIMING = ("runtime", "per_second", "time/", "tokens_per_s", "total_flos", "mfu", "memory")
_CLOSING = ("loss", "score/mean", "score/std", "kl/sum", "kl/token", "reward/shaped", "eos_rate",
            "length/mean", "entropy", "train_loss", "tokens")  # fmt: skip
_METHOD_KEYS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps",
                "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
                "weight_decay", "max_grad_norm", "seed", "bf16")  # fmt: skip
SECTIONS = {"ppo": ("ppo", "rollout"), "dpo": ("dpo",), "orpo": ("orpo",), "sft": ("sft",),
            "pretrain": ("pretrain",), "reward": ("reward",)}  # fmt: skip


def license_of(text: str) -> tuple[str, str | None]:
    """(hub identifier, name where the hub has none): of an SPDX id or any name.

    GPL-3.0-only and GPL-3.0-or-later are the hub's gpl-3.0.
    """
    plain = re.sub(r"-(only|or-later)$", "", text.strip().lower())
    return (plain, None) if plain in LICENSES else ("other", text.strip())


def lineage(run: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """The run and those whose models it started from, newest first, with their manifests."""
    found: list[tuple[Path, dict[str, Any]]] = []
    while run is not None and run.resolve() not in [r.resolve() for r, _ in found]:
        manifest = read_manifest(run)
        if not manifest.get("method"):
            break
        found.append((run, manifest))
        start = start_of(manifest)
        run = run_of(start["path"]) if start and start.get("sha256") else None
    return found


def start_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """{"path", "sha256"} of the model that a run started from; None: from random weights."""
    return manifest.get("inputs", {}).get("policy.path")


def base_of(runs: list[tuple[Path, dict[str, Any]]], source: Path) -> tuple[str | None, str]:
    """(hub id or None, what to say of it): the model that the first of the runs started from."""
    card = front_matter(source).get("base_model")
    if not runs:
        return (card, str(card)) if isinstance(card, str) else (None, "not recorded")
    start = start_of(runs[-1][1])
    if start is None:
        return None, "none: the weights were drawn at random and trained here"
    path, sha256 = start["path"], start.get("sha256")
    if not sha256 and _HUB_ID.fullmatch(path):
        return path, path
    named = front_matter(Path(path)).get("base_model")
    folder = f"a local folder named {Path(path).name}, fingerprint {sha256}"
    return (named, f"{folder}, itself based on {named}") if isinstance(named, str) else (
        None, folder)  # fmt: skip


def base_license(runs: list[tuple[Path, dict[str, Any]]], source: Path) -> str | None:
    """Licence that a base model's card states: of the folder itself, or where a run began."""
    starts = [start_of(manifest) for _, manifest in runs]
    folders = [source, *(Path(s["path"]) for s in starts if s)]
    for folder in folders:
        said = front_matter(folder)
        if isinstance(said.get("license"), str):
            name = said.get("license_name")
            return name if said["license"] == "other" and isinstance(name, str) else said["license"]
    return None


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a folder's README.md; {} where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        said = load_yaml(found.group(1)) if found else {}
    except Exception:  # whatever a YAML reader raises for a card written by hand
        return {}
    return said if isinstance(said, dict) else {}


def settings(run: Path, method: str) -> dict[str, Any]:
    """Method's own keys and the usual ones of its optimisation, as the run resolved them."""
    config = _config(run)
    found: dict[str, Any] = {}
    for section in SECTIONS.get(method, ()):
        values = config.get(section) or {}
        found |= {f"{section}.{k}": _named(k, v) for k, v in values.items() if _plain(v)}
    policy, train = config.get("policy") or {}, config.get("train") or {}
    for name, value in (policy.get("lora") or {}).items():
        found |= {f"policy.lora.{name}": value} if name != "path" and value is not None else {}
    found |= {f"policy.{k}": policy[k] for k in ("reference", "quantization") if policy.get(k)}
    found |= {f"train.{k}": train[k] for k in _METHOD_KEYS if train.get(k) is not None}
    return found


def data(run: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """{"key", "name", "sha256", "used", "dropped"} of every file of data that a run read."""
    counts = {}
    entries = read_list(run / "data_counts.json")
    for entry in entries:
        counts[Path(str(entry.get("file", ""))).name] = entry
    found = []
    for key, value in manifest.get("inputs", {}).items():
        if key.startswith(("data.", "eval.")) and value.get("path"):
            name = Path(value["path"]).name
            entry = counts.get(name, {})
            dropped = sum((entry.get("dropped") or {}).values()) if entry else None
            found.append({"key": key, "name": name, "sha256": value.get("sha256"),
                          "used": entry.get("used"), "dropped": dropped})  # fmt: skip
    return found


def read_list(file: Path) -> list[dict[str, Any]]:
    """Objects of a JSON list; [] where it cannot be read."""
    from align.json_text import loads

    try:
        value = loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def closing(run: Path, manifest: dict[str, Any]) -> dict[str, float]:
    """Final figures: held-out ones, and the few of training that say where it ended."""
    from align.report.run import curves_of, read_lines

    said = manifest.get("metrics") or {}
    if not said:
        said = {k: v[-1][1] for k, v in curves_of(read_lines(run / "metrics.jsonl")).items()}
    return {
        name: float(value)
        for name, value in said.items()
        if (name.startswith("eval_") or name in _CLOSING)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and not any(part in name for part in _TIMING)
    }


def rewards(run: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The rewards that PPO maximised: kind, weight, name, fingerprint, reward model's contract."""
    found = []
    for i, entry in enumerate(_config(run).get("rewards") or []):
        read = manifest.get("inputs", {}).get(f"rewards.{i}.path", {})
        path = Path(read.get("path") or str(entry.get("path")))
        name = f"{path.parent.name}/{path.name}" if path.name == "final" else path.name
        folder = path if (path / "contract.json").is_file() else path / "final"
        contract = read_object(folder / "contract.json")
        shown = "a server" if entry.get("kind") == "http" else name
        found.append({"kind": entry.get("kind"), "weight": entry.get("weight"), "name": shown,
                      "sha256": read.get("sha256"), "contract": contract})  # fmt: skip
    return found


def _config(run: Path) -> dict[str, Any]:
    try:
        config = load_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _plain(value: Any) -> bool:
    return value is not None and value != [] and not isinstance(value, dict)


def _named(key: str, value: Any) -> Any:
    """A value without the folders of a path."""
    return Path(value).name if key.endswith("path") and isinstance(value, str) else value
