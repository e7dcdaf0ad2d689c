"""A reward checkpoint: sequence-classification folder, tokenizer and contract.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from reward_models.contract import (
    Contract,
    check_contract,
    make_contract,
    read_contract,
    write_contract,
)

if TYPE_CHECKING:
    from torch import nn

HEAD_NAMES = ("score", "classifier", "classification_head", "reward_head", "v_head", "value_head")


def find_head(model: Any) -> tuple[str, nn.Linear]:
    """(attribute name, layer) of a model's scalar head: the linear layer beside its body.

    Llama, Qwen and GPT-2 call it ``score``, others ``classifier``; peft's copy of a saved head is
    looked through. Raises UserError for models whose head is no single linear layer.
    """
    from torch import nn

    body = base_of(model)
    children = {n: _unwrapped(m) for n, m in model.named_children() if m is not body}
    linear = {n: m for n, m in children.items() if isinstance(m, nn.Linear)}
    for name in HEAD_NAMES:
        if name in linear:
            return name, linear[name]
    if len(linear) == 1:
        return next(iter(linear.items()))
    kind, found = type(model).__name__, sorted(children) or "no layer"
    raise UserError(
        "policy.path",
        kind,
        f"has no single linear head beside its body ({found})",
        "Use a decoder model with a ...ForSequenceClassification class",
    )


def base_of(model: Any) -> nn.Module:
    """The body of a sequence-classification model, whose last hidden states the head reads."""
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        kind = type(model).__name__
        raise UserError(
            "policy.path",
            kind,
            "has no body under a head",
            "Use a ...ForSequenceClassification model",
        )
    return body


def init_head(model: Any, seed: int = 0) -> None:
    """Initialises the head in place: weights N(0, 1/√(d+1)), bias zero.

    The scores of an untrained model then have variance about 1 whatever the width (Stiennon et al.
    2020, arXiv:2009.01325). Sampled on the CPU, so every device and rank gets the same numbers.
    """
    import torch

    _, head = find_head(model)
    generator = torch.Generator().manual_seed(seed)
    std = 1.0 / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        weight = torch.randn(head.weight.shape, generator=generator) * std
        head.weight.copy_(weight.to(head.weight.dtype))
        if head.bias is not None:
            head.bias.zero_()


def load_reward_model(path: str | Path, *, dtype: Any = None) -> tuple[Any, Any, Contract]:
    """(model in eval mode, tokenizer, contract) of a reward checkpoint; adapters are merged.

    dtype: float32 when None. A folder without contract.json is taken as trained with its own
    tokenizer and template. UserError: no folder, no trained head, a contract that does not match.
    """
    import torch
    from transformers import AutoTokenizer

    from align.chat import stop_ids

    path = Path(path)
    if not path.is_dir():
        raise UserError("path", str(path), "is not a folder", "Give a reward run's final folder")
    model = _load(path, dtype or torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise UserError(
            "path",
            str(path),
            f"has no usable tokenizer: {_line(error)}",
            "Save the tokenizer beside the model",
        ) from None
    if tokenizer.chat_template is None:
        raise UserError(
            "path",
            str(path),
            "has a tokenizer without a chat template",
            "Save the template that the model was trained with",
        )
    if not stop_ids(tokenizer):
        raise UserError(
            "path",
            str(path),
            "has neither an end-of-turn nor an EOS token",
            "The score is read at that token: add one and train again",
        )
    _, head = find_head(model)
    contract = read_contract(path) or make_contract(tokenizer, heads=head.out_features)
    check_contract(contract, tokenizer, path=str(path), heads=head.out_features)
    return model.eval(), tokenizer, contract


def save_reward_model(path: str | Path, model: Any, tokenizer: Any, contract: Contract) -> None:
    """Writes what ``load_reward_model`` reads."""
    Path(path).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    write_contract(path, contract)


def _load(path: Path, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        return _load_adapter(path, dtype)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(path), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(
            "path",
            str(path),
            f"is not a reward checkpoint: {_line(error)}",
            "Give a reward run's final folder",
        ) from None
    name, _ = find_head(model)
    missing = [key for key in info["missing_keys"] if key.split(".")[0] == name]
    if missing:
        raise UserError(
            "path",
            str(path),
            f"has no trained reward head ({missing[0]} is missing)",
            "Train one with recipes/reward.py",
        )
    return model


def _load_adapter(path: Path, dtype: Any) -> Any:
    from peft import AutoPeftModelForSequenceClassification

    contract = read_contract(path)
    heads = contract.heads if contract else 1
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        str(path), dtype=dtype, num_labels=heads
    )
    return model.merge_and_unload()  # pyright: ignore[reportCallIssue]


def _unwrapped(module: Any) -> Any:
    """The trained copy inside peft's ModulesToSaveWrapper, or the module itself."""
    saved = getattr(module, "modules_to_save", None)
    if saved is None or not len(saved):
        return module
    active = getattr(module, "active_adapter", "default")
    name = active[0] if isinstance(active, list) else active
    return saved[name] if name in saved else next(iter(saved.values()))


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
