"""The pages of best-of-n and of iterated rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.iteration.select import Sample
from align.records import Prompt
from align.report import charts
from align.report.page import sample_store, write_page
from align.report.verdict import Verdict


def write_best_of_n(
    summary: Mapping[str, Any], found: Mapping[str, Sequence[Sample]], prompts: Sequence[Prompt],
    path: Path,
) -> Path:  # fmt: skip
    """The page of `best_of_n`: the curve over n, what was kept, and the answers."""
    points = summary["best_of_n"]
    first, last = points[0], points[-1]
    n = summary["n"]
    verdict = Verdict(
        f"The best of {n} earns {charts.number(last['value'])} where one answer earns "
        f"{charts.number(first['value'])}."
    )
    if summary["finished"] < 0.5:
        verdict.add("warn", "More than half of the answers were cut at the token limit.")
    if 2 * summary["preferences"]["used"] < summary["prompts"]:
        verdict.add("warn", "Less than half of the prompts gave a pair.")
    curve = charts.lines(
        [charts.Series(name, [(p["n"], p[key]) for p in points], colour, "line+points")
         for name, key, colour in (("mean", "value", 0), ("95 % low", "low", 1),
                                   ("95 % high", "high", 1))],
        label=f"expected reward of the best of 1 to {n}", x_label="n",
    )  # fmt: skip
    rows = [
        (
            (str(p["n"]), ""),
            (charts.number(p["value"]), f"{charts.number(p['low'])} to {charts.number(p['high'])}"),
            (f"{p['kl']:.3f}", ""),
        )
        for p in points
        if p["n"] == n or p["n"] & (p["n"] - 1) == 0
    ]
    answers = [
        {
            "prompt": _asked(prompt), "group": f"prompt {i}",
            "value": max(s.score for s in found[prompt.prompt_id]),
            "answers": [
                {"name": f"s{k}", "text": s.text,
                 "facts": {"reward": round(s.score, 4), "finished": str(s.finished)}}
                for k, s in sorted(enumerate(found[prompt.prompt_id]), key=lambda e: -e[1].score)
            ],
        }
        for i, prompt in enumerate(prompts, 1)
    ]  # fmt: skip
    return write_page(
        path,
        title=f"Best of {n}",
        subtitle=f"{summary['prompts']} prompts",
        verdict=verdict,
        stats=[("SFT records", str(summary["sft"]["used"])),
               ("preference groups", str(summary["preferences"]["used"]))],
        sections=[{"title": "Expected reward", "cards": [
            {"title": "reward of the best of n", "chart": curve, "wide": True,
             "meaning": "mean over all ways to draw n of the answers; interval over prompts"}]}],
        table={"title": "By n", "head": ["n", "reward", "KL at most (nats)"], "rows": rows,
               "notes": ["KL of best-of-n to the policy: at most log n − (n − 1)/n."]},
        samples=sample_store(answers, group="prompt", group_label="prompt", value_label="reward",
                             colours={}),
        blocks=[_dropped(summary)],
        footer="Formulas: docs/iteration.md.",
    )  # fmt: skip


def _asked(prompt: Prompt) -> str:
    return "\n\n".join(m.content for m in prompt.messages)


def _dropped(summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (f"{name}.jsonl", reason, str(count))
        for name in ("sft", "preferences")
        for reason, count in summary[name]["dropped"].items()
    ]
    return {"title": "Left out", "head": ["file", "reason", "prompts"], "rows": rows}


FIGURES = (("reward", "what the rounds are trained on"), ("judge", "what they are not trained on"),
           ("kl", "nats a sample, to the first policy"), ("length", "tokens"))  # fmt: skip


def write_rounds(
    rounds: Sequence[Mapping[str, Any]], best: int, reason: str, path: Path, title: str, total: int
) -> Path:
    """The page of `iterate`: reward, gold judge and KL by round, and which round was kept.

    reason: why the rounds ended before `total` of them; "" where they did not.
    """
    first, kept = rounds[0], rounds[best]
    verdict = Verdict(
        f"Round {best} is kept: judge {charts.number(first['judge']['value'])} → "
        f"{charts.number(kept['judge']['value'])}, reward "
        f"{charts.number(first['reward']['value'])} → {charts.number(kept['reward']['value'])}."
    )
    done = len(rounds) - 1
    if reason or done >= total:
        verdict.add("good" if best else "warn", reason or f"All {total} rounds were run.")
    else:
        verdict.add("info", f"{done} of {total} rounds so far.")
    last = rounds[-1]
    if last["reward"]["value"] > kept["reward"]["value"] and best < len(rounds) - 1:
        verdict.add("warn", "The reward went on rising while the judge did not: it was being "
                            "exploited.")  # fmt: skip
    cards = []
    for name, meaning in FIGURES:
        points = [(r["round"], r[name]["value"]) for r in rounds if r.get(name)]
        if points:
            drawn = charts.lines(
                [charts.Series(name, points, 0, "line+points")],
                label=f"{name} by round", x_label="round",
            )  # fmt: skip
            cards.append({"title": name, "meaning": meaning, "chart": drawn,
                          "last": charts.number(points[-1][1])})  # fmt: skip
    rows = [
        (
            (f"{r['round']}", "kept" if r["round"] == best else ""),
            *[_cell(r.get(name)) for name, _ in FIGURES],
            _cell(r.get("change")),
            (str(r.get("records", "–")), ""),
        )
        for r in rounds
    ]
    head = ["round", *[name for name, _ in FIGURES], "judge against the best", "records"]
    notes = [
        "Intervals: 95 %, prompts resampled. Round 0 is the policy that the rounds began with."
    ]
    return write_page(
        path, title=title, subtitle=f"{len(rounds) - 1} rounds", verdict=verdict,
        table={"title": "Rounds", "head": head, "rows": rows, "notes": notes},
        sections=[{"title": "By round", "cards": cards}], footer="Rules: docs/iteration.md.",
    )  # fmt: skip


def _cell(figure: Mapping[str, float] | None) -> tuple[str, str]:
    if not figure:
        return "–", ""
    interval = f"{charts.number(figure['low'])} to {charts.number(figure['high'])}"
    return charts.number(figure["value"]), interval
