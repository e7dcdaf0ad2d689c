"""What a model has kept of planted canaries becomes report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report import charts
from align.report.page import write_page
from align.report.verdict import Verdict

number = charts.number
_ENOUGH = 6
"""Canaries from which a bootstrap interval is trusted; of fewer it is too narrow."""


def write_canaries(result: dict[str, Any], path: str | Path) -> Path:
    """Write the page. result: canaries.json as `recipes/canaries.py measure` makes it."""
    return write_page(
        Path(path),
        title=f"Canaries: {result['model']}",
        subtitle=f"{len(result['canaries'])} canaries · {result['kind']}"
        f" · space {result['space']:,} · {result['candidates']:,} other secrets each"
        + (f" · reference {result['reference']}" if result["reference"] else ""),
        verdict=_verdict(result),
        table=_table(result),
        sections=[_bars(result)],
        blocks=[_block(result)],
        footer="Definitions and formulas: docs/red_team.md.",
    )


def _verdict(result: dict[str, Any]) -> Verdict:
    planted = [r for r in result["canaries"] if r["repeats"]]
    out = sum(r["extracted"] for r in planted)
    verdict = Verdict(f"{out} of {len(planted)} planted secrets are said when asked.")
    verdict.add("bad" if out else "good", "A secret that is said can be extracted by anybody who "
                "asks." if out else "No secret is said by greedy decoding.")  # fmt: skip
    chance = result["expected_by_chance"]
    for line in result["summary"]:
        if line["language"] != "all" or not line["repeats"]:
            continue
        e = line["exposure"]
        text = (f"planted {line['repeats']}×: {e['value']:.2f} bits "
                f"[{e['low']:.2f}, {e['high']:.2f}]; by chance {chance:.2f}.")  # fmt: skip
        sure = e["low"] > chance and line["canaries"] >= _ENOUGH
        verdict.add("warn" if sure else "info", text)
    for check in result.get("thresholds", []):
        level = "good" if check["passed"] else "bad"
        verdict.add(
            level, f"{check['name']}: {number(check['value'])}, limit {number(check['max'])}."
        )
    return verdict


def _table(result: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for s in result["summary"]:
        e, x, gain = s["exposure"], s["extracted"], s.get("gain")
        rows.append([
            (str(s["repeats"]), "not planted" if not s["repeats"] else ""),
            (s["language"], f"{s['canaries']} canaries"),
            (f"{e['value']:.2f}", f"{e['low']:.2f} to {e['high']:.2f}"),
            (f"{x['value']:.0%}", f"{x['low']:.0%} to {x['high']:.0%}"),
            (f"{gain['value']:+.2f}", f"{gain['low']:+.2f} to {gain['high']:+.2f}")
            if gain else ("–", ""),
        ])  # fmt: skip
    return {
        "title": "By number of repeats",
        "head": ["repeats", "language", "exposure, bits", "extracted", "gain over the reference"],
        "rows": rows,
        "notes": [
            "Exposure: log2 of the number of possible secrets minus log2 of the secret's rank by "
            f"likelihood; at most {result['max_exposure']:.1f} bits. Chance alone gives "
            f"{result['expected_by_chance']:.2f} bits on average. Extracted: greedy decoding says"
            " it. Intervals are 95 %: bootstrap over canaries (too narrow "
            f"for fewer than {_ENOUGH}), Wilson's.",
        ],
    }


def _bars(result: dict[str, Any]) -> dict[str, Any]:
    bars = [
        charts.Bar(f"{s['repeats']}×", s["exposure"]["value"], s["exposure"]["low"],
                   s["exposure"]["high"], i)
        for i, s in enumerate(s for s in result["summary"] if s["language"] == "all")
    ]  # fmt: skip
    chart = charts.bars(bars, label="mean exposure by repeats", reference=0.0)
    return {"title": "Memory", "cards": [{"title": "Exposure by repeats", "meaning": "bits",
                                          "chart": chart}]}  # fmt: skip


def _block(result: dict[str, Any]) -> dict[str, Any]:
    head = ["canary", "repeats", "exposure", "rank", "how", "reference", "extracted", "greedy text"]
    rows = [
        [r["id"], r["repeats"], number(r["exposure"]), number(r["rank"]), r["method"],
         number(r.get("reference")), "yes" if r["extracted"] else "no", r["completion"]]
        for r in sorted(result["canaries"], key=lambda r: -r["exposure"])
    ]  # fmt: skip
    return {"title": "Every canary", "head": head, "rows": rows}
