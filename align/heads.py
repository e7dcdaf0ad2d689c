"""The scalar head of a sequence classifier: finding it and initialising it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from align.config_errors import UserError

_SEED_STEP = 1_000_003  # between the outputs of one head; far from the seeds that people choose
HEAD_NAMES = ("score", "classifier", "classification_head", "reward_head", "v_head", "value_head")


def find_head(model: Any) -> tuple[str, nn.Linear]:
    """Return (attribute name, layer) of a model's scalar head: the linear layer beside its body.

    Llama, Qwen and GPT-2 call it ``score``, others ``classifier``; peft's copy of a saved head is
    looked through. Raises UserError for models whose head is no single linear layer.
    """
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
        "policy.path", kind, f"has no single linear head beside its body ({found})",
        "Use a decoder model with a ...ForSequenceClassification class",
    )  # fmt: skip


def base_of(model: Any) -> nn.Module:
    """Return the body of a sequence-classification model, whose last states the head reads."""
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        raise UserError(
            "policy.path", type(model).__name__, "has no body under a head",
            "Use a ...ForSequenceClassification model",
        )  # fmt: skip
    return body


def init_head(model: Any, seed: int = 0) -> None:
    """Initialise the head in place: weights of standard deviation 1/√(d+1), bias zero.

    The scores of an untrained model then have variance about 1 whatever the width. Stiennon et al.
    2020 (arXiv:2009.01325) write N(0, 1/(d+1)), which is the variance: the code of Huang et al.
    2024 (arXiv:2403.17031) has std = 1/√(d+1). Each output has a seed of its own: it starts alike
    however many others there are. Sampled on the CPU, so every device and rank gets the same
    numbers.
    """
    _, head = find_head(model)
    std = 1.0 / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        for k in range(head.out_features):
            generator = torch.Generator().manual_seed(seed + _SEED_STEP * k)
            drawn = torch.randn(head.in_features, generator=generator) * std
            head.weight[k].copy_(drawn.to(head.weight.dtype))
        if head.bias is not None:
            head.bias.zero_()


def zero_head(model: Any) -> None:
    """Set the head to zero, so that the model gives 0 everywhere: a critic that knows nothing."""
    _, head = find_head(model)
    nn.init.zeros_(head.weight)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _unwrapped(module: Any) -> Any:
    """Return the trained copy inside peft's ModulesToSaveWrapper, or the module itself."""
    saved = getattr(module, "modules_to_save", None)
    if saved is None or not len(saved):
        return module
    active = getattr(module, "active_adapter", "default")
    name = active[0] if isinstance(active, list) else active
    return saved[name] if name in saved else next(iter(saved.values()))


def head_parts(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weight and bias of head `name` in a state dict, also out of peft's trained copy.

    Raises RuntimeError where the state has none, or several.
    """
    inside = re.compile(rf"(?:^|\.){re.escape(name)}\.(?:modules_to_save\.[^.]+\.)?(weight|bias)$")
    found = [(match[1], tensor) for key, tensor in state.items() if (match := inside.search(key))]
    parts = dict(found)
    if "weight" not in parts or len(parts) != len(found):
        raise RuntimeError(f"the weights of head {name!r} are not in the state, or several times")
    return parts
