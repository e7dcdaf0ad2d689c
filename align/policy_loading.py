"""Loading for `Policy`: where weights come from, their dtype, critics and layout."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.checkpoints import (
    adapter_base,
    adapter_options,
    check_adapter_base,
    is_adapter,
    only_adapter,
    read_tokenizer,
    tokenizer_folder,
)
from align.config_errors import UserError
from align.config_parallel import tensor_parallel
from align.distributed import from_rank_zero, gathered, rank, without_zero3, zero3
from align.files import fingerprint
from align.heads import find_head, zero_head
from align.model_safety import allow, code_options, weight_options
from align.policy_adapters import adapt, exact_4bit, first_line
from align.policy_module import base_model, body_of
from align.tokenizer_identity import tokenizer_fingerprint

if TYPE_CHECKING:
    from align.config import Config

_DROPOUT = re.compile("dropout|pdrop|layerdrop")
# "global": GPT-Neo's name for full attention.
_FULL_ATTENTION = {"full_attention", "sliding_attention", "global"}


def starting_path(config: Config) -> str:
    """Where the weights are read from.

    The path as given; a random model made in the run directory where it is null; and for an
    adapter the merged model, written to the run directory: what follows must never be compared
    with the base below an adapter by accident.
    """
    from align.fresh import made_once, make_fresh

    permit(config)
    path, run_dir = config.policy.path, Path(config.train.output_dir)
    if path is None:
        with without_zero3():  # made on rank 0 alone
            return str(from_rank_zero(lambda: make_fresh(config, run_dir / "init")))
    if only_adapter(path):
        source = {"adapter": fingerprint(path)}
        folder = run_dir / "base"
        return str(from_rank_zero(lambda: made_once(folder, source, lambda t: _merge_to(t, path))))
    return path


def permit(config: Config) -> None:
    """Let the models that the configuration names bring what it allows, and say so on rank 0."""
    policy, run_dir = config.policy, Path(config.train.output_dir)
    lora = policy.lora.path if policy.lora else None
    paths = [policy.path, lora, config.ppo.critic_path]
    for path in [p for p in paths if p and is_adapter(p)]:
        paths.append(adapter_base(path))
    said = allow(paths, pickle=policy.allow_pickle, code=policy.trust_remote_code)
    # A model merged from such an adapter keeps its code.
    allow([str(run_dir / "base")], pickle=False, code=policy.trust_remote_code)
    for line in said if rank() == 0 else ():
        print(f"[align] {line}", flush=True)


def _merge_to(folder: Path, adapter: str) -> None:
    """Write base plus adapter to `folder`."""
    from peft import AutoPeftModelForCausalLM

    check_adapter_base(adapter, "policy.path")
    with without_zero3():
        try:
            model: Any = AutoPeftModelForCausalLM.from_pretrained(
                adapter, dtype=torch.float32, **adapter_options(adapter, "policy.path")
            )
            tokenizer = read_tokenizer(tokenizer_folder(Path(adapter)), "policy.path")
        except (OSError, ValueError, KeyError) as error:
            reason = f"is an adapter that cannot be loaded on its base ({first_line(error)})"
            fix = "Check base_model_name_or_path in its adapter_config.json"
            raise UserError("policy.path", adapter, reason, fix) from error
        model.merge_and_unload().save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_tokenizer(path: str, config: Config) -> Any:
    """The tokenizer with pad token and chat template; plain for pre-training."""
    from align.chat import prepare_tokenizer

    permit(config)
    try:
        tokenizer = read_tokenizer(path, "policy.path")
    except (OSError, ValueError, KeyError) as error:
        reason = f"has no usable tokenizer ({first_line(error)})"
        raise UserError("policy.path", path, reason, "Save it beside the model") from error
    template = config.data.chat_template
    if config.method != "pretrain":
        return prepare_tokenizer(tokenizer, template)
    if template is not None:
        return prepare_tokenizer(tokenizer, template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_body(
    path: str, config: Config, *, heads: int = 0, whole: bool = False, kind: Any = None
) -> Any:
    """A transformers model without dropout (but for pre-training), use_cache off.

    heads: 0 a causal LM, else a sequence classifier with so many outputs. whole: never quantised.
    kind: another auto class in place of the causal LM's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    permit(config)
    field = "ppo.critic_path" if path == config.ppo.critic_path else "policy.path"
    options = weight_options(path, field)
    try:
        shape = AutoConfig.from_pretrained(path, **code_options(path, field))
        dropout = config.pretrain.dropout if config.method == "pretrain" else 0.0
        set_dropout(shape, dropout)
        kwargs: dict[str, Any] = {"config": shape, "dtype": dtype_of(config), **options}
        if config.policy.attn_implementation:
            kwargs["attn_implementation"] = config.policy.attn_implementation
        if config.policy.quantization and not whole:
            kwargs["quantization_config"] = _quantization(config)
        if (split := tensor_parallel(config)) > 1 and not whole:
            from transformers.distributed.configuration_utils import DistributedConfig

            kwargs["distributed_config"] = DistributedConfig(tp_size=split, tp_plan="auto")
        kind = kind or AutoModelForCausalLM
        if heads:
            kind, shape.num_labels = AutoModelForSequenceClassification, heads
        model, info = kind.from_pretrained(path, output_loading_info=True, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        kernel = config.policy.attn_implementation
        if kernel and re.search("attention|attn", str(error)):
            reason = f"cannot be used ({first_line(error)})"
            raise UserError("policy.attn_implementation", kernel, reason, "Use null") from error
        reason = f"cannot be loaded ({first_line(error)})"
        raise UserError("policy.path", path, reason, "Check that the folder is complete") from error
    _refuse_missing(info["missing_keys"], model, path, heads)
    exact_4bit(model)
    model.config.use_cache = False
    return model


def _refuse_missing(missing: Collection[str], model: Any, path: str, heads: int) -> None:
    """Refuse weights that transformers would draw at random; only a head may be new."""
    new = f"{find_head(model)[0]}." if heads else "a head is never missing"
    absent = sorted(name for name in missing if not name.startswith(new))
    if absent:
        reason = f"lacks {len(absent)} of the model's weights ({absent[0]} …)"
        raise UserError("policy.path", path, reason, "Check that the folder is complete")


def trained_heads(path: str, wanted: int = 0) -> int:
    """Score heads of a saved sequence classifier; 0 for any other model.

    wanted: how many there must be, where there are any; 0 takes every number.
    """
    from transformers import AutoConfig

    options = code_options(path, "policy.path")
    try:
        shape = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError):
        return 0  # loading says what is wrong
    if not any("SequenceClassification" in a for a in shape.architectures or []):
        return 0
    if wanted not in (0, shape.num_labels):
        reason = f"does not fit {path}, a reward model with {shape.num_labels}"
        raise UserError("reward.heads", wanted, reason, f"Use {shape.num_labels}")
    return int(shape.num_labels or 1)


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

    original = AutoConfig.from_pretrained(path, **code_options(path, "policy.path"))
    restored = {n: getattr(original, n, 0.0) for n in dropout_names(shape)}
    return restored | {"use_cache": getattr(original, "use_cache", True)}


def _quantization(config: Config) -> Any:
    from transformers import BitsAndBytesConfig

    if zero3():
        raise UserError(
            "policy.quantization", config.policy.quantization,
            "cannot be used while ZeRO-3 shards the weights: k-bit weights are not partitioned",
            "Use DDP or ds_configs/accelerate_zero2.yaml: a k-bit base is small, or null",
        )  # fmt: skip
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "policy.quantization", config.policy.quantization, "needs bitsandbytes",
            "pip install 'align[quantize]'",
        ) from error  # fmt: skip
    if config.policy.quantization == "8bit":
        # A line at every product: int8 takes its inputs through float16, which the docs say.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
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

    source = config.ppo.critic_path or path
    trained = trained_heads(source)
    critic = load_body(source, config, heads=trained or 1)
    if source != path:
        theirs = tokenizer_fingerprint(read_tokenizer(source, "ppo.critic_path"))
        if theirs != (ours := tokenizer_fingerprint(tokenizer)):
            raise UserError(
                "ppo.critic_path", source, "has another tokenizer than the policy "
                f"(fingerprint {theirs}, not {ours}): a critic reads the policy's token ids",
                "Use null, or a reward model trained from the same base",
            )  # fmt: skip
    critic.config.pad_token_id = tokenizer.pad_token_id
    head = find_head(critic)[1]
    if not trained:
        with gathered(list(head.parameters()), modify=True):
            zero_head(critic)
    # The policy's adapter belongs to the policy's weights.
    critic = adapt(critic, config, fresh=source != path)
    find_head(base_model(critic))[1].requires_grad_(True)
    return {"critic": critic}


def layout(model: Any, config: Config) -> str:
    """The layout that policy.layout asks for; auto and grouped need a model that can take it."""
    asked, obstacle = config.policy.layout, grouped_obstacle(model, config.row_length)
    if obstacle is None:
        return "plain" if asked == "plain" else "grouped"
    if asked == "grouped":
        raise UserError("policy.layout", asked, f"cannot be used: {obstacle}", "Use 'auto'")
    if config.packs:
        key = "sft.packing" if config.method == "sft" else "pretrain.document_mask"
        raise UserError(key, True, f"cannot be used: {obstacle}", "Use false")
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
        return f"its attention window of {window} tokens is shorter than a row of {max_length}"
    kernel = model.config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        return f"attn_implementation {kernel} takes no mask of its own"
    if "position_ids" not in inspect.signature(body_of(model).forward).parameters:
        return "it takes no position_ids"
    return None
