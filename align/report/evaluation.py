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
        footer="Definitions and formulas: docs/evaluation.md.",
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
    text = ", ".join(parts)
    verdict = Verdict(text[:1].upper() + text[1:] + ".")
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
