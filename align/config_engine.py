"""Rules of `rollout.engine`: what vLLM cannot do is said before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING

from align.config_errors import UserError

if TYPE_CHECKING:
    from align.config import Config

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be (vllm/config/lora.py, 1 and 4.. aside: a larger one serves them)."""
_OURS = ("--model", "--host", "--port", "--served-model-name", "--generation-config",
         "--logprobs-mode", "--enable-lora", "--max-lora-rank")  # fmt: skip
_NOT_ADAPTED = ("embed_tokens", "lm_head", "wte", "wpe")


def check_engine(config: Config, *, cpu: bool, train: bool = True) -> None:
    """Raise UserError for an engine that cannot sample as configured.

    cpu: whether there is no accelerator. train: whether weights are pushed and log-probs used.
    """
    engine = config.rollout.engine
    if engine == "hf":
        return
    if engine == "vllm_colocate":
        _colocate(config, train)
    else:
        _server(config)
    if train:
        _trained(config, cpu)


def max_lora_rank(rank: int) -> int:
    """The smallest --max-lora-rank that serves adapters of this rank."""
    return next(r for r in LORA_RANKS if r >= rank)


def _colocate(config: Config, train: bool) -> None:
    field, value, server = "rollout.engine", "vllm_colocate", config.rollout.server
    if not train:
        reason = "shares a device with a trainer, and nothing is trained here"
        raise UserError(field, value, reason, "Use vllm_server, or hf")
    if config.rollout.sync == "nccl":
        reason = "sends weights to a server, and vllm_colocate has none"
        raise UserError("rollout.sync", "nccl", reason, "Use reload, or lora")
    for item in fields(server):
        if (given := getattr(server, item.name)) != getattr(type(server)(), item.name):
            reason = "is of a server, and rollout.engine=vllm_colocate has none"
            raise UserError(f"rollout.server.{item.name}", given, reason, "Remove one of the two")
    if find_spec("vllm") is None:
        reason = "needs vllm in the environment that trains"
        fix = (
            "Make one: python recipes/setup_engine.py vllm-train, and start the recipe with its "
            "bin/python; or use vllm_server"
        )
        raise UserError(field, value, reason, fix)


def _server(config: Config) -> None:
    from align.config_files import check_url
    from align.engines.vllm import interpreter

    server = config.rollout.server
    if server.url is not None:
        fix = "Write http://host:port"
        check_url("rollout.server.url", server.url, fix=fix, token="ALIGN_ENGINE_TOKEN")
        for name in ("python", "args", "gpus", "log_dir"):
            if value := getattr(server, name):
                reason = "is of a server that the run starts, and rollout.server.url names another"
                raise UserError(f"rollout.server.{name}", value, reason, "Remove one of the two")
        return
    for word in server.args:
        if word.split("=")[0] in _OURS:
            reason = f"has {word.split('=')[0]}, which the run sets itself"
            raise UserError("rollout.server.args", server.args, reason, "Remove it")
    interpreter(server.python, "rollout.server.python")


def _trained(config: Config, cpu: bool) -> None:
    """What PPO needs beside samples: their log-probs, and a way for new weights."""
    policy, rollout = config.policy, config.rollout
    for name, off in (("top_p", 1.0), ("top_k", 0)):
        value = getattr(rollout, name)
        if value != off:
            reason = (
                f"cannot be used with rollout.engine={rollout.engine}: its log-probs would be of "
                "the truncated distribution, and not of the policy"
            )
            raise UserError(f"rollout.{name}", value, reason, f"Use {off}, or engine: hf")
    if policy.quantization:
        reason = f"cannot be used with rollout.engine={rollout.engine}: k-bit weights are not sent"
        raise UserError("policy.quantization", policy.quantization, reason, "Use null, or hf")
    if rollout.sync == "nccl":
        _nccl(cpu)
    if rollout.sync == "lora":
        _lora(config)


def _nccl(cpu: bool) -> None:
    field, value = "rollout.sync", "nccl"
    if cpu:
        raise UserError(field, value, "needs CUDA in trainer and server", "Use reload, or lora")
    if find_spec("vllm") is None:
        reason = "needs vllm in the trainer's environment too, for trl's client"
        raise UserError(field, value, reason, "pip install vllm, or use reload")


def _lora(config: Config) -> None:
    lora, field = config.policy.lora, "rollout.sync"
    if lora is None:
        raise UserError(field, "lora", "needs policy.lora", "Use reload")
    if lora.r > LORA_RANKS[-1]:
        reason = f"is above {LORA_RANKS[-1]}, the largest that vLLM adds to a model"
        raise UserError("policy.lora.r", lora.r, reason, "Lower it, or use rollout.sync: reload")
    named = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    for name in named:
        if name.split(".")[-1] in _NOT_ADAPTED:
            reason = f"has {name}, whose adapter vLLM does not add"
            fix = "Leave it out, or use rollout.sync: reload"
            raise UserError("policy.lora.target_modules", lora.target_modules, reason, fix)
