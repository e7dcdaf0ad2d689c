"""Loading for `Policy`: where weights come from, their dtype, adapters, critics and layout."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.checkpoints import is_adapter, tokenizer_folder
from align.config_errors import UserError
from align.distributed import from_rank_zero, gathered, without_zero3, zero3
from align.files import whole_folder
from align.heads import find_head, zero_head
from align.policy_module import CRITIC_ADAPTER, base_model, body_of

if TYPE_CHECKING:
    from align.config import Config

_DROPOUT = re.compile(r"(dropout|pdrop|layerdrop)(_prob|_rate|_p)?")
# "global": GPT-Neo's name for full attention.
_FULL_ATTENTION = {"full_attention", "sliding_attention", "global"}


def starting_path(config: Config) -> str:
    """Where the weights are read from.

    The path as given; a random model made in the run directory where it is null; and for an
    adapter the merged model, written to the run directory: what follows must never be compared
    with the base below an adapter by accident.
    """
    from align.fresh import make_fresh

    path, run_dir = config.policy.path, Path(config.train.output_dir)
    if path is None:
        with without_zero3():  # made on rank 0 alone
            return str(from_rank_zero(lambda: make_fresh(config, run_dir / "init")))
    if is_adapter(path) and not (Path(path) / "config.json").is_file():
        return str(from_rank_zero(lambda: _merge_to(run_dir / "base", path)))
    return path


def _merge_to(folder: Path, adapter: str) -> Path:
    """Write base plus adapter to `folder` unless it is there."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    if (folder / "config.json").is_file():
        return folder
    with without_zero3(), whole_folder(folder) as target:
        model: Any = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
        model.merge_and_unload().save_pretrained(target)
        AutoTokenizer.from_pretrained(tokenizer_folder(Path(adapter))).save_pretrained(target)
    return folder


def load_tokenizer(path: str, config: Config) -> Any:
    """The tokenizer with pad token and chat template; plain for pre-training."""
    from transformers import AutoTokenizer

    from align.chat import prepare_tokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = f"has no usable tokenizer ({_line(error)})"
        raise UserError("policy.path", path, reason, "Save it beside the model") from error
    template = config.data.chat_template
    if config.method != "pretrain":
        return prepare_tokenizer(tokenizer, template)
    if template is not None:
        return prepare_tokenizer(tokenizer, template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_body(path: str, config: Config, *, heads: int = 0, whole: bool = False) -> Any:
    """A transformers model without dropout (but for pre-training), use_cache off.

    heads: 0 a causal LM, else a sequence classifier with so many outputs. whole: never quantised.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        shape = AutoConfig.from_pretrained(path)
        dropout = config.pretrain.dropout if config.method == "pretrain" else 0.0
        set_dropout(shape, dropout)
        kwargs: dict[str, Any] = {"config": shape, "dtype": dtype_of(config)}
        if config.policy.attn_implementation:
            kwargs["attn_implementation"] = config.policy.attn_implementation
        if config.policy.quantization and not whole:
            kwargs["quantization_config"] = _quantization(config)
        kind: Any = AutoModelForCausalLM
        if heads:
            kind, shape.num_labels = AutoModelForSequenceClassification, heads
        model = kind.from_pretrained(path, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = f"cannot be loaded ({_line(error)})"
        raise UserError("policy.path", path, reason, "Check that the folder is complete") from error
    model.config.use_cache = False
    return model


def dtype_of(config: Config) -> torch.dtype:
    """Weights' type. auto: float32; bfloat16 for a frozen base where the accelerator has it."""
    if config.policy.dtype != "auto":
        return getattr(torch, config.policy.dtype)
    frozen_base = config.policy.lora is not None and torch.cuda.is_available()
    return torch.bfloat16 if frozen_base and torch.cuda.is_bf16_supported() else torch.float32


def set_dropout(shape: Any, rate: float) -> None:
    """Set every dropout rate of a model's configuration; whole layers are never dropped."""
    for name in dropout_names(shape):
        setattr(shape, name, 0.0 if "layerdrop" in name else rate)


def dropout_names(shape: Any) -> list[str]:
    """Names of the dropout rates in a configuration."""
    return [
        name
        for name, value in shape.to_dict().items()
        if _DROPOUT.search(name) and type(value) in (int, float)
    ]


def original_settings(path: str, shape: Any) -> dict[str, Any]:
    """What loading changed in a configuration, as it stands in `path`; only names `shape` has."""
    from transformers import AutoConfig

    original = AutoConfig.from_pretrained(path)
    restored = {n: getattr(original, n, 0.0) for n in dropout_names(shape)}
    return restored | {"use_cache": getattr(original, "use_cache", True)}


def _quantization(config: Config) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "policy.quantization", config.policy.quantization, "needs bitsandbytes",
            "pip install 'align[quantize]'",
        ) from error  # fmt: skip
    if config.policy.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype_of(config)
    )


def check_vocabulary(model: Any, tokenizer: Any, path: str) -> None:
    """Refuse a tokenizer with ids that the embedding does not have."""
    size = model.config.get_text_config().vocab_size
    highest = max(tokenizer.get_vocab().values())
    if highest >= size:
        reason = f"has a tokenizer with id {highest}, but the model knows {size} tokens"
        fix = "Use the tokenizer that the model was trained with"
        raise UserError("policy.path", path, reason, fix)


def adapt(model: Any, config: Config, *, critic_adapter: bool = False) -> Any:
    """Freeze the base and put LoRA adapters on it; without policy.lora, the model as it is."""
    lora = config.policy.lora
    if lora is None:
        return model
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

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
        if lora.path:
            adapted: Any = PeftModel.from_pretrained(model, lora.path, is_trainable=True)
        else:
            adapted = get_peft_model(model, LoraConfig(**settings))
        if critic_adapter:
            adapted.add_adapter(CRITIC_ADAPTER, LoraConfig(**settings))
            for name, parameter in adapted.named_parameters():
                if f".{CRITIC_ADAPTER}." in name:
                    parameter.requires_grad_(True)
    except ValueError as error:
        fix = "Name layers of this model, or use all-linear"
        field, value = "policy.lora.target_modules", lora.target_modules
        raise UserError(field, value, f"do not fit ({_line(error)})", fix) from error
    return adapted


def merged_adapter(model: Any, adapter: str) -> Any:
    """Base plus adapter as one plain model."""
    from peft import PeftModel

    if zero3():
        raise UserError(
            "policy.lora.path", adapter, "cannot be merged while ZeRO-3 shards the weights",
            "Give the adapter's folder as policy.path, which is merged first",
        )  # fmt: skip
    merged: Any = PeftModel.from_pretrained(model, adapter)
    return merged.merge_and_unload()


def critic_kind(config: Config) -> str:
    """Effective kind of critic: adapter, separate or shared."""
    kind, checkpointing = config.ppo.critic, config.train.args.get("gradient_checkpointing")
    if kind == "adapter" and checkpointing:
        raise UserError(
            "ppo.critic", kind, "cannot be used with train.gradient_checkpointing: what is "
            "recomputed in the backward pass would use the policy's adapter", "Use 'separate'",
        )  # fmt: skip
    if kind != "auto":
        return kind
    separate = config.policy.lora is None or checkpointing or config.ppo.critic_path
    return "separate" if separate else "adapter"


def load_critic(path: str, config: Config, lm: Any, tokenizer: Any) -> dict[str, Any]:
    """Arguments of PolicyModule for the critic, and adapter: whether `lm` needs a second one.

    A separate critic is a copy of ppo.critic_path, with its head where that is a reward model;
    else of the policy. New heads are zero: the first advantages are then those without a critic.
    """
    kind = critic_kind(config)
    if kind != "separate":
        head = nn.Linear(lm.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return {"value_head": head, "adapter": kind == "adapter"}
    from transformers import AutoConfig, AutoTokenizer

    source = config.ppo.critic_path or path
    shape = AutoConfig.from_pretrained(source)
    trained = any("SequenceClassification" in a for a in shape.architectures or [])
    critic = load_body(source, config, heads=shape.num_labels if trained else 1)
    if source != path:
        theirs = AutoTokenizer.from_pretrained(source)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                "ppo.critic_path", source, "has another tokenizer than the policy: a critic reads "
                "the policy's token ids", "Use null, or a reward model trained from the same base",
            )  # fmt: skip
    critic.config.pad_token_id = tokenizer.pad_token_id
    head = find_head(critic)[1]
    if not trained:
        with gathered(list(head.parameters()), modify=True):
            zero_head(critic)
    critic = adapt(critic, config)
    find_head(base_model(critic))[1].requires_grad_(True)
    return {"critic": critic}


def layout(model: Any, config: Config) -> str:
    """The layout that policy.layout asks for; auto and grouped need a model that can take it."""
    asked, obstacle = config.policy.layout, grouped_obstacle(model, config.data.max_length)
    if obstacle is None:
        return "plain" if asked == "plain" else "grouped"
    if asked == "grouped":
        raise UserError("policy.layout", asked, f"cannot be used: {obstacle}", "Use 'auto'")
    if config.method == "sft" and config.sft.packing:
        raise UserError("sft.packing", True, f"cannot be used: {obstacle}", "Use false")
    return "plain"


def grouped_obstacle(model: Any, max_length: int) -> str | None:
    """Why candidates cannot share a row in this model, or None. A self-check follows at start-up.

    A 4-D mask replaces the model's own, so whatever a model does without a mask (recurrence,
    convolution, a sliding window narrower than a row, kernels that take no mask) rules it out.
    """
    shape = model.config.get_text_config()
    listed = getattr(shape, "layer_types", None) or getattr(shape, "attention_layers", None)
    kinds = set(listed or [])
    if kinds - _FULL_ATTENTION:
        return f"its layers are of kind {', '.join(sorted(kinds - _FULL_ATTENTION))}"
    window = getattr(shape, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else bool(window)
    if slides and window and window < max_length:
        return f"its attention window of {window} tokens is shorter than data.max_length"
    kernel = model.config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        return f"attn_implementation {kernel} takes no mask of its own"
    if "position_ids" not in inspect.signature(body_of(model).forward).parameters:
        return "it takes no position_ids"
    return None


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
