"""The widths of a transformers model, for `align.cost`."""

from __future__ import annotations

from typing import Any

from align import cost


def shape_of(model: Any, adapter: str = "default") -> cost.Shape:
    """Widths of a transformers model, bare or in a PeftModel, on any device."""
    from torch import nn

    from align.policy_module import base_model

    config = base_model(model).config.get_text_config()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = base_model(model).get_output_embeddings()
    tables |= {id(head.weight)} if head is not None else set()
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts")
    routed = _first(config, "num_experts_per_tok") / experts if experts else 1.0
    body = low_rank = 0.0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            low_rank += parameter.numel() if f".{adapter}." in name else 0
        elif parameter.dim() >= 2 and id(parameter) not in tables:
            expert = parameter.dim() == 3 or ".experts." in name
            body += parameter.numel() * (routed if expert else 1)
    heads = config.num_attention_heads
    width = _first(config, "head_dim") or config.hidden_size // heads
    inner = _first(config, "intermediate_size", "n_inner") or 4 * config.hidden_size
    if experts:
        inner = _first(config, "moe_intermediate_size") or inner
        inner *= _first(config, "num_experts_per_tok")
    query, key_value = heads * width, (_first(config, "num_key_value_heads") or heads) * width
    normed = any(name.endswith((".q_norm", ".k_norm")) for name, _ in model.named_modules())
    return cost.Shape(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        query=query,
        key_value=key_value,
        mlp=inner,
        inner_copies=_inner_copies(config),
        vocabulary=config.vocab_size,
        body=round(body),
        parameters=sum(p.numel() for p in model.parameters()),
        adapter=round(low_rank),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        head_norms=query + key_value if normed else 0,
    )


def _first(config: Any, *names: str) -> int:
    return next((int(v) for n in names if (v := getattr(config, n, None))), 0)


def _inner_copies(config: Any) -> int:
    """Tensors of the MLP's width that a layer keeps: its activation's inputs and products."""
    kind = _first_text(config, "hidden_act", "activation_function")
    gated = config.model_type not in ("gpt2", "gpt_neox", "opt", "phi", "bloom", "falcon")
    spelled_out = 3 if kind in ("gelu_new", "gelu_fast", "quick_gelu") else 0  # tanh by parts
    return (4 if gated else 2) + spelled_out


def _first_text(config: Any, *names: str) -> str:
    return next((str(v) for n in names if (v := getattr(config, n, None))), "")
