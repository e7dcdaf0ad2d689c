"""LoRA adapters for `Policy`: putting them on a model, and merging them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.config_errors import UserError
from align.distributed import zero3
from align.model_safety import check_weights
from align.policy_module import CRITIC_ADAPTER

if TYPE_CHECKING:
    from align.config import Config


def adapt(model: Any, config: Config, *, critic_adapter: bool = False, fresh: bool = False) -> Any:
    """Freeze the base and put LoRA adapters on it; without policy.lora, the model as it is.

    critic_adapter: a second one. fresh: new ones also where policy.lora.path names one to go on
    from.
    """
    lora = config.policy.lora
    if lora is None:
        return model
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    from align.fused_lora import fuse_lora

    if config.policy.quantization:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(config.train.args.get("gradient_checkpointing"))
        )
    settings: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
        # Heads are no place for a low-rank update: a reward head is trained whole.
        "exclude_modules": r".*(lm_head|score|classifier)",
    }
    try:
        if lora.path and not fresh:
            check_weights(lora.path, "policy.lora.path")
            adapted: Any = PeftModel.from_pretrained(model, lora.path, is_trainable=True)
        else:
            adapted = get_peft_model(model, LoraConfig(**settings))
            _refuse_unused(lora.target_modules, adapted)
        if critic_adapter:
            adapted.add_adapter(CRITIC_ADAPTER, LoraConfig(**settings))
            for name, parameter in adapted.named_parameters():
                if f".{CRITIC_ADAPTER}." in name:
                    parameter.requires_grad_(True)
        fuse_lora(adapted)
    except (OSError, ValueError) as error:
        if lora.path:
            reason = f"cannot be put on this model ({first_line(error)})"
            raise UserError(
                "policy.lora.path", lora.path, reason, "Give an adapter of policy.path"
            ) from error
        raise _bad_targets(lora.target_modules, first_line(error)) from error
    return adapted


def exact_4bit(model: Any) -> None:
    """Keep a 4-bit base as it was quantised, on CPUs with bfloat16 instructions too.

    There bitsandbytes (0.50) packs a layer's weights anew at its first pass without gradients and
    rounds their scales: the base would change under way, and rows must be multiples of 64.
    https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/nn/modules.py
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _refuse_unused(asked: str | list[str], adapted: Any) -> None:
    """Refuse names in a list that adapted nothing: peft passes over them."""
    used = adapted.base_model.targeted_module_names
    for name in [] if isinstance(asked, str) else asked:
        if not any(layer == name or layer.endswith(f".{name}") for layer in used):
            raise _bad_targets(asked, f"{name!r} adapts no layer; heads are trained whole")


def _bad_targets(value: str | list[str], reason: str) -> UserError:
    fix = "Name layers of this model, or use all-linear"
    return UserError("policy.lora.target_modules", value, f"do not fit ({reason})", fix)


def merged_adapter(model: Any, adapter: str) -> Any:
    """Base plus adapter as one plain model."""
    from peft import PeftModel

    if zero3():
        raise UserError(
            "policy.lora.path", adapter, "cannot be merged while ZeRO-3 shards the weights",
            "Give the adapter's folder as policy.path, which is merged first",
        )  # fmt: skip
    check_weights(adapter, "policy.lora.path")
    merged: Any = PeftModel.from_pretrained(model, adapter)
    return merged.merge_and_unload()


def first_line(error: Exception) -> str:
    """What a library's error says, without its advice."""
    return str(error).strip().split("\n")[0]
