"""Two days of a request log side by side: which figures moved further than chance moves them.

A line is a share (failures, refusals, votes up), a mean or a quantile. Requests are taken as
independent of each other; those of one user are not, and the intervals are then too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from align.evaluation.metrics import bootstrap
from align.serving.drift_rows import Day, Figure, figures
from reward_models.evaluation_calibration import wilson

Floats = np.ndarray
LEVEL = 0.95
RESAMPLES = 4000
LEAST_P95 = 100
"""Values a side below which nothing is said of a 95 % quantile: five of a hundred lie above it."""
MOST = 20_000
"""Values of a day from which intervals are drawn; of more, a random part."""
DRIFTED, STEADY, FEW, ABSENT, COUNT = "drifted", "not drifted", "too few", "not measured", "count"


@dataclass
class Line:
    """One line of the report. kind: share, mean, p50, p95 or count; unit: for people.

    before, after: {"value", "low", "high", "n"} with 95 % intervals. difference: after − before,
    {"value", "low", "high"} at 95 %, and "wide_low", "wide_high" at the level that holds for all
    lines together. verdict: drifted, not drifted, too few, not measured or count. reason: why it
    was not measured.
    """

    name: str
    kind: str
    unit: str = ""
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    difference: dict[str, float] | None = None
    verdict: str = ABSENT
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry of drift.json."""
        return asdict(self)


def compare(
    before: Day,
    after: Day,
    rewards: tuple[Sequence[float], Sequence[float]] | str,
    *,
    min_n: int = 30,
    min_change: float = 0.0,
    seed: int = 0,
) -> list[Line]:
    """All lines. rewards: of each side's answers, or why there are none.

    A line has drifted where 0 is outside the interval of its difference at 1 − 0.05/m, and the
    difference is more than min_change times the value before. m: how many lines have enough values
    on both sides, min_n or LEAST_P95 (Bonferroni: if nothing changed, at most one report in twenty
    says that anything did).
    """
    sides = [(f, f.values(before), f.values(after)) for f in figures()]
    made = ([], []) if isinstance(rewards, str) else rewards
    reason = rewards if isinstance(rewards, str) else "no texts logged"
    reward = Figure("reward", "mean", "", lambda _: [], reason)
    sides.insert(-1, (reward, list(made[0]), list(made[1])))
    enough = [min(len(x), len(y)) >= _least(f, min_n) for f, x, y in sides]
    tested = sum(enough)
    wide = 1 - (1 - LEVEL) / max(1, tested)
    lines = [_count("requests", len(before.answers), len(after.answers))]
    for (figure, x, y), can_be_tested in zip(sides, enough, strict=True):
        line = Line(figure.name, figure.kind, figure.unit)
        lines.append(line)
        if not x and not y:
            line.reason = figure.absent
            continue
        values = _part(x, seed), _part(y, seed + 1)
        line.before, line.after = (estimate(v, figure.kind) for v in values)
        line.verdict = FEW
        if line.before is None or not can_be_tested:
            continue
        line.difference = gap(*values, figure.kind, wide, seed)
        low, high = line.difference["wide_low"], line.difference["wide_high"]
        moved = abs(line.difference["value"]) > min_change * abs(line.before["value"])
        line.verdict = DRIFTED if moved and (low > 0 or high < 0) else STEADY
    return lines


def _least(figure: Figure, min_n: int) -> int:
    return max(min_n, LEAST_P95) if figure.kind == "p95" else min_n


def estimate(values: Floats, kind: str) -> dict[str, float] | None:
    """A side's value with its 95 % interval: Wilson's of a share, else a bootstrap's; None of none.

    Quantiles are nearest-rank.
    """
    if not len(values):
        return None
    if kind == "share":
        value = float(values.mean())
        low, high = wilson(value, len(values))
    else:
        measure = _STATISTICS[kind]
        found = bootstrap(values, lambda rows: float(measure(rows.T)[0]), resamples=1000)
        value, low, high = found.value, found.low, found.high
    return {"value": value, "low": low, "high": high, "n": len(values)}


def gap(before: Floats, after: Floats, kind: str, wide: float, seed: int = 0) -> dict[str, float]:
    """Difference, after − before, with its interval at 95 % and at the level `wide`.

    Of shares Newcombe's hybrid interval: d − √((p₂ − l₂)² + (u₁ − p₁)²) to
    d + √((u₂ − p₂)² + (p₁ − l₁)²), l and u Wilson's limits (Newcombe 1998, Statistics in Medicine
    17:873, method 10). Else the percentiles of RESAMPLES differences, both sides drawn anew.
    """
    if kind == "share":
        value = float(after.mean() - before.mean())
        near, far = (newcombe(before, after, level) for level in (LEVEL, wide))
    else:
        measure = _STATISTICS[kind]
        value = float(measure(after[None])[0] - measure(before[None])[0])
        rng = np.random.default_rng(seed)
        drawn = [_drawn(side, measure, rng) for side in (before, after)]
        differences = drawn[1] - drawn[0]
        near, far = (_middle(differences, level) for level in (LEVEL, wide))
    return {"value": value, "low": near[0], "high": near[1],
            "wide_low": far[0], "wide_high": far[1]}  # fmt: skip


def newcombe(before: Floats, after: Floats, level: float) -> tuple[float, float]:
    """The interval of a difference of shares, see `gap`."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, q = float(before.mean()), float(after.mean())
    (p_low, p_high), (q_low, q_high) = wilson(p, len(before), z), wilson(q, len(after), z)
    return (
        q - p - math.hypot(q - q_low, p_high - p),
        q - p + math.hypot(q_high - q, p - p_low),
    )


def _quantile(p: float) -> Callable[[Floats], Floats]:
    return lambda rows: np.percentile(rows, p, axis=1, method="inverted_cdf")


_STATISTICS: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda rows: rows.mean(axis=1),
    "p50": _quantile(50),
    "p95": _quantile(95),
}


def _drawn(values: Floats, measure: Callable[[Floats], Floats], rng: Any) -> Floats:
    """The statistic of RESAMPLES resamples, some megabytes of them at a time."""
    block = max(1, 2_000_000 // len(values))
    parts = []
    for start in range(0, RESAMPLES, block):
        draws = rng.integers(0, len(values), size=(min(block, RESAMPLES - start), len(values)))
        parts.append(measure(values[draws]))
    return np.concatenate(parts)


def _middle(values: Floats, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _part(values: Sequence[float], seed: int) -> Floats:
    made = np.asarray(values, dtype=np.float64)
    if len(made) <= MOST:
        return made
    return np.random.default_rng(seed).choice(made, MOST, replace=False)


def _count(name: str, before: int, after: int) -> Line:
    """A line that is no sample of anything: said, not tested."""
    sides = [
        {"value": float(n), "low": float(n), "high": float(n), "n": n} for n in (before, after)
    ]
    gap = {"value": float(after - before)}
    return Line(name, "count", "", sides[0], sides[1], gap, COUNT)
