"""Rules between keys: what a single key's type cannot say. Files are looked at in config_files."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from align.config_engine import check_engine
from align.config_errors import NO_VALUE, UserError, nearest
from align.config_parallel import check_parallel
from align.config_pretrain import check_pretrain
from align.config_reward import check_reward
from align.config_tokenizer import check_tokenizer
from align.launch_env import under_deepspeed, under_fsdp

if TYPE_CHECKING:
    from align.config import Config

# Losses that compare the policy with nothing. These names must agree with align.losses_dpo, which
# imports torch (tests/recipes/test_errors.py compares them).
REFERENCE_FREE = ("simpo", "cpo")
LABEL_SMOOTHED = ("sigmoid", "robust", "exo", "aot", "simpo", "cpo")
# The data key without which a method has nothing to learn from.
NEEDED = {
    "tokenizer": "text",
    "pretrain": "text",
    "sft": "sft",
    "reward": "preferences",
    "dpo": "preferences",
    "orpo": "preferences",
    "ppo": "prompts",
}
USES_REFERENCE = ("dpo", "ppo")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DEVICE_NODES = ("nvidiactl", "nvidia0", "kfd", "dxg", "dri", "davinci0", "accel0", "accel")


def check_rules(config: Config) -> None:
    """Raise UserError for combinations of keys that cannot work with `config.method`."""
    _policy_rules(config)
    _data_rules(config)
    _train_rules(config)
    _not_here_yet(config)
    _eval_rules(config)
    fresh = (None, "auto") if config.method == "pretrain" else (None,)
    if config.method in NEEDED and config.method != "tokenizer" and config.policy.path in fresh:
        _shape_rules(config)
    if config.method == "tokenizer":
        check_tokenizer(config.tokenizer)
    elif config.method in NEEDED and (config.policy.path or config.pretrain.tokenizer) is None:
        check_tokenizer(config.tokenizer, fresh=True)
    if config.method == "pretrain":
        check_pretrain(config)
    if config.method == "reward":
        check_reward(config)
    if config.method == "dpo":
        _dpo_rules(config)
    if config.method == "ppo":
        _ppo_rules(config)
        _critic_rules(config)
        check_engine(config, cpu=on_cpu(config))


def _policy_rules(config: Config) -> None:
    policy, method = config.policy, config.method
    field = "policy.reference"
    reference = policy.reference
    if reference == "adapter_off" and policy.lora is None:
        raise UserError(
            field, reference, "needs policy.lora: without adapters there is nothing to switch off",
            "Use 'frozen', or set policy.lora",
        )  # fmt: skip
    if method == "ppo" and reference == "cached":
        reason = "cannot be used with ppo: completions are sampled during training"
        raise UserError(field, reference, reason, "Use 'frozen' or 'adapter_off'")
    free = method == "dpo" and config.dpo.loss_type in REFERENCE_FREE
    if reference == "none" and method in USES_REFERENCE and not free:
        reason = f"cannot be used with {method}: it measures the distance to a reference"
        raise UserError(field, reference, reason, "Use 'auto', 'frozen' or 'adapter_off'")
    if policy.quantization and policy.lora is None:
        reason = "needs policy.lora: k-bit weights cannot be trained themselves"
        raise UserError(
            "policy.quantization", policy.quantization, reason, "Set policy.lora: {r: 16}, or null"
        )
    if policy.quantization and method == "pretrain":
        reason = "cannot be used with pretrain: all weights are trained"
        raise UserError("policy.quantization", policy.quantization, reason, "Use null")
    if policy.quantization and method in NEEDED and find_spec("bitsandbytes") is None:
        fix = "pip install 'align[quantize]', or use null"
        raise UserError("policy.quantization", policy.quantization, "needs bitsandbytes", fix)
    kernel = policy.attn_implementation
    if kernel is not None and kernel not in _ATTENTION and not {"/", "|"} & set(kernel):
        close = nearest(kernel, _ATTENTION)
        hint = f"Did you mean '{close}'? " if close else ""
        fix = f"{hint}One of: {', '.join(_ATTENTION)}, or a kernel's hub id"
        raise UserError("policy.attn_implementation", kernel, "is not known", fix)
    if policy.lora is not None and not policy.lora.target_modules:
        reason = "names no layer"
        fix = "Use all-linear"
        raise UserError("policy.lora.target_modules", policy.lora.target_modules, reason, fix)


def _data_rules(config: Config) -> None:
    data, method = config.data, config.method
    if data.max_prompt_length is not None and data.max_prompt_length >= data.max_length:
        reason = f"leaves no room for a completion in data.max_length={data.max_length}"
        raise UserError("data.max_prompt_length", data.max_prompt_length, reason, "Lower it")
    if method == "sft" and config.sft.packing and config.policy.layout == "plain":
        reason = (
            "cannot be used with policy.layout='plain': packed examples need a mask of their own"
        )
        raise UserError("sft.packing", True, reason, "Use false, or layout: auto")
    if method == "pretrain" and config.packs and config.policy.layout == "plain":
        reason = "cannot be used with policy.layout='plain': it needs a mask of its own"
        raise UserError("pretrain.document_mask", True, reason, "Use false, or layout: auto")
    name = NEEDED.get(method)
    if name is None or getattr(data, name) is not None:
        return
    if method == "ppo":
        if data.preferences is None:
            reason = "is needed by ppo: there are no prompts to sample completions for"
            fix = "Give a file, or data.preferences, whose prompts are then used"
            raise UserError("data.prompts", None, reason, fix)
        return
    raise UserError(
        f"data.{name}", None, f"is needed by {method}", f"Set data.{name} to a file, or auto"
    )


def _train_rules(config: Config) -> None:
    train = config.train
    args = train.args
    if args.get("bf16") and args.get("fp16"):
        raise UserError("train.fp16", True, "cannot be used with train.bf16", "Choose one")
    if args.get("fp16") and on_cpu(config):
        reason = "needs an accelerator: on a CPU accelerate has no 16-bit floats with a scaler"
        raise UserError("train.fp16", True, reason, "Use train.bf16, or neither")
    if args.get("push_to_hub"):
        reason = "would upload checkpoints that only this trainer reads"
        raise UserError("train.push_to_hub", True, reason, "Upload final/ when the run is done")
    _needs_evaluation(config)
    fsdp = args.get("fsdp") or args.get("fsdp_config")
    fsdp = fsdp or under_fsdp()
    if fsdp and config.policy.quantization:
        reason = "cannot be used with FSDP in this version, which shards no k-bit weights"
        fix = "Use DDP or ds_configs/accelerate_zero2.yaml, or null"
        raise UserError("policy.quantization", config.policy.quantization, reason, fix)
    if fsdp and on_cpu(config):
        raise fsdp_on_cpu(fsdp if fsdp is not True else NO_VALUE)
    check_parallel(config, cpu=on_cpu(config))
    launched = under_deepspeed()
    if args.get("deepspeed") and not launched and int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        reason = "given to the trainer alone makes every rank act as rank 0"
        fix = "Use accelerate launch --config_file ds_configs/accelerate_zero2.yaml"
        raise UserError("train.deepspeed", args["deepspeed"], reason, fix)
    if args.get("deepspeed") and args.get("use_cpu"):
        reason = "stops DeepSpeed from seeing its ranks"
        raise UserError("train.use_cpu", True, reason, "Remove it; set DS_ACCELERATOR=cpu instead")


def _needs_evaluation(config: Config) -> None:
    """Early stopping and the best checkpoint wait for evaluations that must take place."""
    train, data, method = config.train, config.data, config.method
    if method not in NEEDED:
        return
    for field, value in (
        ("train.early_stopping_patience", train.early_stopping_patience),
        ("train.load_best_model_at_end", train.args.get("load_best_model_at_end") or None),
    ):
        if value is None:
            continue
        if train.args.get("eval_strategy", "no") == "no":
            reason = "needs evaluations to wait for"
            raise UserError(field, value, reason, "Set train.eval_steps")
        prompts = method == "ppo" and config.eval.prompts
        suite = method != "reward" and config.eval.suite
        if not (data.validation or data.validation_fraction or prompts or suite):
            reason = "needs held-out data to evaluate on"
            fix = "Set data.validation, data.validation_fraction or eval.suite"
            raise UserError(field, value, reason, fix)


def _shape_rules(config: Config) -> None:
    """The `pretrain` section must describe a model that can be built."""
    p = config.pretrain
    if p.n_embd % p.n_head:
        reason = f"does not divide pretrain.n_embd={p.n_embd}"
        fix = f"Use {_divisor_near(p.n_embd, p.n_head)}"
        raise UserError("pretrain.n_head", p.n_head, reason, fix)
    if p.arch in ("gpt2", "bert"):
        return
    if (p.n_embd // p.n_head) % 2:
        reason = f"gives heads of {p.n_embd // p.n_head} numbers; rotary positions need an even one"
        raise UserError("pretrain.n_head", p.n_head, reason, "Change it or pretrain.n_embd")
    if p.n_kv_head and p.n_head % p.n_kv_head:
        reason = f"does not divide pretrain.n_head={p.n_head}"
        fix = f"Use {_divisor_near(p.n_head, p.n_kv_head)}"
        raise UserError("pretrain.n_kv_head", p.n_kv_head, reason, fix)


def _dpo_rules(config: Config) -> None:
    dpo = config.dpo
    if dpo.label_smoothing and dpo.loss_type not in LABEL_SMOOTHED:
        reason = f"is not part of loss_type '{dpo.loss_type}'"
        raise UserError("dpo.label_smoothing", dpo.label_smoothing, reason, "Use 0")
    if dpo.loss_type == "exo" and not dpo.label_smoothing:
        reason = "must be above 0 for exo: its target distribution would be a single point"
        raise UserError("dpo.label_smoothing", 0.0, reason, "Use 1e-3")


def fsdp_on_cpu(value: object) -> UserError:
    """Return the refusal of FSDP without an accelerator."""
    reason = (
        "needs an accelerator: on CPU the launcher silently falls back to plain data "
        "parallelism, or lets the ranks diverge"
    )
    return UserError("train.fsdp", value, reason, "Use a zero2 or zero3 config, or plain DDP")


def on_cpu(config: Config) -> bool:
    """Guess without torch whether this machine has no accelerator (run() checks with torch)."""
    if config.train.args.get("use_cpu"):
        return True
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        return True
    if not sys.platform.startswith("linux"):
        return False
    return not any(os.path.exists(f"/dev/{node}") for node in _DEVICE_NODES)


def _ppo_rules(config: Config) -> None:
    ppo, rollout = config.ppo, config.rollout
    if not config.rewards:
        raise UserError(
            "rewards", [], "is empty: ppo has nothing to raise",
            "Add rewards: [{kind: model, path: auto}] or a python function",
        )  # fmt: skip
    if all(reward.weight == 0 for reward in config.rewards):
        raise UserError("rewards.0.weight", 0.0, "makes the whole reward zero", "Use 1")
    samples = rollout.prompts_per_update * rollout.n
    if samples % ppo.num_minibatches:
        reason = (
            f"does not divide the rollout of {samples} completions "
            f"(rollout.prompts_per_update={rollout.prompts_per_update} × rollout.n={rollout.n})"
        )
        fix = f"Use {_divisor_near(samples, ppo.num_minibatches)}"
        raise UserError("ppo.num_minibatches", ppo.num_minibatches, reason, fix)
    world = int(os.environ.get("WORLD_SIZE", "1") or 1)
    if rollout.prompts_per_update % world:
        reason = f"cannot be shared evenly by {world} processes"
        fix = f"Use a multiple of {world}"
        raise UserError("rollout.prompts_per_update", rollout.prompts_per_update, reason, fix)
    per_step = samples // ppo.num_minibatches
    if per_step % world:
        reason = (
            f"makes minibatches of {per_step} completions, which {world} processes cannot share"
        )
        raise UserError("ppo.num_minibatches", ppo.num_minibatches, reason, "Lower it")
    if rollout.max_new_tokens >= config.data.max_length:
        reason = f"leaves no room for a prompt in data.max_length={config.data.max_length}"
        raise UserError("rollout.max_new_tokens", rollout.max_new_tokens, reason, "Lower it")
    if rollout.min_new_tokens > rollout.max_new_tokens:
        reason = f"is above rollout.max_new_tokens={rollout.max_new_tokens}"
        raise UserError("rollout.min_new_tokens", rollout.min_new_tokens, reason, "Lower it")
    if rollout.async_ and rollout.engine == "vllm_colocate":
        reason = "gains nothing with rollout.engine='vllm_colocate', which shares the device"
        raise UserError("rollout.async", rollout.async_, reason, "Use 0, or engine: vllm_server")
    if ppo.ptx_coef > 0 and config.data.sft is None:
        raise UserError("data.sft", None, "is needed by ppo.ptx_coef > 0", "Give a file")
    missing = ppo.missing_eos
    if missing.mode == "subtract" and missing.value is not None and missing.value < 0:
        reason = "would reward completions that never end"
        raise UserError("ppo.missing_eos.value", missing.value, reason, "Use a value of 0 or more")
    if not all(rollout.stop):
        raise UserError("rollout.stop", rollout.stop, "has an empty string", "Remove it")
    if not config.eval.seeds:
        raise UserError("eval.seeds", [], "is empty", "Use [0]")


def _critic_rules(config: Config) -> None:
    ppo, args = config.ppo, config.train.args
    if ppo.critic == "adapter" and config.policy.lora is None:
        raise UserError("ppo.critic", "adapter", "needs policy.lora", "Use 'separate' or 'shared'")
    if ppo.critic_path and ppo.critic in ("adapter", "shared"):
        reason = f"is only read by a separate critic, not with ppo.critic='{ppo.critic}'"
        raise UserError("ppo.critic_path", ppo.critic_path, reason, "Use ppo.critic: separate")
    if ppo.critic == "adapter" and args.get("gradient_checkpointing"):
        reason = (
            "cannot be used with train.gradient_checkpointing: what is recomputed in the backward "
            "pass would use the policy's adapter"
        )
        raise UserError("ppo.critic", "adapter", reason, "Use 'separate'")
    warm = ppo.critic_warmup_updates
    if warm and args.get("weight_decay"):
        reason = (
            f"keeps the policy frozen, but train.weight_decay={args['weight_decay']} shrinks it"
        )
        raise UserError("ppo.critic_warmup_updates", warm, reason, "Use train.weight_decay: 0")
    if warm and ppo.critic == "shared":
        reason = "cannot freeze a policy that shares its body with the critic"
        raise UserError("ppo.critic_warmup_updates", warm, reason, "Use ppo.critic: separate")


def _eval_rules(config: Config) -> None:
    """What is measured beside the loss; the suite's file is looked at in align.evaluation."""
    ev, method = config.eval, config.method
    if ev.suite is not None and method == "pretrain" and config.pretrain.arch == "bert":
        reason = "cannot be used with pretrain.arch=bert: a masked model writes no answers"
        raise UserError("eval.suite", ev.suite, reason, "Use null")
    if ev.judge is not None and ev.suite is None and method in ("pretrain", "sft", "dpo", "orpo"):
        reason = f"has nothing to score: {method} samples only for a suite"
        raise UserError("eval.judge", ev.judge, reason, "Set eval.suite, or null")
    if method == "ppo" and ev.n > 1 and ev.temperature == 0:
        reason = "draws the same completion every time at eval.temperature=0"
        raise UserError("eval.n", ev.n, reason, "Set eval.temperature: 1.0, or use 1")


def _not_here_yet(config: Config) -> None:
    """Refuse what the contract names and this version does not have."""
    if config.method != "ppo":
        return
    for i, reward in enumerate(config.rewards):
        if reward.calibrated:
            check_calibrated(f"rewards.{i}.calibrated", reward.kind)


def check_calibrated(field: str, kind: str) -> None:
    """Raise UserError for a function that is asked for calibrated scores."""
    if kind == "function":
        reason = "is for reward models: a function has no reference samples"
        raise UserError(field, True, reason, "Use false")


def _divisor_near(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))
