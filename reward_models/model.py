"""A reward checkpoint: sequence-classification folder, tokenizer and contract.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.checkpoints import adapter_base, only_adapter, read_tokenizer
from align.config_errors import UserError
from align.files import write_atomic
from align.heads import base_of, find_head, init_head
from align.model_safety import check_weights, weight_options
from align.records import RecordError
from reward_models.contract import (
    Contract,
    check_base,
    check_contract,
    make_contract,
    read_contract,
    write_contract,
)

__all__ = [
    "base_of", "complete_adapter", "find_head", "init_head", "load_reward_model", "plain",
    "save_reward_model",
]  # fmt: skip

TRAIN_ONE = "Train one with recipes/reward.py"
GIVE_FINAL = "Give a reward run's final folder"


def plain(model: Any) -> Any:
    """The sequence-classification model itself, where peft has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_reward_model(path: str | Path, *, dtype: Any = None) -> tuple[Any, Any, Contract]:
    """(model in eval mode, tokenizer, contract) of a reward checkpoint; adapters are merged.

    dtype: float32 when None. A folder without contract.json is taken as trained with its own
    tokenizer and template. UserError: no folder, no trained head, a contract that does not match.
    """
    import torch

    path = Path(path)
    if not path.is_dir():
        raise UserError("path", str(path), "is not a folder", GIVE_FINAL)
    contract = read_contract(path)
    model = _load(path, dtype or torch.float32, contract)
    tokenizer = _tokenizer(path)
    _, head = find_head(model)
    if contract is None:
        contract = make_contract(tokenizer, heads=head.out_features)
    check_contract(contract, tokenizer, path=str(path), heads=head.out_features)
    return model.eval(), tokenizer, contract


def read_judge(path: str | Path, heads: int) -> tuple[Any, Contract]:
    """(tokenizer, contract) of an adapter's folder whose model another has; UserError as above."""
    path = Path(path)
    tokenizer = _tokenizer(path)
    contract = read_contract(path) or make_contract(tokenizer, heads=heads)
    check_base(contract, adapter_base(path), path=str(path))
    check_contract(contract, tokenizer, path=str(path), heads=heads)
    return tokenizer, contract


def save_reward_model(path: str | Path, model: Any, tokenizer: Any, contract: Contract) -> None:
    """Writes what ``load_reward_model`` reads; of a peft model the adapter and the head alone.

    The contract comes last, and an old one goes first: where it is, the rest belongs to it.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contract.json").unlink(missing_ok=True)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    write_contract(folder, contract)


def complete_adapter(
    folder: Path, name: str, head: Mapping[str, Any], tokenizer: Any, contract: Contract
) -> None:
    """Makes a reward checkpoint of a LoRA adapter's folder: the trained head, tokenizer, contract.

    name: the head's in the model. head: its "weight" and perhaps "bias". peft keeps what it adapts;
    a head that was trained beside it is what the base model lacks.
    """
    from safetensors.torch import load_file, save_file

    (folder / "contract.json").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    held = load_file(str(weights))
    held |= {f"base_model.model.{name}.{part}": t.contiguous() for part, t in head.items()}
    temporary = folder / ".adapter.safetensors"
    save_file(held, str(temporary), metadata={"format": "pt"})
    temporary.replace(weights)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text("utf-8"))
    settings |= {"task_type": "SEQ_CLS", "modules_to_save": [name]}
    write_atomic(file, json.dumps(settings, indent=2) + "\n")
    tokenizer.save_pretrained(str(folder))
    write_contract(folder, contract)


def _tokenizer(path: Path) -> Any:
    from align.chat import stop_ids

    try:
        tokenizer = read_tokenizer(path, "path")
    except UserError:
        raise
    except Exception as error:  # every format has its own: OSError, ValueError, pyo3's Exception
        reason = f"has no usable tokenizer: {_line(error)}"
        raise UserError("path", str(path), reason, "Save the tokenizer beside the model") from None
    if tokenizer.chat_template is None:
        raise UserError(
            "path",
            str(path),
            "has a tokenizer without a chat template",
            "Save the template that the model was trained with",
        )
    try:
        ends = stop_ids(tokenizer)
    except RecordError as error:
        raise UserError(
            "path",
            str(path),
            f"has a chat template that cannot be used: {error}",
            "Save the template that the model was trained with",
        ) from None
    if not ends:
        raise UserError(
            "path",
            str(path),
            "has neither an end-of-turn nor an EOS token",
            "The score is read at that token: add one and train again",
        )
    return tokenizer


def _load(path: Path, dtype: Any, contract: Contract | None) -> Any:
    if only_adapter(path):
        return _load_adapter(path, dtype, contract)
    model, missing = _from_pretrained(str(path), dtype)
    name, _ = find_head(model)
    untrained = [key for key in missing if key.split(".")[0] == name]
    if untrained:
        reason = f"has no trained reward head ({untrained[0]} is missing)"
        raise UserError("path", str(path), reason, TRAIN_ONE)
    if missing:
        reason = f"lacks {len(missing)} weights of the model, {missing[0]} first"
        raise UserError("path", str(path), reason, GIVE_FINAL)
    return model


def _from_pretrained(path: str, dtype: Any, **more: Any) -> tuple[Any, list[str]]:
    """(model, keys that the checkpoint lacks); the library would fill them at random."""
    from transformers import AutoModelForSequenceClassification

    more |= weight_options(path, "path")
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **more
        )
    except Exception as error:  # a damaged safetensors file has an exception class of its own
        reason = f"is not a reward checkpoint: {_line(error)}"
        raise UserError("path", path, reason, GIVE_FINAL) from None
    return model, sorted(info["missing_keys"])


def _load_adapter(path: Path, dtype: Any, contract: Contract | None) -> Any:
    """The base model with the adapter merged; the head is the adapter's."""
    from peft import PeftConfig, PeftModelForSequenceClassification

    check_weights(path, "path")
    try:
        config = PeftConfig.from_pretrained(str(path))
    except Exception as error:
        reason = f"has no usable adapter_config.json: {_line(error)}"
        raise UserError("path", str(path), reason, GIVE_FINAL) from None
    named = config.base_model_name_or_path
    if not named or named == "None":
        reason = "has an adapter_config.json that names no base model"
        raise UserError("path", str(path), reason, "Give the merged model")
    if contract is not None:
        check_base(contract, named, path=str(path))
    try:
        base, _ = _from_pretrained(str(named), dtype, num_labels=contract.heads if contract else 1)
    except UserError as error:
        reason = f"is an adapter whose base {named} {error.reason}"
        raise UserError("path", str(path), reason, "Give the merged model") from None
    name, _ = find_head(base)
    if not any(name in key.split(".") for key in _adapter_keys(path)):
        reason = f"has no trained reward head ({name} is not in the adapter)"
        fix = "Train it with task_type SEQ_CLS, or give the merged model"
        raise UserError("path", str(path), reason, fix)
    try:
        model = PeftModelForSequenceClassification.from_pretrained(
            base, str(path), config=config, torch_dtype=dtype
        )
    except Exception as error:
        reason = f"does not fit its base model: {_line(error)}"
        raise UserError("path", str(path), reason, GIVE_FINAL) from None
    return model.merge_and_unload()  # pyright: ignore[reportCallIssue]


def _adapter_keys(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    file = path / "adapter_model.safetensors"
    try:
        with safe_open(str(file), framework="pt") as weights:
            return list(weights.keys())
    except (OSError, SafetensorError) as error:
        reason = f"cannot be read: {_line(error)}"
        raise UserError("path", str(file), reason, GIVE_FINAL) from None


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
