"""The one configuration: a YAML file plus dotted overrides, checked before torch is imported.

    config = load_config("dpo", ["--config", "my.yaml", "--train.learning_rate", "1e-6"])

Order: defaults < file < the file's `per_method.<method>` < command line. Every section is checked,
also those the method does not use; files are looked for only where the method reads them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align import config_checks, config_files, config_own_data, config_parse, config_pretrain
from align import config_schema as schema
from align.config_errors import NO_VALUE, StopRequested, UserError, nearest
from align.config_key import name_of
from align.config_secrets import check_secrets, check_texts
from align.config_yaml import assign, parse_value, read_yaml

__all__ = ["Config", "StopRequested", "UserError", "load_config", "nearest", "parse_argv"]

METHODS = ("tokenizer", "pretrain", "sft", "reward", "dpo", "orpo", "ppo")
TOOLS = (
    "clean_corpus", "import_annotations", "evaluate_policy", "compare_runs",
    "export_model", "serve_model", "check_server", "drift_report", "setup_engine", "generate",
    "red_team", "canaries", "arena", "best_of_n", "iterate", "demo",
)  # fmt: skip
SCRIPTS = {name: f"{name}.py" for name in METHODS} | {"tokenizer": "train_tokenizer.py"}
# Options that stand for a key, as they are usually written.
SHORT = {"extend": "tokenizer.extend"}
DEFAULT_FILE = Path(__file__).resolve().parent.parent / "recipes" / "configs" / "demo.yaml"


@dataclass
class Config:
    """All sections, for one method; see config_schema for the keys."""

    method: str
    policy: schema.Policy = field(default_factory=schema.Policy)
    data: schema.Data = field(default_factory=schema.Data)
    train: schema.Train = field(default_factory=schema.Train)
    sft: schema.Sft = field(default_factory=schema.Sft)
    reward: schema.RewardModel = field(default_factory=schema.RewardModel)
    dpo: schema.Dpo = field(default_factory=schema.Dpo)
    orpo: schema.Orpo = field(default_factory=schema.Orpo)
    ppo: schema.Ppo = field(default_factory=schema.Ppo)
    rollout: schema.Rollout = field(default_factory=schema.Rollout)
    rewards: list[schema.RewardSource] = field(default_factory=list)
    eval: schema.Eval = field(default_factory=schema.Eval)
    pretrain: schema.Pretrain = field(default_factory=schema.Pretrain)
    tokenizer: schema.Tokenizer = field(default_factory=schema.Tokenizer)
    iterate: schema.Iterate = field(default_factory=schema.Iterate)
    demo: schema.Demo = field(default_factory=schema.Demo)
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    per_method: dict[str, Any] = field(default_factory=dict)
    arguments: Arguments = field(default_factory=lambda: Arguments(), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts that, as YAML, load to this same configuration.

        The method's own overlay is already in the sections; `per_method` holds the others.
        """
        out = dataclasses.asdict(self)
        for name, section in schema.SECTIONS.items():
            keys = {f.name: name_of(f) for f in dataclasses.fields(section)}
            out[name] = {keys[field]: value for field, value in out[name].items()}
        del out["method"], out["arguments"]
        out["train"].update(out["train"].pop("args"))
        return out

    def to_yaml(self) -> str:
        """Return `to_dict` as YAML text."""
        return yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False, width=100)

    @property
    def reference(self) -> str:
        """The reference mode that `policy.reference` means for this method."""
        mode = self.policy.reference
        free = self.method == "dpo" and self.dpo.loss_type in config_checks.REFERENCE_FREE
        if self.method not in config_checks.USES_REFERENCE or free:
            return "none"
        if mode == "auto":
            return "frozen" if self.policy.lora is None else "adapter_off"
        return mode

    @property
    def texts(self) -> dict[str, float]:
        """The paths of data.text with their weights; {} where there are none."""
        text = self.data.text
        return dict(text) if isinstance(text, dict) else {text: 1.0} if text else {}

    @property
    def packs(self) -> bool:
        """Whether several examples share a row, each hidden from the others."""
        if self.method == "pretrain":
            return self.pretrain.document_mask
        return self.method == "sft" and self.sft.packing

    @property
    def row_length(self) -> int:
        """Tokens that a row of several examples may hold."""
        return self.pretrain.block_size if self.method == "pretrain" else self.data.max_length

    @property
    def prompts_path(self) -> str | None:
        """The file of the prompts: data.prompts, else those of data.preferences."""
        return self.data.prompts or self.data.preferences


@dataclass
class Arguments:
    """The command line, split: a file, overrides in order, and flags."""

    file: str | None = None
    overrides: list[tuple[str, str]] = field(default_factory=list)
    print_config: bool = False
    dry_run: bool = False
    help: bool = False


def parse_argv(argv: list[str]) -> Arguments:
    """Split a command line; accepts `--key value` and `--key=value`."""
    out = Arguments()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            out.help = True
            continue
        if name in ("--print_config", "--dry_run") and not equals:
            setattr(out, name[2:], True)
            continue
        if not name.startswith("--") or name == "--":
            raise UserError(
                "command line", word, "is not an option", "Write --config FILE or --section.key V"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(name, NO_VALUE, "needs a value", f"Write {name} VALUE")
            value = rest.pop(0)
        if name == "--config":
            out.file = value
        elif name not in ("--local_rank", "--local-rank"):  # given by some launchers
            out.overrides.append((SHORT.get(name[2:], name[2:]), value))
    return out


def load_config(method: str, argv: list[str]) -> Config:
    """Return the checked configuration of `method`; raise UserError on anything wrong."""
    if method not in METHODS + TOOLS:
        raise ValueError(f"unknown method {method!r}")
    arguments = parse_argv(argv)
    path = Path(arguments.file) if arguments.file else DEFAULT_FILE
    raw = read_yaml(path)
    given = [raw, *({key: parse_value(key, text)} for key, text in arguments.overrides)]
    for tree in given:
        check_secrets(tree)
        check_texts(tree)
    resolve_paths(raw, path.parent)
    overlays = raw.pop("per_method", None) or {}
    for key, text in arguments.overrides:
        first, _, rest = key.partition(".")
        if first == "per_method" and rest:
            assign(overlays, rest.split("."), parse_value(key, text), key)
        elif first == "per_method":
            overlays = parse_value(key, text) or {}
    check_overlays(raw, overlays)
    overlay = overlays.get(method) or {}
    merged, said = merge(raw, overlay), {}
    for key, text in arguments.overrides:
        if key.partition(".")[0] != "per_method":
            assign(merged, key.split("."), parse_value(key, text), key)
            if key.startswith("pretrain."):
                assign(said, key.split("."), parse_value(key, text), key)
    config_pretrain.apply_preset(merged, (raw, overlay, said))
    config = build(method, merged)
    config.per_method = {name: o for name, o in overlays.items() if name != method}
    config.arguments = arguments
    given = merged.get("policy") or {}
    if method in ("tokenizer", "pretrain") and "path" not in given:
        config.policy.path = None
    elif method in METHODS and "path" not in given:
        raise UserError(
            "policy.path", NO_VALUE, "is not set",
            "Give a model folder or hub id; auto for the demo's model; null for a tiny random one",
        )  # fmt: skip
    finish(config)
    return config


def build(method: str, raw: Mapping[str, Any]) -> Config:
    """Return the sections of a merged mapping, types and ranges checked."""
    sections: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "rewards":
            sections[name] = _rewards(value)
        elif name == "tools":
            sections[name] = _tools(value)
        elif name in schema.SECTIONS:
            given = {} if value is None else value
            sections[name] = config_parse.build(schema.SECTIONS[name], given, name)
        else:
            known = [*schema.SECTIONS, "rewards", "tools", "per_method"]
            raise config_parse.unknown(str(name), value, known)
    return Config(method=method, **sections)


def _rewards(value: Any) -> list[schema.RewardSource]:
    if not isinstance(value, list):
        raise UserError("rewards", value, "is not a list", "Write [{kind: model, path: …}]")
    return [config_parse.build(schema.RewardSource, v, f"rewards.{i}") for i, v in enumerate(value)]


def _tools(value: Any) -> dict[str, dict[str, Any]]:
    """Options of the other recipes, which check them themselves when they run."""
    if not isinstance(value, Mapping):
        raise UserError("tools", value, "is not a section", "Write recipe: {option: value}")
    for name, options in value.items():
        if name not in TOOLS:
            close = nearest(str(name), TOOLS)
            fix = f"Did you mean 'tools.{close}'?" if close else f"One of: {', '.join(TOOLS)}"
            raise UserError(f"tools.{name}", options, "is not a tool", fix)
        if not isinstance(options, Mapping):
            raise UserError(f"tools.{name}", options, "is not a section", "Write {option: value}")
    return {name: dict(options) for name, options in value.items()}


def finish(config: Config) -> None:
    """Fill what follows from other keys, then check rules and files."""
    args = config.train.args
    args.setdefault("report_to", "none")
    for new in ("activation_checkpointing", "activation_checkpointing_kwargs"):
        if new in args:  # one name inside: the one that all supported versions take
            args[new.replace("activation", "gradient")] = args.pop(new)
    if args.get("lr_scheduler_type") == "wsd":
        args["lr_scheduler_type"] = "warmup_stable_decay"
    if config.method == "pretrain":
        config_pretrain.fill_defaults(config)
    if args.get("eval_steps") is not None:
        args.setdefault("eval_strategy", "steps")
    if config.train.output_dir == "auto":
        config.train.output_dir = os.path.join(config.demo.root, config.method)
    config_own_data.follow_own_data(config)
    config_checks.check_rules(config)
    config_files.check_files(config)


def check_overlays(raw: Mapping[str, Any], overlays: Any) -> None:
    """Check every method's overlay, also those of methods that are not run."""
    if not isinstance(overlays, Mapping):
        raise UserError("per_method", overlays, "is not a section", "Write method: {section: …}")
    for name, overlay in overlays.items():
        if name not in METHODS + TOOLS:
            close = nearest(str(name), METHODS + TOOLS)
            fix = f"Did you mean '{close}'?" if close else f"One of: {', '.join(METHODS)}"
            raise UserError(f"per_method.{name}", overlay, "is not a method", fix)
        if not isinstance(overlay, Mapping):
            raise UserError(f"per_method.{name}", overlay, "is not a section")
        try:
            build(name, merge(raw, overlay))
        except UserError as error:
            if _holds(overlay, error.field):
                error.field = f"per_method.{name}.{error.field}"
            raise


def _holds(overlay: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(overlay, Mapping) or part not in overlay:
            return isinstance(overlay, list)
        overlay = overlay[part]
    return True


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top, section by section; lists are replaced."""
    out = {k: merge(v, {}) if isinstance(v, Mapping) else v for k, v in base.items()}
    for name, value in over.items():
        old = out.get(name)
        # Weights of data.text belong together: those of an overlay replace them.
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and name != "text"
        out[name] = merge(old, value) if both else value  # type: ignore[arg-type]
    return out


def resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    """Point paths that do not exist from here at the YAML file's folder, where they do."""
    layers = [raw]
    overlays = raw.get("per_method")
    if isinstance(overlays, dict):
        layers += [layer for layer in overlays.values() if isinstance(layer, dict)]
    for layer in layers:
        for node, name in _path_slots(layer):
            value = node[name]
            if isinstance(value, str):
                node[name] = _found(value, folder)
            elif name == "text" and isinstance(value, dict):
                node[name] = {_found(str(path), folder): w for path, w in value.items()}
            elif name == "text" and isinstance(value, list):
                node[name] = [_found(path, folder) for path in map(str, value)]


def _found(value: str, folder: Path) -> str:
    """Return the path as it is, or below `folder` where it exists only there."""
    if os.path.isabs(value) or Path(value).exists():
        return value
    file, colon, function = value.partition(".py:")
    file += ".py" if colon else ""
    if not (folder / file).exists():
        return value
    return os.path.normpath(folder / file) + (f":{function}" if colon else "")


def _path_slots(layer: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    names = {
        "policy": ("path",),
        "data": ("text", "sft", "preferences", "prompts", "validation", "chat_template"),
        "pretrain": ("tokenizer",),
        "tokenizer": ("extend",),
        "ppo": ("critic_path",),
        "eval": ("prompts", "suite", "judge"),
        "iterate": ("judge",),
    }
    nodes: list[tuple[Any, Any]] = [(layer.get(section), keys) for section, keys in names.items()]
    rewards = layer.get("rewards")
    tools = layer.get("tools")
    for options in tools.values() if isinstance(tools, dict) else ():
        # Outputs are made relative to where the user is, so only what exists is looked up.
        nodes.append((options, tuple(options) if isinstance(options, dict) else ()))
    section = layer.get("tokenizer")
    compared = section.get("compare_with") if isinstance(section, dict) else None
    nodes += [(compared, range(len(compared)))] if isinstance(compared, list) else []
    nodes += [(reward, ("path",)) for reward in (rewards if isinstance(rewards, list) else [])]
    for node, keys in nodes:
        if isinstance(node, dict):
            yield from ((node, name) for name in keys if node.get(name) not in (None, "auto"))
        elif isinstance(node, list):  # a section that is a list is refused when it is built
            yield from ((node, name) for name in keys if isinstance(name, int))
