"""Inline SVG charts: lines over steps, horizontal bars with intervals, and an x–y picture.

Colours come from the page's CSS variables --c0 … --c7, so one drawing serves both themes. Every
text is escaped by `_text`; hover values travel in a data attribute that page.js reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

COLOURS = 8
_MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line or point cloud. colour: index into the page's palette.

    points: (x, y), y may be NaN (a gap). style: "line", "line+points" or "points".
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: str = "line"


@dataclass(frozen=True)
class Bar:
    """One bar with an optional interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Dot:
    """A labelled final point of the x–y picture, with optional intervals on both axes."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    colour: int = 0
    trail: Sequence[tuple[float, float]] = field(default_factory=tuple)


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


def smooth(points: Sequence[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    """Two-sided exponential average: no lag, a straight line's middle stays where it is.

    Each point weighs `weight` to the power of its distance in points; gaps are passed over.
    """
    finite = _finite(points)
    sums = [[0.0, 0.0] for _ in finite]
    for order in (range(len(finite)), range(len(finite) - 1, -1, -1)):
        value = mass = 0.0
        for i in order:
            # The point itself is in both passes, at half weight each.
            sums[i][0] += value + finite[i][1] / 2
            sums[i][1] += mass + 0.5
            value, mass = weight * (value + finite[i][1]), weight * (mass + 1)
    return [(p[0], s[0] / s[1]) for p, s in zip(finite, sums, strict=True)]


def is_noisy(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a line is long and goes up and down far more than it gets anywhere."""
    ys = [y for _, y in _finite(points)]
    if len(ys) <= 30:
        return False
    travelled = sum(abs(b - a) for a, b in pairwise(ys))
    return travelled > 4 * (max(ys) - min(ys))


def thin(points: Sequence[tuple[float, float]], limit: int = _MAX_POINTS) -> list:
    """At most about `limit` points: of each block keep its lowest, highest and any gap."""
    points = list(points)
    if len(points) <= limit:
        return points
    size = math.ceil(2 * len(points) / limit)
    out = []
    for i in range(0, len(points), size):
        block = points[i : i + size]
        finite = [p for p in block if math.isfinite(p[1])]
        keep = {id(p) for p in block if not math.isfinite(p[1])}
        if finite:
            keep |= {id(min(finite, key=lambda p: p[1])), id(max(finite, key=lambda p: p[1]))}
        out.extend(p for p in block if id(p) in keep)
    return out


class _Frame:
    """The plot area: scales from data to drawing units, and the axes."""

    def __init__(
        self, width: int, height: int, xs: list[float], ys: list[float], left: int, bottom: int
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - 10, 10, height - bottom
        self.x_low, self.x_high = _padded(xs, 0.0)
        self.y_low, self.y_high = _padded(ys, 0.08)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def axes(self) -> list[str]:
        out = []
        for t in ticks(self.y_low, self.y_high):
            y = self.y(t)
            css = "rule zero" if t == 0 else "rule"
            ends = f'x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"'
            out.append(f'<line class="{css}" {ends}/>')
            out.append(_text(self.left - 6, y + 3.5, number(t), "end"))
        for t in ticks(self.x_low, self.x_high, 5):
            out.append(_text(self.x(t), self.bottom + 15, number(t), "middle"))
        return out


def _padded(values: list[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - share * (high - low), high + share * (high - low)


def _text(x: float, y: float, content: str, anchor: str = "start", css: str = "tick") -> str:
    return f'<text class="{css}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(width: int, height: int, body: list[str], label: str, data: object = None) -> Markup:
    hover = f" data-hover='{escape(json.dumps(data))}'" if data is not None else ""
    # Safe as Markup: every text in body went through escape().
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"{hover}>'
        + "".join(body)
        + "</svg>"
    )


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]


def _path(frame: _Frame, points: Sequence[tuple[float, float]], css: str, colour: int) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            parts.append(f"{pen}{frame.x(x)} {frame.y(y)}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{css}" style="stroke:var(--c{colour % COLOURS})" d="{"".join(parts)}"/>'


def _circle(x: float, y: float, r: float, colour: int, css: str = "dot") -> str:
    paint = f'style="fill:var(--c{colour % COLOURS})"'
    return f'<circle class="{css}" {paint} cx="{x}" cy="{y}" r="{r}"/>'


def lines(series: Sequence[Series], *, label: str, x_label: str = "step") -> Markup:
    """Lines over a shared x axis; long noisy lines get a faint raw trace under a smoothed one."""
    shown = [s for s in series if _finite(s.points)]
    if not shown:
        return Markup('<p class="muted">no finite values</p>')
    width, height = 360, 200
    flat = [p for s in shown for p in _finite(s.points)]
    frame = _Frame(width, height, [p[0] for p in flat], [p[1] for p in flat], 48, 24)
    body = frame.axes()
    for s in shown:
        points = thin(s.points)
        noisy = s.style == "line" and is_noisy(s.points)
        if s.style != "points":
            body.append(_path(frame, points, "line faint" if noisy else "line", s.colour))
        if noisy:
            body.append(_path(frame, thin(smooth(s.points, 0.8)), "line", s.colour))
        if s.style != "line" or len(points) == 1:
            body.extend(
                _circle(frame.x(x), frame.y(y), 2.6, s.colour) for x, y in _finite(points)
            )
    hover = {
        "x": x_label,
        "series": [
            {
                "name": s.name,
                "colour": s.colour % COLOURS,
                "points": [
                    [frame.x(x), frame.y(y), number(x), number(y)]
                    for x, y in _finite(thin(s.points))
                ],
            }
            for s in shown
        ],
    }
    return _svg(width, height, body, label, hover)


def bars(items: Sequence[Bar], *, label: str, reference: float | None = None) -> Markup:
    """Horizontal bars from 0 (or from `reference`, drawn as a line) with interval whiskers."""
    items = [b for b in items if math.isfinite(b.value)]
    if not items:
        return Markup('<p class="muted">not measured</p>')
    row, width = 34, 360
    height = row * len(items) + 26
    base = 0.0 if reference is None else reference
    edges = [base]
    for b in items:
        edges += [b.value, *(v for v in (b.low, b.high) if v is not None)]
    frame = _Frame(width, height, edges, [0, 1], 10, 22)
    pad = 0.04 * (frame.x_high - frame.x_low)
    frame.x_low, frame.x_high = frame.x_low - pad, frame.x_high + pad
    body = []
    for t in ticks(frame.x_low, frame.x_high, 5):
        x = frame.x(t)
        body.append(f'<line class="rule" x1="{x}" x2="{x}" y1="4" y2="{height - 22}"/>')
        body.append(_text(x, height - 8, number(t), "middle"))
    zero, names = frame.x(base), []
    for i, b in enumerate(items):
        y = 16 + i * row
        x = frame.x(b.value)
        names.append(_text(10, y, f"{b.name}  {number(b.value)}", "start", "name"))
        body.append(
            f'<rect style="fill:var(--c{b.colour % COLOURS})" x="{min(zero, x)}" y="{y + 4}" '
            f'width="{max(1.0, round(abs(x - zero), 1))}" height="10" rx="2"/>'
        )
        if b.low is not None and b.high is not None:
            body.append(_whisker(frame.x(b.low), y + 9, frame.x(b.high), y + 9))
    body.append(f'<line class="base" x1="{zero}" x2="{zero}" y1="4" y2="{height - 22}"/>')
    return _svg(width, height, body + names, label)


def _whisker(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="whisker" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def picture(dots: Sequence[Dot], *, label: str, x_label: str, y_label: str) -> Markup:
    """Final points with intervals, each with the trail of evaluations that led there."""
    if not dots:
        return Markup('<p class="muted">not measured</p>')
    width, height = 420, 320
    xs = [d.x for d in dots] + [v for d in dots for v in (d.x_interval or ())]
    ys = [d.y for d in dots] + [v for d in dots for v in (d.y_interval or ())]
    for d in dots:
        xs += [p[0] for p in _finite(d.trail)]
        ys += [p[1] for p in _finite(d.trail)]
    frame = _Frame(width, height, xs, ys, 48, 40)
    span = frame.x_high - frame.x_low
    frame.x_low, frame.x_high = frame.x_low - 0.05 * span, frame.x_high + 0.12 * span
    body = frame.axes()
    body.append(_text((frame.left + frame.right) / 2, height - 6, x_label, "middle", "name"))
    body.append(_text(frame.left + 4, 20, y_label, "start", "name"))
    for d in dots:
        trail = _finite(d.trail)
        body.append(_path(frame, trail, "line faint", d.colour) if len(trail) > 1 else "")
        body.extend(_circle(frame.x(x), frame.y(y), 2.2, d.colour, "dot faint") for x, y in trail)
    for d in dots:
        x, y = frame.x(d.x), frame.y(d.y)
        if d.x_interval:
            body.append(_whisker(frame.x(d.x_interval[0]), y, frame.x(d.x_interval[1]), y))
        if d.y_interval:
            body.append(_whisker(x, frame.y(d.y_interval[0]), x, frame.y(d.y_interval[1])))
    taken: list[tuple[float, float]] = []
    for d in sorted(dots, key=lambda d: -d.y):
        x, y = frame.x(d.x), frame.y(d.y)
        body.append(_circle(x, y, 5.5, d.colour))
        place = _free(x, y + 4, taken)
        side, anchor = (-9, "end") if x > 0.72 * width else (9, "start")
        body.append(_text(x + side, place, d.name, anchor, "label"))
    hover = {
        "x": x_label,
        "series": [
            {"name": d.name, "colour": d.colour % COLOURS,
             "points": [[frame.x(x), frame.y(y), number(x), number(y)]
                        for x, y in [*_finite(d.trail), (d.x, d.y)]]}
            for d in dots
        ],
    }  # fmt: skip
    return _svg(width, height, body, label, hover)


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> float:
    """Move a label down until no earlier label near it overlaps."""
    while any(abs(y - b) < 13 and abs(x - a) < 110 for a, b in taken):
        y += 13
    taken.append((x, y))
    return y
