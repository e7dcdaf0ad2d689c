"""Inline SVG charts: lines over steps, horizontal bars with intervals, and an x–y picture.

Colours come from the page's CSS variables --c0 … --c7, so one drawing serves both themes. Every
text is escaped by `text`; hover values travel in a data attribute that page.js reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from align.report.charts_frame import (
    COLOURS,
    Frame,
    band,
    circle,
    finite,
    free_place,
    number,
    path,
    svg,
    text,
    ticks,
    whisker,
)

__all__ = ["COLOURS", "Bar", "Dot", "Series", "bars", "is_noisy", "lines", "number", "picture",
           "smooth", "thin", "ticks"]  # fmt: skip
_MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line or point cloud. colour: index into the page's palette.

    points: (x, y), y may be NaN (a gap). style: "line", "line+points" or "points". band: (x, low,
    high) of its interval, or nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: str = "line"
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)


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
    """A labelled final point of the x–y picture, with optional intervals on both axes.

    trail: the points that led there; trail_intervals: low and high of y for each, or nothing.
    """

    name: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    colour: int = 0
    trail: Sequence[tuple[float, float]] = field(default_factory=tuple)
    trail_intervals: Sequence[tuple[float, float]] = field(default_factory=tuple)


def smooth(points: Sequence[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    """Two-sided exponential average: no lag, a straight line's middle stays where it is.

    Each point weighs `weight` to the power of its distance in points; gaps are passed over.
    """
    known = finite(points)
    sums = [[0.0, 0.0] for _ in known]
    for order in (range(len(known)), range(len(known) - 1, -1, -1)):
        value = mass = 0.0
        for i in order:
            # The point itself is in both passes, at half weight each.
            sums[i][0] += value + known[i][1] / 2
            sums[i][1] += mass + 0.5
            value, mass = weight * (value + known[i][1]), weight * (mass + 1)
    return [(p[0], s[0] / s[1]) for p, s in zip(known, sums, strict=True)]


def is_noisy(points: Sequence[tuple[float, float]]) -> bool:
    """Whether a line is long and goes up and down far more than it gets anywhere."""
    ys = [y for _, y in finite(points)]
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
        known = [p for p in block if math.isfinite(p[1])]
        keep = {id(p) for p in block if not math.isfinite(p[1])}
        if known:
            keep |= {id(min(known, key=lambda p: p[1])), id(max(known, key=lambda p: p[1]))}
        out.extend(p for p in block if id(p) in keep)
    return out


def lines(series: Sequence[Series], *, label: str, x_label: str = "step") -> Markup:
    """Lines over a shared x axis; long noisy lines get a faint raw trace under a smoothed one."""
    shown = [s for s in series if finite(s.points)]
    if not shown:
        return Markup('<p class="muted">no finite values</p>')
    width, height = 360, 200
    flat = [p for s in shown for p in finite(s.points)]
    edges = [v for s in shown for r in s.band for v in r[1:] if math.isfinite(v)]
    frame = Frame(width, height, [p[0] for p in flat], [p[1] for p in flat] + edges, 48, 24)
    body = frame.axes() + [band(frame, s.band, s.colour) for s in shown if s.band]
    for s in shown:
        points = thin(s.points)
        noisy = s.style == "line" and is_noisy(s.points)
        if s.style != "points":
            body.append(path(frame, points, "line faint" if noisy else "line", s.colour))
        if noisy:
            body.append(path(frame, thin(smooth(s.points, 0.8)), "line", s.colour))
        if s.style != "line" or len(points) == 1:
            body.extend(circle(frame.x(x), frame.y(y), 2.6, s.colour) for x, y in finite(points))
    hover = {
        "x": x_label,
        "series": [
            {
                "name": s.name,
                "colour": s.colour % COLOURS,
                "points": [
                    [frame.x(x), frame.y(y), number(x), number(y)]
                    for x, y in finite(thin(s.points))
                ],
            }
            for s in shown
        ],
    }
    return svg(width, height, body, label, hover)


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
    frame = Frame(width, height, edges, [0, 1], 10, 22)
    pad = 0.04 * (frame.x_high - frame.x_low)
    frame.x_low, frame.x_high = frame.x_low - pad, frame.x_high + pad
    body = []
    for t in ticks(frame.x_low, frame.x_high, 5):
        x = frame.x(t)
        body.append(f'<line class="rule" x1="{x}" x2="{x}" y1="4" y2="{height - 22}"/>')
        body.append(text(x, height - 8, number(t), "middle"))
    zero, names = frame.x(base), []
    for i, b in enumerate(items):
        y = 16 + i * row
        x = frame.x(b.value)
        names.append(text(10, y, f"{b.name}  {number(b.value)}", "start", "name"))
        body.append(
            f'<rect style="fill:var(--c{b.colour % COLOURS})" x="{min(zero, x)}" y="{y + 4}" '
            f'width="{max(1.0, round(abs(x - zero), 1))}" height="10" rx="2"/>'
        )
        if b.low is not None and b.high is not None:
            body.append(whisker(frame.x(b.low), y + 9, frame.x(b.high), y + 9))
    body.append(f'<line class="base" x1="{zero}" x2="{zero}" y1="4" y2="{height - 22}"/>')
    return svg(width, height, body + names, label)


def picture(dots: Sequence[Dot], *, label: str, x_label: str, y_label: str) -> Markup:
    """Final points with intervals, each with the trail of evaluations that led there."""
    if not dots:
        return Markup('<p class="muted">not measured</p>')
    width, height = 420, 320
    xs = [d.x for d in dots] + [v for d in dots for v in (d.x_interval or ())]
    ys = [d.y for d in dots] + [v for d in dots for v in (d.y_interval or ())]
    for d in dots:
        xs += [p[0] for p in finite(d.trail)]
        ys += [p[1] for p in finite(d.trail)] + [v for pair in d.trail_intervals for v in pair]
    frame = Frame(width, height, xs, ys, 48, 40)
    span = frame.x_high - frame.x_low
    frame.x_low, frame.x_high = frame.x_low - 0.05 * span, frame.x_high + 0.12 * span
    body = frame.axes()
    body.append(text((frame.left + frame.right) / 2, height - 6, x_label, "middle", "name"))
    if y_label:
        body.append(text(frame.left + 4, 20, y_label, "start", "name"))
    for d in dots:
        trail = finite(d.trail)
        body.append(path(frame, trail, "line faint", d.colour) if len(trail) > 1 else "")
        for (x, _), (low, high) in zip(d.trail, d.trail_intervals, strict=False):
            ends = (frame.x(x), frame.y(low), frame.x(x), frame.y(high))
            body.append(whisker(*ends, css="whisker faint"))
        body.extend(circle(frame.x(x), frame.y(y), 2.6, d.colour, "dot soft") for x, y in trail)
    for d in dots:
        x, y = frame.x(d.x), frame.y(d.y)
        if d.x_interval:
            body.append(whisker(frame.x(d.x_interval[0]), y, frame.x(d.x_interval[1]), y))
        if d.y_interval:
            body.append(whisker(x, frame.y(d.y_interval[0]), x, frame.y(d.y_interval[1])))
    taken: list[tuple[float, float]] = []
    for d in sorted(dots, key=lambda d: -d.y):
        x, y = frame.x(d.x), frame.y(d.y)
        body.append(circle(x, y, 5.5, d.colour))
        place = free_place(x, y + 4, taken)
        side, anchor = (-9, "end") if x > 0.72 * width else (9, "start")
        body.append(text(x + side, place, d.name, anchor, "label"))
    hover = {
        "x": x_label,
        "series": [
            {"name": d.name, "colour": d.colour % COLOURS,
             "points": [[frame.x(x), frame.y(y), number(x), number(y)]
                        for x, y in [*finite(d.trail), (d.x, d.y)]]}
            for d in dots
        ],
    }  # fmt: skip
    return svg(width, height, body, label, hover)
