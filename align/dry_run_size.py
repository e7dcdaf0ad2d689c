"""What a run holds in memory, counted on models without storage (the meta device)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.config import Config
    from align.policy_module import PolicyModule

_MIB = 1 << 20
# Bytes of a quantised weight with its scales: a float32 for 64 weights, for a row of them.
_QUANTISED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}


def size_lines(config: Config, module: PolicyModule | None) -> list[str]:
    """Return parameters and memory as lines; module: of `meta_module`."""
    if module is None:
        return ["  (the model has yet to be built)"]
    parts = {
        "policy" if config.method != "reward" else "reward model": module.lm,
        "frozen reference": module.reference,
        "critic": module.critic,
        "value head": module.value_head,
    }
    counts = {name: count(part) for name, part in parts.items() if part is not None}
    trained = count(module, trained=True)
    sources = sum(r.kind == "model" for r in config.rewards) if config.method == "ppo" else 0
    weights, states = memory(config, module)
    return [
        "  parameters: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()),
        f"  {sum(counts.values()):,} parameters in all, {trained:,} trained",
        f"  {weights / _MIB:.1f} MiB of weights, {states / _MIB:.1f} MiB of gradients and Adam's "
        "moments in every process (ZeRO divides them); activations come on top"
        + (f", and {sources} reward model(s)" if sources else ""),
    ]


def count(module: Any, trained: bool = False) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def memory(config: Config, module: PolicyModule) -> tuple[float, float]:
    """Return bytes of (weights, gradients and Adam's two moments).

    Moments and gradients have the type of their weights; adapters are float32 on any base. Of a
    k-bit base the linear layers are quantised; embeddings, norms and heads are float32.
    """
    from align.policy_loading import dtype_of

    own = float(dtype_of(config).itemsize)
    trained_type = own if config.policy.lora is None else 4.0
    trained = count(module, trained=True)
    frozen = count(module) - trained
    weights = trained * trained_type + frozen * own
    if config.policy.quantization:
        packed = linear_weights(module)
        weights = trained * trained_type + (frozen - packed) * 4.0
        weights += packed * _QUANTISED[config.policy.quantization]
    return weights, 3 * trained * trained_type


def linear_weights(module: Any) -> int:
    """Return the number of frozen weights that a k-bit base would quantise."""
    heads = ("lm_head", "embed_out", "score", "classifier", "value_head")
    return sum(
        part.weight.numel()
        for name, part in module.named_modules()
        if type(part).__name__ in ("Linear", "Conv1D")
        and not part.weight.requires_grad
        and not any(head in name.split(".") for head in heads)
    )


def meta_module(config: Config, vocabulary: int | None) -> PolicyModule | None:
    """Return what `Policy.load` would make, without storage; None where the model is not there."""
    import torch
    from torch import nn

    from align.heads import find_head
    from align.policy_loading import adapt, critic_kind
    from align.policy_module import PolicyModule, base_model

    shape = model_shape(config, config.policy.path, vocabulary)
    if shape is None:
        return None
    config = _plain_adapters(config)
    heads = config.reward.heads if config.method == "reward" else 0
    parts: dict[str, Any] = {}
    kind = critic_kind(config) if config.method == "ppo" else None
    with torch.device("meta"):
        lm = adapt(_body(shape, heads), config, critic_adapter=kind == "adapter")
        if heads and config.policy.lora is not None:
            find_head(base_model(lm))[1].requires_grad_(True)
        if config.reference == "frozen":
            parts["reference"] = _body(shape, 0)
        if kind == "separate":
            theirs = model_shape(config, config.ppo.critic_path or config.policy.path, vocabulary)
            parts["critic"] = adapt(_body(theirs or shape, 1), config)
            find_head(base_model(parts["critic"]))[1].requires_grad_(True)
        elif kind is not None:
            parts["value_head"] = nn.Linear(shape.get_text_config().hidden_size, 1)
        return PolicyModule(lm, scorer=bool(heads), **parts)


def model_shape(config: Config, path: str | None, vocabulary: int | None) -> Any:
    """Return a model's transformers config, or None where it has yet to be built."""
    from transformers import AutoConfig

    from align.checkpoints import adapter_base, only_adapter
    from align.fresh import fresh_config
    from align.model_safety import code_options
    from align.policy_loading import permit

    permit(config)
    if path is None:
        return None if vocabulary is None else fresh_config(config, vocabulary)
    if not Path(path).exists() and path.startswith(config.demo.root):
        return None
    if only_adapter(path):
        path = adapter_base(path)
    return AutoConfig.from_pretrained(path, **code_options(path, "policy.path"))


def _body(shape: Any, heads: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not heads:
        return AutoModelForCausalLM.from_config(shape)
    shape = copy.deepcopy(shape)
    shape.num_labels = heads
    return AutoModelForSequenceClassification.from_config(shape)


def _plain_adapters(config: Config) -> Config:
    """Return the config with LoRA as an existing adapter has it, and a base that is not k-bit."""
    config = copy.deepcopy(config)
    config.policy.quantization = None
    lora = config.policy.lora
    if lora is not None and lora.path is not None:
        from peft import PeftConfig

        found: Any = PeftConfig.from_pretrained(lora.path)
        lora.r, lora.path, targets = found.r, None, found.target_modules
        lora.target_modules = targets if isinstance(targets, str) else sorted(targets)
    return config
