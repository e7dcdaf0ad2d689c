"""Inline SVG for the import report: columns and intervals, one drawing for light and dark.

Colours are CSS variables of the page; every text is escaped; values show on hovering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 380, 190, 44, 14, 34
ROW, NAME = 20, 130


@dataclass(frozen=True)
class Mark:
    """One column or dot. low, high: its interval. note: shown on hovering, beside the value."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


def columns(
    marks: Sequence[Mark], *, label: str, x_label: str, percent: bool = False,
    reference: float | None = None,
) -> Markup:  # fmt: skip
    """Columns from 0, with intervals. percent: values are shares. reference: a dashed line."""
    known = [m for m in marks if m.value is not None]
    if not known or not any(m.value for m in known):
        return nothing()
    top = 1.0 if percent else max(m.value or 0.0 for m in known)
    room, floor = WIDTH - LEFT - 8, HEIGHT - BOTTOM
    slot = room / len(marks)

    def y(value: float) -> float:
        return round(floor - value / top * (floor - TOP), 1)

    body = [_rule(LEFT, y(t), WIDTH - 8, y(t)) for t in (0.0, top / 2, top)]
    body += [_text(LEFT - 5, y(t) + 4, _number(t, percent), "end") for t in (0.0, top / 2, top)]
    if reference is not None:
        body.append(_rule(LEFT, y(reference), WIDTH - 8, y(reference), "reference"))
    for k, m in enumerate(marks):
        middle = round(LEFT + (k + 0.5) * slot, 1)
        body.append(_text(middle, floor + 14, m.name, "middle"))
        if m.value is None:
            continue
        width = min(slot * 0.7, 48)
        title = _title(m, percent)
        body.append(
            f'<rect class="bar" x="{middle - width / 2:.1f}" y="{y(m.value)}" width="{width:.1f}" '
            f'height="{max(floor - y(m.value), 0.5):.1f}">{title}</rect>'
        )
        if m.low is not None and m.high is not None:
            body.append(_rule(middle, y(m.low), middle, y(m.high), "whisker"))
    body.append(_text(LEFT + room / 2, HEIGHT - 4, x_label, "middle"))
    return _svg(WIDTH, HEIGHT, body, label)


def intervals(marks: Sequence[Mark], *, label: str, reference: float | None = None) -> Markup:
    """Shares between 0 and 1 with their intervals, one row each."""
    known = [m for m in marks if m.value is not None]
    if not known:
        return nothing()
    height = ROW * len(known) + 26

    def x(value: float) -> float:
        return round(NAME + value * (WIDTH - NAME - 20), 1)

    body = []
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_rule(x(t), 4, x(t), height - 20))
        body.append(_text(x(t), height - 6, _number(t, True), "middle"))
    if reference is not None:
        body.append(_rule(x(reference), 4, x(reference), height - 20, "reference"))
    for k, m in enumerate(known):
        y = 4 + ROW * (k + 0.5)
        body.append(_text(NAME - 8, y + 4, _short(m.name), "end"))
        if m.low is not None and m.high is not None:
            body.append(_rule(x(m.low), y, x(m.high), y, "whisker"))
        value = m.value or 0.0
        title = _title(m, True)
        body.append(f'<circle class="dot" cx="{x(value)}" cy="{y}" r="4">{title}</circle>')
    return _svg(WIDTH, height, body, label)


def nothing() -> Markup:
    """What stands where there is nothing to draw."""
    return Markup('<p class="soft">nothing to draw</p>')


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.0f} %"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _title(mark: Mark, percent: bool) -> str:
    value = f"{100 * (mark.value or 0):.1f} %" if percent else f"{mark.value:,.0f}"
    between = ""
    if mark.low is not None and mark.high is not None:
        between = f" ({100 * mark.low:.1f}–{100 * mark.high:.1f} %)"
    return f"<title>{escape(f'{mark.name}: {value}{between} {mark.note}'.strip())}</title>"


def _rule(x1: float, y1: float, x2: float, y2: float, css: str = "rule") -> str:
    return f'<line class="{css}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, body: list[str], label: str) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    # Safe as Markup: texts went through escape(), the rest is numbers and names of this module.
    return Markup(head + "".join(body) + "</svg>")
