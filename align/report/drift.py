"""Two days of a request log become report.html: every line with both sides and its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report import charts
from align.report.page import write_page
from align.report.verdict import Verdict

_NOTES = (
    "Intervals are 95 %: Wilson's for shares, Newcombe's for their differences; else a bootstrap "
    "over requests. Quantiles are nearest-rank.",
    "Drifted: the interval of the difference that holds for all tested lines together "
    "(Bonferroni) excludes 0; the one that is shown is narrower. Not drifted: no drift was seen, "
    "which does not mean that there is none. Requests are taken as independent: many of one user "
    "make the intervals too narrow.",
)


def write_drift(result: dict[str, Any], path: str | Path) -> Path:
    """Write the page. result: what `align.serving.drift_report` writes to drift.json."""
    before, after = result["before"], result["after"]
    return write_page(
        Path(path),
        title=f"Drift: {before['name']} to {after['name']}",
        subtitle=f"{before['requests']} and {after['requests']} requests, {before['votes']} and "
        f"{after['votes']} votes",
        verdict=_verdict(result),
        table=_table(result),
        sections=[{"title": "Both days", "cards": _cards(result)}],
        blocks=[_block("Failures", "kind", before["failures"], after["failures"]),
                _block("Models", "model", before["models"], after["models"])],
        footer="What each figure means: docs/monitoring.md.",
    )  # fmt: skip


def _verdict(result: dict[str, Any]) -> Verdict:
    lines = result["lines"]
    tested = [line for line in lines if line["verdict"] in ("drifted", "not drifted")]
    drifted = [line for line in lines if line["verdict"] == "drifted"]
    text = f"{len(drifted)} of {len(tested)} tested lines drifted."
    verdict = Verdict(text if tested else "Too few requests to say anything.")
    for line in drifted:
        sides = " to ".join(cell(line[n], line["kind"])[0] for n in ("before", "after"))
        verdict.add("warn", f"{line['name']}: {sides} {line['unit']}".rstrip() + ".")
    if tested and not drifted:
        verdict.add("good", "No drift was seen.")
    few = [line["name"] for line in lines if line["verdict"] == "too few"]
    if few:
        verdict.add("info", f"Fewer than {result['min_n']} values on a side: {', '.join(few)}.")
    for side in (result["before"], result["after"]):
        if side["torn_lines"] or side["other_rows"]:
            left = f"{side['torn_lines']} torn lines and {side['other_rows']} others"
            verdict.add("info", f"{side['name']}: {left} were left out.")
    return verdict


def cell(value: dict[str, float] | None, kind: str, sign: str = "") -> tuple[str, str]:
    """A figure and its interval for people; sign: "+" of a difference."""
    if value is None:
        return ("–", "")
    form = f"{{:{sign}.1%}}" if kind == "share" else f"{{:{sign}.4g}}"
    shown = form.format(value["value"])
    if kind == "count" or "low" not in value:
        return (shown, "")
    n = f", n {value['n']:.0f}" if "n" in value else ""
    return (shown, f"{form.format(value['low'])} to {form.format(value['high'])}{n}")


def _table(result: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for line in result["lines"]:
        rows.append([
            (line["name"], line["unit"]),
            *(cell(line[name], line["kind"]) for name in ("before", "after")),
            cell(line["difference"], line["kind"], "+"),
            (line["verdict"], line["reason"]),
        ])  # fmt: skip
    head = ["figure", result["before"]["name"], result["after"]["name"], "difference", "verdict"]
    return {"title": "Results", "head": head, "rows": rows, "notes": list(_NOTES)}


def _cards(result: dict[str, Any]) -> list[dict[str, Any]]:
    cards = []
    for line in result["lines"]:
        bars = [
            charts.Bar(result[side]["name"], line[side]["value"], line[side]["low"],
                       line[side]["high"], colour)
            for colour, side in enumerate(("before", "after"))
            if line[side] is not None
        ]  # fmt: skip
        if line["kind"] != "count" and len(bars) == 2:
            meaning = f"{line['unit']}: {line['verdict']}".lstrip(": ")
            chart = charts.bars(bars, label=line["name"], reference=0.0)
            cards.append({"title": line["name"], "meaning": meaning, "chart": chart})
    return cards


def _block(title: str, name: str, before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    rows = [[kind, before.get(kind, 0), after.get(kind, 0)] for kind in {**before, **after}]
    return {"title": title, "head": [name, "before", "after"], "rows": rows,
            "text": "" if rows else "none", "summary": "none"}  # fmt: skip
