"""The page: one Jinja2 template with its style and script inlined, everything else escaped."""

from __future__ import annotations

import json
import math
import secrets
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.files import write_atomic

MAX_SAMPLES = 2000
MAX_CHARACTERS = 4_000_000  # of a page's samples
SCRIPTS = ("diff.js", "browser.js", "page.js")


def asset(name: str) -> str:
    """Text of a file in align/report/assets."""
    return (resources.files("align.report") / "assets" / name).read_text(encoding="utf-8")


def script_json(value: Any) -> Markup:
    r"""JSON for a <script type="application/json"> block.

    `<`, `>`, `&` and the two line separators become \u escapes, so no text can close the block.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    """NaN and infinities as strings: they are not JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def sample_store(
    rows: list[dict],
    *,
    group: str,
    group_label: str,
    value_label: str,
    colours: dict[str, int],
    base: str | None = None,
) -> dict | None:
    """What the template's sample browser needs; None without rows.

    rows: {"prompt", "group", "value", "answers": [{"name", "text", "facts"}]}; the last
    `MAX_SAMPLES` are kept, and of those as many as fit into `MAX_CHARACTERS`. group: what is shown
    first. A row may have an "id", by which a link finds it, and "tags" {name: value} to filter by;
    an answer a "score", "finished", and with base (the name of the answer that others are compared
    with) its "gain" over that.
    """
    if not rows:
        return None
    kept, size = [], 0
    for row in reversed(rows[-MAX_SAMPLES:]):
        size += len(row["prompt"]) + sum(len(a["text"]) + 160 for a in row["answers"])
        if kept and size > MAX_CHARACTERS:
            break
        kept.append(row)
    start = group if any(row["group"] == group for row in kept) else ""
    payload = {
        "rows": kept[::-1], "colours": colours, "base": base, "start": start,
        "labels": {"group": group_label, "value": value_label},
    }  # fmt: skip
    left = len(rows) - len(kept)
    return {
        "json": script_json(payload),
        "note": f"{left} earlier samples are left out of this page." if left else "",
    }


def write_page(path: Path, **content: Any) -> Path:
    """Render the template and replace `path` in one step.

    content: title, subtitle, verdict and whatever of stats, table, sections, tokens, samples,
    blocks, footer there is; absent parts are left out.
    """
    from jinja2 import Environment

    env = Environment(autoescape=True, trim_blocks=True)
    lists = ("stats", "sections", "tokens", "blocks")
    parts: dict[str, Any] = {**{name: [] for name in lists}, "table": None, "samples": None}
    html = env.from_string(asset("page.html")).render(
        css=Markup(asset("style.css")),
        js=Markup("\n".join(asset(name) for name in SCRIPTS)),
        nonce=secrets.token_hex(8),
        **{**parts, "footer": "", **content},
    )
    write_atomic(path, html.encode("utf-8", "replace").decode("utf-8"))
    return path
