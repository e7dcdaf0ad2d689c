"""What only pre-training decides in a configuration: presets, defaults, rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.config_errors import UserError

if TYPE_CHECKING:
    from align.config import Config

PRESETS: dict[str, dict[str, Any]] = {
    "mini": {"arch": "gpt2", "n_embd": 384, "n_layer": 4, "n_head": 6, "block_size": 256},
    "small": {"arch": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "block_size": 1024},
    "1b": {
        "arch": "llama", "n_embd": 2048, "n_layer": 16, "n_head": 32, "n_kv_head": 8,
        "intermediate_size": 8192, "block_size": 2048,
    },
}  # fmt: skip
SHAPE = ("arch", "n_embd", "n_layer", "n_head", "n_kv_head", "intermediate_size", "block_size")
# Brown et al. 2020 (arXiv:2005.14165), appendix B, and what nearly everyone has used since.
DEFAULTS: dict[str, Any] = {
    "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.1, "max_grad_norm": 1.0,
    "warmup_steps": 0.04, "lr_scheduler_type": "cosine",
}  # fmt: skip
RATE_FROM_NOTHING = 6e-4


def apply_preset(merged: dict[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
    """Write a preset's sizes into merged["pretrain"], in place.

    layers: the file, its overlay, the command line, the later winning. A size that stands in the
    preset's own layer or a later one is kept; sizes of earlier layers give way to the preset.
    """
    sections = [layer.get("pretrain") or {} for layer in layers]
    if not all(isinstance(section, Mapping) for section in sections):
        return  # said when the section is built
    given = [i for i, section in enumerate(sections) if section.get("preset") is not None]
    name = merged.get("pretrain", {}).get("preset") if given else None
    if not isinstance(name, str) or name not in PRESETS:
        return
    kept: dict[str, Any] = {}
    for section in sections[given[-1] :]:
        kept |= {key: section[key] for key in SHAPE if key in section}
    plain = {key: value for key, value in merged["pretrain"].items() if key not in SHAPE}
    merged["pretrain"] = {**plain, **PRESETS[name], **kept}


def fill_defaults(config: Config) -> None:
    """Give train.* what pre-training is usually done with, where nothing else was said."""
    args = config.train.args
    for name, value in DEFAULTS.items():
        args.setdefault(name, value)
    if config.policy.path in (None, "auto"):
        args.setdefault("learning_rate", RATE_FROM_NOTHING)


def check_pretrain(config: Config) -> None:
    """Raise UserError for combinations of `pretrain` and `train` keys that cannot work."""
    p, args = config.pretrain, config.train.args
    if p.streaming and args.get("max_steps", -1) <= 0:
        reason = "needs train.max_steps: how long a pass over the corpus is cannot be known"
        raise UserError("pretrain.streaming", True, reason, "Set train.max_steps")
    if p.sample_prompts and not (config.data.validation or config.data.validation_fraction):
        reason = "are continued at evaluations, for which there is no held-out text"
        fix = "Set data.validation or data.validation_fraction"
        raise UserError("pretrain.sample_prompts", p.sample_prompts, reason, fix)
    if p.arch != "bert":
        return
    for field, value, plain in (
        ("pretrain.document_mask", p.document_mask, False),
        ("pretrain.z_loss", p.z_loss, 0.0),
        ("pretrain.sample_prompts", p.sample_prompts, []),
        ("policy.lora", config.policy.lora, None),
    ):
        if value != plain:
            reason = "is not for arch bert, which fills in masked tokens"
            raise UserError(field, value, reason, f"Use {'null' if plain is None else plain}")
