"""Inline SVG for the evaluation report: one drawing for light and dark, values on hovering.

Colours are CSS variables of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 520, 320, 56, 44, 12, 14
Point = tuple[float, float]


class Plot:
    """Axes and marks. x, y: (low, high) of the data; a range without extent is widened.

    x_ticks: {value: label} in place of round numbers.
    """

    def __init__(
        self,
        x: Point,
        y: Point,
        x_label: str,
        y_label: str,
        label: str,
        x_ticks: dict[float, str] | None = None,
    ):
        self.x_range, self.y_range = _wide(x), _wide(y)
        self.label, self.body = label, []
        for t in ticks(*self.y_range):
            self._rule(LEFT, self.y(t), WIDTH - RIGHT, self.y(t), "zero" if t == 0 else "rule")
            self._text(LEFT - 6, self.y(t) + 4, number(t), "end")
        for t, text in (x_ticks or {t: number(t) for t in ticks(*self.x_range)}).items():
            self._rule(self.x(t), TOP, self.x(t), HEIGHT - BOTTOM, "zero" if t == 0 else "rule")
            self._text(self.x(t), HEIGHT - BOTTOM + 16, text, "middle")
        self._text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle")
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turn = f' transform="rotate(-90 12 {middle:.1f})"'
        self._text(12, middle, y_label, "middle", turn)

    def x(self, value: float) -> float:
        """Drawing unit of a data value."""
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Drawing unit of a data value."""
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def line(self, points: Sequence[Point], css: str) -> None:
        """A line through points."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.body.append(f'<polyline class="line {css}" points="{path}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], css: str) -> None:
        """The area between low and high of (x, low, high)."""
        edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in points[::-1]]
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in edge)
        self.body.append(f'<polygon class="band {css}" points="{path}"/>')

    def dot(self, x: float, y: float, css: str, title: str, radius: float = 4) -> None:
        """A dot with its values to be read on hovering."""
        place = f'cx="{self.x(x)}" cy="{self.y(y)}" r="{radius}"'
        self.body.append(
            f'<circle class="dot {css}" {place}><title>{escape(title)}</title></circle>'
        )

    def whisker(self, x: float, low: float, high: float) -> None:
        """A vertical interval."""
        self._rule(self.x(x), self.y(low), self.x(x), self.y(high), "whisker")

    def svg(self) -> Markup:
        """The drawing."""
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.label)}">'
        # Safe: every text went through escape(), the rest is numbers and names of this module.
        return Markup(head + "".join(self.body) + "</svg>")

    def _rule(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.body.append(f'<line class="{css}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')

    def _text(self, x: float, y: float, text: str, anchor: str, more: str = "") -> None:
        place = f'x="{x}" y="{y}" text-anchor="{anchor}"{more}'
        self.body.append(f"<text {place}>{escape(text)}</text>")


def _wide(bounds: Point) -> Point:
    low, high = bounds
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        return low - 1.0, high + 1.0
    return low, high


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round positions in [low, high]: multiples of 1, 2 or 5 · 10^k."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def number(value: float | None) -> str:
    """A number for people: at most four significant digits, – for none."""
    if value is None:
        return "–"
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def reliability(bins: Sequence[dict[str, Any]], cooled: Sequence[dict[str, Any]]) -> Markup:
    """Claimed probability against the observed one; on the diagonal both are equal."""
    lows = [v for b in [*bins, *cooled] for v in (b["low"], b["outcome"])]
    names = ("claimed probability of the higher score", "share of votes for it")
    plot = Plot((0.5, 1.0), (min(0.5, *lows), 1.0), *names, "Reliability")
    plot.line([(0.5, 0.5), (1.0, 1.0)], "ideal")
    for found, css in ((cooled, "c1"), (bins, "c0")):
        plot.line([(b["confidence"], b["outcome"]) for b in found], css)
        for b in found:
            if css == "c0":
                plot.whisker(b["confidence"], b["low"], b["high"])
            said = f"claimed {b['confidence']:.3f}, observed {b['outcome']:.3f}, {b['pairs']} pairs"
            plot.dot(b["confidence"], b["outcome"], css, said, 3 + 5 * math.sqrt(b["share"]))
    return plot.svg()


def scatter(points: Sequence[Point], slope: float | None, per: float) -> Markup:
    """Length difference against score difference, with the slope through the origin."""
    xs, ys = [p[0] for p in points] + [0.0], [p[1] for p in points] + [0.0]
    names = ("preferred answer is longer by (characters)", "and scores higher by")
    plot = Plot((min(xs), max(xs)), (min(ys), max(ys)), *names, "Length and score")
    for x, y in points:
        plot.dot(x, y, "c0 faint", f"{x:+.0f} characters, score {y:+.3g}", 2.5)
    if slope:
        ends = []
        for x in plot.x_range:
            # Where the line leaves the plot, above or below, it is cut.
            low, high = plot.y_range
            y = min(max(slope / per * x, low), high)
            ends.append((y * per / slope, y))
        plot.line(ends, "c1")
    return plot.svg()


def curves(points: Sequence[dict[str, Any]], unit: str) -> Markup:
    """Gold of the pick out of n: the model with its interval, oracle, random, the longest."""
    names = ("gold", "oracle", "random", "longest")
    values = [p[n] for p in points for n in names] + [
        p[n] for p in points for n in ("low", "high") if p[n] is not None
    ]
    at = [math.log2(p["n"]) for p in points]
    marks = {x: str(p["n"]) for x, p in zip(at, points, strict=True) if x == int(x) or len(at) < 9}
    ends = (min(values), max(values))
    plot = Plot((0.0, at[-1]), ends, "n", unit, "Best of n", marks)
    known = [(x, p) for x, p in zip(at, points, strict=True) if p["low"] is not None]
    plot.band([(x, p["low"], p["high"]) for x, p in known], "c0")
    for css, name in (("c2", "random"), ("c3", "oracle"), ("c1", "longest"), ("c0", "gold")):
        plot.line([(x, p[name]) for x, p in zip(at, points, strict=True)], css)
    for x, p in zip(at, points, strict=True):
        said = f"best of {p['n']}: {p['gold']:.4g} in {p['groups']} groups"
        plot.dot(x, p["gold"], "c0", said)
    return plot.svg()
