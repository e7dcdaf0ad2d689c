"""Charts of comparisons: a radar of categories, and points with intervals on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from align.report.charts import Bar
from align.report.charts_frame import COLOURS, Frame, circle, number, svg, text, ticks, whisker


def forest(items: Sequence[Bar], *, label: str, reference: float | None = None) -> Markup:
    """One point with its interval a row, on a shared scale; reference is drawn as a line."""
    items = [b for b in items if math.isfinite(b.value)]
    if not items:
        return Markup('<p class="muted">not measured</p>')
    row, width = 34, 360
    height = row * len(items) + 26
    edges = [] if reference is None else [reference]
    for b in items:
        edges += [b.value, *(v for v in (b.low, b.high) if v is not None)]
    frame = Frame(width, height, edges, [0, 1], 10, 22)
    pad = 0.05 * (frame.x_high - frame.x_low)
    frame.x_low, frame.x_high = frame.x_low - pad, frame.x_high + pad
    body = []
    for t in ticks(frame.x_low, frame.x_high, 5):
        x = frame.x(t)
        body.append(f'<line class="rule" x1="{x}" x2="{x}" y1="4" y2="{height - 22}"/>')
        body.append(text(x, height - 8, number(t), "middle"))
    if reference is not None:
        x = frame.x(reference)
        body.append(f'<line class="base" x1="{x}" x2="{x}" y1="4" y2="{height - 22}"/>')
    for i, b in enumerate(items):
        y = 16 + i * row
        if b.low is not None and b.high is not None:
            body.append(whisker(frame.x(b.low), y + 10, frame.x(b.high), y + 10))
        body.append(circle(frame.x(b.value), y + 10, 5, b.colour))
        body.append(text(10, y, f"{b.name}  {number(b.value)}", "start", "name"))
    return svg(width, height, body, label)


def radar(
    axes: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], int]],
    *,
    label: str,
    reference: float | None = None,
) -> Markup:
    """Values in [0, 1] on one spoke an axis; at least three axes.

    series: (name, a value for each axis, colour). reference: a dashed ring.
    """
    if len(axes) < 3:
        return Markup('<p class="muted">a radar needs three categories</p>')
    width, height, radius = 420, 320, 128
    middle = (width / 2, height / 2)

    def at(k: int, share: float) -> tuple[float, float]:
        turn = 2 * math.pi * k / len(axes) - math.pi / 2
        x, y = (
            middle[0] + radius * share * math.cos(turn),
            middle[1] + radius * share * math.sin(turn),
        )
        return round(x, 1), round(y, 1)

    def ring(values: Sequence[float]) -> str:
        return " ".join("{},{}".format(*at(k, v)) for k, v in enumerate(values))

    body = [f'<polygon class="ring" points="{ring([s] * len(axes))}"/>' for s in (0.25, 0.75, 1)]
    if reference is not None:
        body.append(f'<polygon class="ring reference" points="{ring([reference] * len(axes))}"/>')
    for k, name in enumerate(axes):
        x, y = at(k, 1.0)
        ends = f'x1="{middle[0]}" y1="{middle[1]}" x2="{x}" y2="{y}"'
        body.append(f'<line class="rule" {ends}/>')
        x, y = at(k, 1.09)
        side = "middle" if abs(x - middle[0]) < 12 else "start" if x > middle[0] else "end"
        body.append(text(x, y + 4, _short(name), side, "name"))
    for _, values, colour in series:
        paint = f'style="stroke:var(--c{colour % COLOURS});fill:var(--c{colour % COLOURS})"'
        body.append(f'<polygon class="area" {paint} points="{ring(values)}"/>')
        body += [circle(*at(k, v), 2.6, colour) for k, v in enumerate(values)]
    for share in (0.5, 1.0):
        x, y = at(0, share)
        body.append(text(x + 4, y + 10, f"{share:.0%}"))
    return svg(width, height, body, label)


def _short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
