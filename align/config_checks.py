"""Rules between keys, and files that must exist: what a single key's type cannot say."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from align.config_errors import NO_VALUE, UserError, missing_file, nearest

if TYPE_CHECKING:
    from align.config import Config

# Losses that compare the policy with nothing.
REFERENCE_FREE = ("simpo", "cpo")
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
_DEVICE_NODES = ("nvidiactl", "nvidia0", "kfd", "dxg", "dri", "davinci0", "accel0", "accel")
# Weights, an adapter, or a GGUF export: what a model folder holds.
_MODEL_FILES = ("config.json", "adapter_config.json", "*.gguf")


def check_rules(config: Config) -> None:
    """Raise UserError for combinations of keys that cannot work with `config.method`."""
    _policy_rules(config)
    _data_rules(config)
    _train_rules(config)
    if config.method == "ppo":
        _ppo_rules(config)


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


def _data_rules(config: Config) -> None:
    data, method = config.data, config.method
    if data.max_prompt_length is not None and data.max_prompt_length >= data.max_length:
        reason = f"leaves no room for a completion in data.max_length={data.max_length}"
        raise UserError("data.max_prompt_length", data.max_prompt_length, reason, "Lower it")
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
    evaluates = args.get("eval_strategy", "no") != "no"
    if train.early_stopping_patience is not None and not evaluates:
        reason = "needs evaluations to wait for"
        raise UserError(
            "train.early_stopping_patience", train.early_stopping_patience, reason,
            "Set train.eval_steps",
        )  # fmt: skip
    fsdp = args.get("fsdp") or args.get("fsdp_config")
    if (fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true") and on_cpu(config):
        raise fsdp_on_cpu(fsdp or NO_VALUE)
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if args.get("deepspeed") and not launched and int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        reason = "given to the trainer alone makes every rank act as rank 0"
        fix = "Use accelerate launch --config_file ds_configs/accelerate_zero2.yaml"
        raise UserError("train.deepspeed", args["deepspeed"], reason, fix)
    if args.get("deepspeed") and args.get("use_cpu"):
        reason = "stops DeepSpeed from seeing its ranks"
        raise UserError("train.use_cpu", True, reason, "Remove it; set DS_ACCELERATOR=cpu instead")


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
    if rollout.min_new_tokens > rollout.max_new_tokens:
        reason = f"is above rollout.max_new_tokens={rollout.max_new_tokens}"
        raise UserError("rollout.min_new_tokens", rollout.min_new_tokens, reason, "Lower it")
    if ppo.critic == "adapter" and config.policy.lora is None:
        raise UserError("ppo.critic", "adapter", "needs policy.lora", "Use 'separate' or 'shared'")
    if ppo.critic_path and ppo.critic in ("adapter", "shared"):
        reason = f"is only read by a separate critic, not with ppo.critic='{ppo.critic}'"
        raise UserError("ppo.critic_path", ppo.critic_path, reason, "Use ppo.critic: separate")
    if ppo.ptx_coef > 0 and config.data.sft is None:
        raise UserError("data.sft", None, "is needed by ppo.ptx_coef > 0", "Give a file")
    _not_here_yet(config)


def _not_here_yet(config: Config) -> None:
    """Refuse engines and rewards of the contract that this version does not have."""
    here = Path(__file__).parent
    if config.rollout.engine != "hf" and not (here / "rollout" / "vllm.py").exists():
        raise UserError(
            "rollout.engine", config.rollout.engine, "is not in this version", "Use 'hf'"
        )
    for i, reward in enumerate(config.rewards):
        if reward.kind == "http" and not (here / "rewards" / "http.py").exists():
            raise UserError(
                f"rewards.{i}.kind", "http", "is not in this version", "Use 'model' or 'function'"
            )


def _divisor_near(total: int, wanted: int) -> int:
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - wanted))


def check_files(config: Config) -> None:
    """Raise UserError for a file or model that `config.method` reads and that does not exist."""
    data, method = config.data, config.method
    names = {NEEDED.get(method), "validation" if method in NEEDED else None}
    if method == "ppo" and data.prompts is None:
        names.add("preferences")
    if method == "ppo" and config.ppo.ptx_coef > 0:
        names.add("sft")
    for name in sorted(filter(None, names)):
        _file(f"data.{name}", getattr(data, name))
    if method in NEEDED and method != "tokenizer":
        _template(data.chat_template)
        _model("policy.path", config.policy.path)
        if config.train.resume not in ("auto", "never"):
            _file("train.resume", config.train.resume)
        if config.policy.lora is not None:
            _model("policy.lora.path", config.policy.lora.path)
    if method == "pretrain":
        _model("pretrain.tokenizer", config.pretrain.tokenizer, files=("tokenizer*",))
    if method == "ppo":
        _model("ppo.critic_path", config.ppo.critic_path)
        _file("eval.prompts", config.eval.prompts)
        for i, reward in enumerate(config.rewards):
            if reward.kind == "model":
                _model(f"rewards.{i}.path", reward.path)
            elif reward.kind == "function":
                _function(f"rewards.{i}.path", reward.path)


def _file(field: str, path: str | None) -> None:
    if path is None or path == "auto" or Path(path).exists():
        return
    raise missing_file(field, path)


def _template(template: str | None) -> None:
    names = ("chatml", "zh_instruction", "inst")
    if template is None or template in names:
        return None
    if template.endswith((".jinja", ".jinja2", ".txt")) or os.sep in template:
        return _file("data.chat_template", template)
    close = nearest(template, names)
    raise UserError(
        "data.chat_template", template, "is neither a named template nor a .jinja file",
        f"Did you mean '{close}'?" if close else f"One of: {', '.join(names)}",
    )  # fmt: skip


def _model(field: str, path: str | None, files: tuple[str, ...] = _MODEL_FILES) -> None:
    """A folder must hold a model; what is no folder may be a hub id `name` or `owner/name`."""
    if path is None or path == "auto":
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        if any(next(folder.glob(pattern), None) for pattern in files):
            return None
        inner = folder / "final"
        fix = f"Did you mean '{inner}'?" if inner.is_dir() else "Check the path"
        raise UserError(field, path, f"is a folder without {files[0]}", fix)
    parts = path.strip("/").split("/")
    local = path.startswith((".", "/", "~")) or len(parts) > 2 or Path(parts[0]).is_dir()
    if folder.exists():
        raise UserError(field, path, "is a file, not a model folder", "Give the folder")
    if local:
        return _file(field, path)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        home = os.environ.get("HF_HUB_CACHE") or os.path.join(
            os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub"
        )
        if not (Path(home).expanduser() / ("models--" + "--".join(parts))).is_dir():
            reason = "is no folder, and HF_HUB_OFFLINE forbids asking the hub for it"
            raise UserError(field, path, reason, "Check the path, or unset HF_HUB_OFFLINE")
    return None


def _function(field: str, path: str) -> None:
    module, _, name = path.rpartition(":")
    if not module or not name.isidentifier():
        reason = "does not name a python function"
        raise UserError(field, path, reason, "Write module:function or file.py:function")
    if module.endswith(".py"):
        return _file(field, module)
    top = module.split(".")[0]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a script's sys.path holds its own folder, not the cwd
    if find_spec(top) is None:
        raise UserError(field, path, f"names module '{top}', which is not found", "Check the name")
    return None
