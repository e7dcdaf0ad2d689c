"""The evaluation of one policy becomes report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report.charts import number
from align.report.page import write_page
from align.report.run import sample_browser
from align.report.verdict import Verdict


def write_evaluation(
    result: dict[str, Any], path: str | Path, samples: list[dict[str, Any]]
) -> Path:
    """Write the page of one evaluation; result and samples: what `evaluate` computed."""
    rows = list(_rows(result))
    decoding = ", ".join(f"{k} {v}" for k, v in result["decoding"].items())
    return write_page(
        Path(path),
        title=f"Evaluation of {result['model']}",
        subtitle=f"seeds {', '.join(str(s) for s in result['seeds'])} · {decoding}",
        verdict=_verdict(result),
        table={"title": "Results", "head": ["figure", "value"], "rows": rows, "notes": []},
        samples=sample_browser(samples),
        blocks=[*_suite_blocks(result), *_harness_blocks(result)],
        footer="Definitions and formulas: docs/evaluation.md and docs/suites.md.",
    )


def _verdict(result: dict[str, Any]) -> Verdict:
    parts = []
    if "perplexity" in result:
        p = result["perplexity"]
        parts.append(f"perplexity {number(p['perplexity'])} over {p['tokens']} tokens")
    generation = result.get("generation", {})
    if "score" in generation:
        s = generation["score"]
        parts.append(f"mean reward {number(s['mean'])} [{number(s['low'])}, {number(s['high'])}]")
    if generation:
        parts.append(f"{generation['eos_rate']:.0%} of the completions end by themselves")
    suites = result.get("suites", {})
    limits = [t for report in suites.values() for t in report["thresholds"]]
    if suites:
        parts.append(f"suites {', '.join(suites)}")
    if limits:
        parts.append(f"{sum(t['passed'] for t in limits)} of {len(limits)} thresholds hold")
    if "lm_eval" in result:
        parts.append(f"lm-eval {', '.join(result['lm_eval']['tasks'])}")
    text = ", ".join(parts)
    verdict = Verdict(text[:1].upper() + text[1:] + ".")
    for t in limits:
        if not t["passed"]:
            verdict.add("bad", f"{t['figure']} is {number(t['value'])}: {_limits(t)}.")
    if generation.get("eos_rate", 1.0) < 0.5:
        verdict.add("warn", "More than half of the completions were cut at the token limit.")
    if generation.get("repetition_4", 0.0) > 0.3:
        verdict.add("warn", "More than 30 % of the 4-grams repeat an earlier one of their text.")
    return verdict


def _rows(result: dict[str, Any]):
    """(name, value) cells, nested figures flattened to dotted names."""
    for section in ("perplexity", "generation"):
        for key, value in result.get(section, {}).items():
            if isinstance(value, dict):
                interval = f"{number(value['low'])} to {number(value['high'])}"
                yield ((key, "mean"), (number(value["mean"]), interval))
            else:
                yield ((key, ""), (number(float(value)), ""))


def _limits(threshold: dict[str, Any]) -> str:
    words = (("min", "at least"), ("max", "at most"))
    return "limit " + " and ".join(
        f"{w} {number(threshold[k])}" for k, w in words if k in threshold
    )


def _suite_blocks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A table of each suite's figures, its categories beside them, and one of its thresholds."""
    blocks = []
    for name, report in result.get("suites", {}).items():
        for task, entry in report["tasks"].items():
            categories = entry.get("categories", {})
            head = ["figure", "value", "95 % interval"]
            head += [f"{c} ({figures['n']})" for c, figures in categories.items()]
            rows = [
                [figure, number(found["value"]), _interval(found)]
                + [_cell(figures.get(figure)) for figures in categories.values()]
                for figure, found in entry["metrics"].items()
            ]
            title = f"{name} / {task}: {entry['kind']}, {entry['n']} rows"
            blocks.append({"title": title, "head": head, "rows": rows})
        if report["thresholds"]:
            rows = [
                [t["figure"], number(t["value"]), _limits(t), "holds" if t["passed"] else "FAILS"]
                for t in report["thresholds"]
            ]
            head = ["figure", "value", "limit", ""]
            blocks.append({"title": f"{name}: thresholds", "head": head, "rows": rows})
    return blocks


def _harness_blocks(result: dict[str, Any]) -> list[dict[str, Any]]:
    found = result.get("lm_eval")
    if not found:
        return []
    rows = [
        [task, figure, number(value)]
        for task, figures in found["tasks"].items()
        for figure, value in figures.items()
        if value is not None
    ]
    title = f"lm-eval {found['lm_eval']}"
    return [{"title": title, "head": ["task", "figure", "value"], "rows": rows}]


def _interval(found: dict[str, float]) -> str:
    return f"{number(found['low'])} to {number(found['high'])}" if "low" in found else ""


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)
