"""The LoRA of a run alone, as a peft folder that names a base a server can find.

The adapter of a run belongs to the model that the run started from. Where that is itself something
trained here (a finished SFT, or a base that an earlier adapter was merged into), the un-tuned model
of the same shape would load just as well and answer otherwise: such a base is written beside the
adapter, unless --base says where it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.checkpoints import (
    adapter_base,
    default_device,
    find_model,
    is_adapter,
    load_causal_lm,
    max_positions,
    only_adapter,
    read_tokenizer,
    tokenizer_folder,
)
from align.config_errors import Failed, UserError
from align.export.adapter_folder import rank_limit
from align.export.formats import run_of
from align.export.hf import (
    TOLERANCE,
    check_causal,
    check_output,
    export,
    probe_ids,
    replace_folder,
)
from align.export.tokens import save_tokenizer, serving_tokenizer, stops_of
from align.files import fingerprint, read_object, write_atomic
from align.tokenizer_identity import FILE as IDENTITY

WEIGHTS = "adapter_model.safetensors"
_LORA = re.compile(r"base_model\.model\..+\.lora_(A|B|embedding_A|embedding_B)(\.weight)?")
_MADE_HERE = ("made_from.json", "export.json")


class Adapter(NamedTuple):
    """folder: of the adapter. policy: what base and adapter give together, merged or not.

    base: folder or hub id of what it was trained on. run: run directory, if any.
    """

    folder: Path
    policy: Path
    base: str
    run: Path | None

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        config = read_object(self.folder / "adapter_config.json")
        patterns = config.get("rank_pattern") or {}
        return max([int(config["r"]), *map(int, patterns.values())])

    @property
    def base_made_here(self) -> bool:
        """Whether its base is what a run of ours trained, merged or drew at random."""
        base = Path(self.base)
        return base.is_dir() and (
            any((base / name).is_file() for name in _MADE_HERE)
            or run_of(base) not in (None, base)
            or (base / "adapter").is_dir()
        )


def find_adapter(path: str | Path, field: str = "model") -> Adapter:
    """The adapter of a run, its final/ or a peft folder; UserError where there is none."""
    policy = find_model(path, field)
    folder = policy if only_adapter(policy) else policy / "adapter"
    if not is_adapter(folder):
        raise UserError(
            field, str(path), "has no adapter: it is a full fine-tune, whose weights all changed",
            "Export it whole with --to hf, or train with policy.lora",
        )  # fmt: skip
    beside = folder.parent if folder.name == "adapter" else None
    if policy == folder and beside is not None and (beside / "config.json").is_file():
        policy = beside
    check_causal(policy)
    run = run_of(path) or run_of(policy)
    found = Adapter(folder, policy, adapter_base(folder), run)
    _check_keys(folder, field)
    if Path(found.base).is_absolute() and not Path(found.base).is_dir():
        reason = f"belongs to {found.base}, which is gone"
        raise UserError(
            field, str(path), reason, "Put it back, or export the merged model: --to hf"
        )
    return found


def export_adapter(
    model: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    overwrite: bool = False,
    license: str | None = None,
    language: Sequence[str] | None = None,
    chat_template: str | None = None,
    parity: int = 0,
    device: Any = None,
) -> dict[str, Any]:
    """Write one adapter and check it; returns {"rank", "base", "max_logit_difference", "notes"}.

    model: run directory, its final/, or a peft folder. base: hub id or path that the adapter's
    config names; where it is a folder, the check runs on it. Base plus adapter, loaded by peft,
    must give the policy's logits to 1e-5 of their largest value (at least 1). The folder appears
    whole or not at all. UserError for a full fine-tune or a taken output, Failed where logits
    differ.
    """
    adapter, output = find_adapter(model), Path(output)
    check_output(adapter.folder, output, overwrite)
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    notes: list[str] = []
    try:
        name, used = place_base(adapter, staging, output, base, notes, device)
        report = write_adapter(
            adapter, staging, base=name, used=used, chat_template=chat_template, device=device,
            parity=parity,
        )  # fmt: skip
        report["notes"] = [*notes, *report["notes"]]
        _write_card(adapter, staging, report, license, language, base)
        replace_folder(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def place_base(
    adapter: Adapter, staging: Path, output: Path, base: str | None, notes: list[str],
    device: Any = None, always: bool = False,
) -> tuple[str, str]:  # fmt: skip
    """(what adapter_config.json names, what to load now); writes base/ where it is needed.

    always: also a folder that was not made here is written.
    """
    if base is not None:
        if Path(base).is_dir():
            return base, base
        notes.append(
            f"{base} is named as the base, and not compared with {Path(adapter.base).name}, "
            "which the adapter was trained on"
        )
        return base, adapter.base
    if adapter.base_made_here or (always and Path(adapter.base).is_dir()):
        export(adapter.base, staging / "base", device=device)
        (staging / "base" / "export.json").unlink()
        _serve_with(adapter, staging / "base")
        name = str((output / "base").resolve())
        notes.append(f"base/ holds the model below it; adapter_config.json names {name}")
        return name, str(staging / "base")
    if Path(adapter.base).is_dir():
        name = str(Path(adapter.base).resolve())
        notes.append(f"adapter_config.json names {name}: give --base where a server finds it else")
        return name, name
    return adapter.base, adapter.base


def write_adapter(
    adapter: Adapter, folder: Path, *, base: str, used: str, chat_template: str | None = None,
    device: Any = None, parity: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Write weights, config and tokenizer into a folder, then compare; see `export_adapter`."""
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter.folder / WEIGHTS, folder / WEIGHTS)
    if (adapter.folder / IDENTITY).is_file():
        shutil.copyfile(adapter.folder / IDENTITY, folder / IDENTITY)
    config = read_object(adapter.folder / "adapter_config.json")
    config |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
    if isinstance(config.get("target_modules"), str):  # a pattern: servers read names
        config["target_modules"] = _targets(folder / WEIGHTS)
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    write_atomic(folder / "adapter_config.json", text + "\n")
    tokenizer = policy_tokenizer(adapter, chat_template)
    rows = AutoConfig.from_pretrained(used).get_text_config().vocab_size
    served, notes = serving_tokenizer(tokenizer, rows)
    save_tokenizer(served, folder)
    difference, model = _compare(adapter, folder, used, device)
    report = {
        "rank": adapter.rank, "base": base, "max_logit_difference": difference,
        "stop_ids": stops_of(tokenizer), "notes": notes,
    }  # fmt: skip
    if parity and tokenizer.chat_template:
        _write_parity(adapter, folder, tokenizer, model, parity, report)
    return report


def _compare(adapter: Adapter, folder: Path, used: str, device: Any) -> tuple[float, Any]:
    """Largest difference of logits between the policy and base plus written adapter."""
    import torch
    from peft import PeftModel

    device = device or default_device()
    policy, tokenizer = load_causal_lm(
        adapter.policy, device=device, merge=False, need_template=False
    )
    ids = probe_ids(policy, tokenizer)
    with torch.no_grad():
        expected = policy(input_ids=ids).logits.float()
    del policy
    base, _ = load_causal_lm(used, device=device, need_template=False, field="base")
    try:
        model = PeftModel.from_pretrained(base, str(folder)).eval()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "base", used, f"does not take the adapter ({str(error).splitlines()[0]})",
            "Name the model that it was trained on",
        ) from error  # fmt: skip
    with torch.no_grad():
        got = model(input_ids=ids).logits.float()
    size = max(1.0, float(expected.abs().max()))
    difference = float((got - expected).abs().max()) if got.shape == expected.shape else size
    if not difference <= TOLERANCE * size:
        raise Failed(
            f"{Path(used).name} and the adapter do not give what {adapter.policy} gives: logits "
            f"differ by {difference:.2e}, allowed {TOLERANCE * size:.2e}. It was trained on "
            f"{adapter.base}; the un-tuned model of the same shape is another. Nothing was written"
        )
    return difference, model


def _write_parity(
    adapter: Adapter, folder: Path, tokenizer: Any, model: Any, count: int, report: dict[str, Any]
) -> None:
    from transformers import PreTrainedTokenizerFast

    from align.export import parity
    from align.jsonl import write_jsonl

    # By the folder's own files: it has no config.json that names a model type.
    served = PreTrainedTokenizerFast.from_pretrained(str(folder))
    asked = parity.choose(parity.own_prompts(adapter.run), count)
    rows, notes = parity.render(tokenizer, served, asked, max_positions(model))
    parity.answer(model, served, rows, report["stop_ids"])
    write_jsonl(folder / parity.FILE, rows)
    report["notes"] += notes


def _check_keys(folder: Path, field: str) -> None:
    """Refuse an adapter that holds more than low-rank updates: a head, a critic, saved modules."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(folder / WEIGHTS), framework="np") as handle:
            keys = list(handle.keys())
    except (OSError, SafetensorError) as error:
        reason = f"has no {WEIGHTS} that can be read ({error})"
        raise UserError(field, str(folder), reason, "Export the merged model: --to hf") from error
    other = [key for key in keys if not _LORA.fullmatch(key)]
    if other or not keys:
        reason = f"holds more than a LoRA ({other[0]})" if other else "holds no weights"
        raise UserError(field, str(folder), reason, "Export the merged model: --to hf")


def _targets(file: Path) -> list[str]:
    """Names of the layers that the weights adapt."""
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as handle:
        names = {re.sub(r"\.lora_.*", "", key) for key in handle.keys()}  # noqa: SIM118
    return sorted(name.removeprefix("base_model.model.") for name in names)


def policy_tokenizer(adapter: Adapter, chat_template: str | None = None) -> Any:
    """The tokenizer that the policy was trained with, with its chat template."""
    from align.chat import prepare_tokenizer

    at = adapter.policy
    tokenizer = read_tokenizer(tokenizer_folder(at) if only_adapter(at) else str(at))
    if chat_template or tokenizer.chat_template:
        return prepare_tokenizer(tokenizer, chat_template)
    return tokenizer


def _serve_with(adapter: Adapter, base: Path) -> None:
    """Give a written base the policy's chat template: a server renders with the base's."""
    tokenizer = policy_tokenizer(adapter)
    rows = read_object(base / "config.json").get("vocab_size") or len(tokenizer)
    save_tokenizer(serving_tokenizer(tokenizer, rows)[0], base)
    file = base / "generation_config.json"
    said = read_object(file) | {"eos_token_id": stops_of(tokenizer)}
    write_atomic(file, json.dumps(said, indent=2) + "\n")


def _write_card(
    adapter: Adapter, folder: Path, report: dict[str, Any], license: str | None,
    language: Sequence[str] | None, base: str | None,
) -> None:  # fmt: skip
    from align.export.card import write_card

    shown = "FOLDER/base" if (folder / "base").is_dir() else shown_base(base or adapter.base)
    words = f"--enable-lora --max-lora-rank {rank_limit(report['rank'])} --lora-modules NAME=FOLDER"
    write_card(
        folder, source=adapter.policy, run=adapter.run, report=report, license=license,
        language=language, base=base, library="peft", extra=[f"vllm serve {shown} {words}"],
    )  # fmt: skip


def shown_base(name: str) -> str:
    """A base as a card names it: a hub id, or the last name of a path."""
    return Path(name).name if Path(name).exists() else name


def same_base(adapters: Sequence[tuple[str, Adapter]]) -> None:
    """UserError where adapters were not trained on one base, by its contents."""
    found = {name: fingerprint(a.base) or a.base for name, a in adapters}
    first = next(iter(found))
    for name, print_ in found.items():
        if print_ != found[first]:
            raise UserError(
                "adapters", name, f"is on another base ({print_}) than {first} ({found[first]})",
                "Export it by itself: one server holds one base",
            )  # fmt: skip
