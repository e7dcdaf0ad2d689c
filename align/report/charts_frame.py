"""What all charts are drawn with: scales, axes, escaped text, and numbers for people.

Colours come from the page's CSS variables --c0 … --c7, so one drawing serves both themes. Every
text is escaped by `text`; hover values travel in a data attribute that page.js reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

COLOURS = 8


def number(value: float | None) -> str:
    """A number for people: four significant digits, no trailing zeros, `–` for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round tick positions inside [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    out = []
    while (first * step) <= high + 1e-9 * span:
        out.append(0.0 if first == 0 else first * step)
        first += 1
    return out


class Frame:
    """The plot area: scales from data to drawing units, and the axes."""

    def __init__(
        self, width: int, height: int, xs: list[float], ys: list[float], left: int, bottom: int
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - 10, 10, height - bottom
        self.x_low, self.x_high = padded(xs, 0.0)
        self.y_low, self.y_high = padded(ys, 0.08)

    def x(self, value: float) -> float:
        """Drawing units from the left."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Drawing units from the top."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def axes(self) -> list[str]:
        """Rules and tick labels."""
        out = []
        for t in ticks(self.y_low, self.y_high):
            y = self.y(t)
            css = "rule zero" if t == 0 else "rule"
            ends = f'x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"'
            out.append(f'<line class="{css}" {ends}/>')
            out.append(text(self.left - 6, y + 3.5, number(t), "end"))
        for t in ticks(self.x_low, self.x_high, 5):
            out.append(text(self.x(t), self.bottom + 15, number(t), "middle"))
        return out


def padded(values: list[float], share: float) -> tuple[float, float]:
    """Lowest and highest value with a share of the span on both sides."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - share * (high - low), high + share * (high - low)


def text(x: float, y: float, content: str, anchor: str = "start", css: str = "tick") -> str:
    """A text element, escaped."""
    return f'<text class="{css}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'


def svg(width: int, height: int, body: list[str], label: str, data: object = None) -> Markup:
    """The whole drawing. label: for who cannot see it. data: what page.js shows on hover."""
    hover = f" data-hover='{escape(json.dumps(data))}'" if data is not None else ""
    # Safe as Markup: every text in body went through escape().
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"{hover}>'
        + "".join(body)
        + "</svg>"
    )


def finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points without NaN and infinities."""
    return [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]


def path(frame: Frame, points: Sequence[tuple[float, float]], css: str, colour: int) -> str:
    """A line with gaps where y is NaN."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            parts.append(f"{pen}{frame.x(x)} {frame.y(y)}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{css}" style="stroke:var(--c{colour % COLOURS})" d="{"".join(parts)}"/>'


def circle(x: float, y: float, r: float, colour: int, css: str = "dot") -> str:
    """A point."""
    paint = f'style="fill:var(--c{colour % COLOURS})"'
    return f'<circle class="{css}" {paint} cx="{x}" cy="{y}" r="{r}"/>'


def band(frame: Frame, rows: Sequence[tuple[float, float, float]], colour: int) -> str:
    """The area between low and high along x. rows: (x, low, high)."""
    rows = [r for r in rows if all(math.isfinite(v) for v in r)]
    if len(rows) < 2:
        return ""
    edge = [(x, low) for x, low, _ in rows] + [(x, high) for x, _, high in reversed(rows)]
    points = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in edge)
    return f'<polygon class="band" style="fill:var(--c{colour % COLOURS})" points="{points}"/>'


def whisker(x1: float, y1: float, x2: float, y2: float, css: str = "whisker") -> str:
    """The line of an interval."""
    return f'<line class="{css}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def free_place(x: float, y: float, taken: list[tuple[float, float]]) -> float:
    """Move a label down until no earlier label near it overlaps."""
    while any(abs(y - b) < 13 and abs(x - a) < 110 for a, b in taken):
        y += 13
    taken.append((x, y))
    return y
