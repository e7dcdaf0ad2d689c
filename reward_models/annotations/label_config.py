"""What a Label Studio labelling config says: which data field each tag shows, in what order.

Given as the XML itself, or as field names: ``prompt=question,left=answer_a,right=answer_b`` (for
more than two answers ``prompt=question,candidates=a1+a2+a3``, for a list ``items=answers``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from align.config_errors import UserError


@dataclass(frozen=True)
class LabelConfig:
    """A labelling config.

    fields: object name → data field. targets: control name → object names in ``toName`` order.
    kinds: control name → tag in lower case. buckets: ranker name → its bucket names. choices:
    control name → the choices that it offers, as they are exported.
    prompt, candidates (in display order), items (a List tag's): data fields, when known.
    """

    fields: dict[str, str] = field(default_factory=dict)
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    buckets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prompt: str | None = None
    candidates: tuple[str, ...] = ()
    items: str | None = None


def load_label_config(text: str) -> LabelConfig:
    """From the path of an XML file, XML text, or field names; UserError where it is none."""
    stripped = text.strip()
    if stripped.startswith("<"):
        return parse_xml(stripped)
    if "=" in stripped or ("," in stripped and not Path(stripped).exists()):
        return parse_fields(stripped)
    path = Path(stripped)
    if not path.is_file():
        raise UserError(
            "label_config",
            text,
            "is neither a file nor field names",
            "Give the labelling config's XML file, or left=FIELD,right=FIELD",
        )
    try:
        return parse_xml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError("label_config", text, "is not UTF-8 text", "Save it as UTF-8") from None


def parse_fields(text: str) -> LabelConfig:
    """From ``key=field`` items, or bare field names of the candidates in display order."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    given = dict(p.split("=", 1) for p in parts if "=" in p)
    bare = [p for p in parts if "=" not in p]
    unknown = given.keys() - {"prompt", "left", "right", "candidates", "items"}
    if unknown:
        raise UserError(
            "label_config",
            text,
            f"has unknown keys {sorted(unknown)}",
            "Use prompt, left and right, candidates, or items",
        )
    sides = [given[s] for s in ("left", "right") if s in given]
    names = sides or [n for n in given.get("candidates", "").split("+") if n] or bare
    if "items" not in given and len(set(names)) < 2:
        raise UserError(
            "label_config", text, "does not name two candidates", "Write left=FIELD,right=FIELD"
        )
    return LabelConfig(
        prompt=given.get("prompt"), candidates=tuple(names), items=given.get("items")
    )


def parse_xml(text: str) -> LabelConfig:
    """From the XML of a labelling config."""
    # A document type can define entities that expand without bound; no labelling config has one.
    if "<!doctype" in text.lower() or "<!entity" in text.lower():
        raise UserError("label_config", "XML", "declares a document type", "Remove the declaration")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(
            "label_config",
            "XML",
            f"is not well formed: {error}",
            "Copy it again from Settings > Labeling Interface > Code",
        ) from None
    fields, targets, kinds, buckets, choices, lists = {}, {}, {}, {}, {}, []
    for node in root.iter():
        tag, name = node.tag.lower(), node.get("name")
        if not name:
            continue
        if node.get("toName"):
            targets[name] = tuple(n.strip() for n in node.get("toName", "").split(",") if n.strip())
            kinds[name] = tag
            if tag == "ranker":
                buckets[name] = tuple(b.get("name", "") for b in node.iter() if b.tag == "Bucket")
            if tag == "choices":
                offered = (c for c in node.iter() if c.tag == "Choice")
                choices[name] = tuple(c.get("alias") or c.get("value") or "" for c in offered)
        elif (node.get("value") or "").startswith("$"):
            fields[name] = node.get("value", "")[1:]
            if tag == "list":
                lists.append(fields[name])
    pairwise = [
        fields[o]
        for c, objs in targets.items()
        if kinds[c] == "pairwise" and len(objs) == 2
        for o in objs
        if o in fields
    ]
    judged = {
        fields[o]
        for c, objs in targets.items()
        if kinds[c] in ("pairwise", "rating")
        for o in objs
        if o in fields
    }
    shown = [f for f in fields.values() if f not in judged and f not in lists]
    return LabelConfig(
        fields,
        targets,
        kinds,
        buckets,
        choices,
        prompt=_prompt_of(shown),
        candidates=tuple(dict.fromkeys(pairwise)),
        items=lists[0] if len(lists) == 1 else None,
    )


def _prompt_of(shown: Sequence[str]) -> str | None:
    """The one field shown beside the answers, unless several are."""
    names = list(dict.fromkeys(shown))
    return names[0] if len(names) == 1 else None


def object_field(config: LabelConfig | None, name: str, data: Mapping[str, object]) -> str | None:
    """The data field behind an object name of a result's ``to_name``."""
    if config is not None and name in config.fields:
        return config.fields[name]
    return name if name in data else None
