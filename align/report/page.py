"""The page: one Jinja2 template with its style and script inlined, everything else escaped."""

from __future__ import annotations

import json
import math
import os
import secrets
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

MAX_SAMPLES = 2000


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
    rows: list[dict], *, group: str, group_label: str, value_label: str, colours: dict[str, int]
) -> dict | None:
    """What the template's sample browser needs; None without rows.

    rows: {"prompt", "group", "value", "answers": [{"name", "text", "facts"}]}; the last
    `MAX_SAMPLES` are kept.
    """
    if not rows:
        return None
    payload = {"rows": rows[-MAX_SAMPLES:], "colours": colours}
    return {
        "json": script_json(payload),
        "group": group,
        "group_label": group_label,
        "value_label": value_label,
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
        js=Markup(asset("page.js")),
        nonce=secrets.token_hex(8),
        **{**parts, "footer": "", **content},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_text(html, encoding="utf-8")
    os.replace(tmp, path)
    return path
