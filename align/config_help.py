"""The text of `--help`: every key with its default and meaning, the method's own sections first."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from align import config_schema as schema
from align.config import SCRIPTS
from align.config_errors import NO_VALUE
from align.config_key import name_of

SUMMARY = {
    "tokenizer": "Train a tokenizer on raw text.",
    "pretrain": "Pre-train a language model on raw text.",
    "sft": "Supervised fine-tuning on instructions or conversations.",
    "reward": "Train a reward model on preferences.",
    "dpo": "Direct preference optimisation (and its relatives) on preferences.",
    "orpo": "Odds-ratio preference optimisation on preferences.",
    "ppo": "Proximal policy optimisation from a reward.",
}


def help_text(method: str) -> str:
    """Return the help of one method."""
    lines = [
        f"usage: [accelerate launch] recipes/{SCRIPTS[method]} [--config FILE] "
        "[--section.key VALUE …]",
        "",
        SUMMARY.get(method, ""),
        "",
        "  --config FILE    the YAML file; default: recipes/configs/demo.yaml",
        "  --print_config   print the resolved configuration and stop",
        "  --dry_run        also show batch sizes, one example with its loss mask and the memory",
        "                   estimate; nothing is trained or written",
        "  --help           this text",
        "",
        "One file serves all methods; any key can be overridden: --train.learning_rate 1e-6.",
        "Exit codes: 0 done, 1 the run failed, 2 wrong input, 75 stopped with a checkpoint saved.",
    ]
    own = [method] if method in schema.SECTIONS else []
    own += ["rollout"] if method == "ppo" else []
    rest = [name for name in schema.SECTIONS if name not in own]
    for name in own + rest:
        lines += ["", f"{name}:  {(schema.SECTIONS[name].__doc__ or '').strip()}"]
        lines += _section(schema.SECTIONS[name], name)
        if name == "rollout":
            lines += ["", f"rewards:  a list. {(schema.RewardSource.__doc__ or '').strip()}"]
            lines += _section(schema.RewardSource, "rewards.0")
    lines += [
        "",
        "per_method:  {method: {section: {key: value}}}, applied for that method only.",
        "",
        "train also takes every other name of transformers.TrainingArguments.",
    ]
    return "\n".join(lines)


def _section(cls: type, prefix: str) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        if cls is schema.Train and field.name == "args":
            continue
        default = _default(field)
        nested = default if dataclasses.is_dataclass(default) else None
        if field.name == "lora":
            nested = schema.Lora()
        if nested is not None:
            lines += _section(type(nested), f"{prefix}.{name_of(field)}")  # type: ignore[arg-type]
            continue
        name = f"--{prefix}.{name_of(field)}"
        lines.append(f"  {name:<34} {_text(default):<12} {field.metadata.get('help', '')}")
    return lines


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return NO_VALUE


def _text(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip() or '""'
