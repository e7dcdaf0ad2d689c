"""Reading YAML and dotted overrides into nested dicts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from align.config_errors import UserError, missing_file

# Values that a file may unfold to: aliases of aliases make a few lines into billions.
MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-6 is a number, `no` is text; a key written twice is an error."""

    def get_single_node(self) -> yaml.Node | None:
        """The document's node; YAMLError where its aliases unfold to too much or to themselves."""
        node = super().get_single_node()
        _unfolded(node, {})
        return node


def _unfolded(node: Any, sizes: dict[int, int]) -> int:
    """Values below a node, those behind an alias counted every time."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.MarkedYAMLError(problem="holds itself", problem_mark=node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0  # until it is known
    parts = [p for pair in node.value for p in (pair if isinstance(pair, tuple) else (pair,))]
    total = 1 + sum(_unfolded(part, sizes) for part in parts)
    if total > MAX_VALUES:
        reason = f"unfolds to more than {MAX_VALUES} values"
        raise yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)
    sizes[id(node)] = total
    return total


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in resolvers if tag.rsplit(":", 1)[-1] not in ("bool", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        name = loader.construct_object(key_node)
        if name in seen:
            raise yaml.MarkedYAMLError(problem=f"key {name!r} is written twice",
                                       problem_mark=key_node.start_mark)  # fmt: skip
        seen.add(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_yaml(text: str) -> Any:
    """Return what a YAML text says; YAMLError for anything that is wrong with it."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, RecursionError) as error:
        # A date that does not exist, a list as a key, brackets a thousand deep.
        raise yaml.YAMLError(str(error).split("\n")[0]) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing_file("--config", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--config", str(path), f"cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError("--config", str(path), f"is not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError("--config", str(path), "holds no sections", "Write section: {key: value}")
    return loaded


def parse_value(key: str, text: str) -> Any:
    """Return the value that `text` would be in the YAML file."""
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        reason = "is not valid YAML"
        raise UserError(f"--{key}", text, reason, "Quote it for the shell") from error


def assign(tree: dict[str, Any], parts: list[str], value: Any, dotted: str) -> None:
    """Set one dotted key; whole numbers index lists; missing sections are created."""
    node: Any = tree
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                where = ".".join(parts[:i])
                raise UserError(
                    f"--{dotted}", value, f"does not name one of the {len(node)} items of {where}"
                )
            slot: Any = int(part)
        elif isinstance(node, dict):
            slot = part
            if not last and node.get(part) is None:
                node[part] = {}
        else:
            where = ".".join(parts[:i])
            raise UserError(f"--{dotted}", value, f"cannot be set: {where} is not a section")
        if last:
            node[slot] = value
        else:
            node = node[slot]
