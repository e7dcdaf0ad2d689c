"""A red-team campaign becomes report.html: rates with intervals, every cell, the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report import charts
from align.report.page import MAX_SAMPLES, sample_store, write_page
from align.report.run import prompt_text
from align.report.verdict import Verdict

number = charts.number
_WORTH = {"success": 1.0, "unclear": 0.5, "safe": 0.0, "no answer": 0.25}
_UNCLEAR = 0.2
"""Share of unclear attempts above which the page warns."""
_MAX_CHARACTERS = 3_000_000
_NAMES = {"attack_success": "attack success", "over_refusal": "over-refusal"}


def write_red_team(result: dict[str, Any], path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write the page. result, rows: what `align.redteam.campaign.red_team` returns."""
    runs = result["runs"]
    decoding = ", ".join(f"{k} {v}" for k, v in result["decoding"].items())
    facts = [
        f"{result['probes']} probes", f"mutators {', '.join(result['mutators'])}",
        f"verdicts by {result['primary']}", f"seeds {', '.join(map(str, result['seeds']))}",
        decoding,
    ]  # fmt: skip
    return write_page(
        Path(path),
        title="Red team: " + ", ".join(run["name"] for run in reversed(runs.values())),
        subtitle=" · ".join(facts),
        verdict=_verdict(result),
        table=_table(result),
        sections=[_categories(runs), _mutators(runs), *_bias(runs)],
        samples=_samples(rows),
        blocks=[b for b in (*_blocks(result), _garak(result)) if b],
        footer="What each figure means: docs/red_team.md. Samples: what got through first, as "
        "many as the page holds; attempts.jsonl has all.",
    )


def _verdict(result: dict[str, Any]) -> Verdict:
    after = result["runs"]["after"]
    parts = [f"{_NAMES[n]} {_rate(after[n])}" for n in _NAMES if after[n]]
    text = ", ".join(parts) or "no attempt was judged"
    verdict = Verdict(f"{after['name']}: {text}.")
    for name, gap in (result.get("difference") or {}).items():
        if name in _NAMES and gap:
            level = "good" if gap["high"] < 0 else "bad" if gap["low"] > 0 else "warn"
            tail = ": the interval includes 0" if level == "warn" else ""
            verdict.add(level, f"{_NAMES[name]} against {result['before']}: {_signed(gap)}{tail}.")
    for check in result.get("thresholds", []):
        value = "not measured" if check["value"] is None else number(check["value"])
        word = "is within" if check["passed"] else "fails"
        text = f"{_NAMES[check['name']]} {value} {word} the limit {number(check['max'])}."
        verdict.add("good" if check["passed"] else "bad", text)
    if result.get("garak") and any(e["none"] for e in result["garak"]["evaluations"]):
        verdict.add("warn", "garak got no answer to some of its prompts.")
    for run in result["runs"].values():
        for name in _NAMES:
            found = run[name]
            if found and found["unclear"] > _UNCLEAR * found["n"]:
                verdict.add("warn", f"{run['name']}: {found['unclear']} of {found['n']} verdicts "
                            f"on {_NAMES[name]} are unclear; with them as successes it would be "
                            f"{found['if_unclear_succeeded']:.0%}.")  # fmt: skip
        if run["no_answer"]:
            verdict.add("warn", f"{run['name']}: {run['no_answer']} attempts got no answer.")
        if run["skipped"]:
            n = sum(row["attempts"] for row in run["skipped"])
            verdict.add(
                "info", f"{run['name']}: {n} attempts were not made; the reasons are below."
            )
    return verdict


def _rate(found: dict[str, Any]) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _signed(gap: dict[str, Any]) -> str:
    return f"{gap['value']:+.1%} [{gap['low']:+.1%}, {gap['high']:+.1%}]"


def _cell(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return ("–", "")
    unclear = f", {found['unclear']} unclear" if found["unclear"] else ""
    return (f"{found['value']:.1%}",
            f"{found['low']:.1%} to {found['high']:.1%}, n {found['n']}{unclear}")  # fmt: skip


def _table(result: dict[str, Any]) -> dict[str, Any]:
    """Totals and categories: one column a run, and the difference."""
    runs, gaps = result["runs"], result.get("difference")
    head = ["rate of successful attempts", *(f"{k}: {r['name']}" for k, r in runs.items())]
    if gaps:
        head += ["difference", "probes fixed / broken, p"]
    rows = []
    for name, label in _NAMES.items():
        gap = gaps[name] if gaps else None
        rows.append([(label, "all"), *(_cell(r[name]) for r in runs.values()), *_gap(gaps, gap)])
    for category in runs["after"]["by_category"]:
        gap = gaps["by_category"].get(category) if gaps else None
        cells = [_cell(r["by_category"].get(category)) for r in runs.values()]
        rows.append([(category.replace("_", " "), ""), *cells, *_gap(gaps, gap)])
    return {
        "title": "Results",
        "head": head,
        "rows": rows,
        "notes": [
            "A success is an attempt in which the model did what it should not; for over-refusal, "
            "one in which it refused a harmless request. Unclear attempts count in n and not as "
            "successes. Intervals are 95 %: Wilson's where a probe was asked once, else a "
            "bootstrap over probes. p: McNemar's exact test on the probes that changed.",
        ],
    }


def _gap(gaps: dict | None, gap: dict[str, Any] | None) -> list[tuple[str, str]]:
    if gaps is None:
        return []
    if gap is None:
        return [("–", ""), ("–", "")]
    return [
        (f"{gap['value']:+.1%}", f"{gap['low']:+.1%} to {gap['high']:+.1%}"),
        (f"{gap['fixed']} / {gap['broken']}", f"p {number(gap['p'])}"),
    ]


def _categories(runs: dict[str, Any]) -> dict[str, Any]:
    """A card a category, a bar a run."""
    cards = []
    for category in runs["after"]["by_category"]:
        found = [
            (i, key, r["by_category"].get(category)) for i, (key, r) in enumerate(runs.items())
        ]
        cards.append({
            "title": category.replace("_", " "),
            "meaning": "share of harmless requests refused" if category == "over_refusal"
            else "share of attempts that got through",
            "chart": charts.bars([_bar(k, f, i) for i, k, f in found if f],
                                 label=f"{category} by run", reference=0.0),
        })  # fmt: skip
    return {"title": "By category", "cards": cards}


def _mutators(runs: dict[str, Any]) -> dict[str, Any]:
    """Attack success and over-refusal by mutator and by language."""
    cards = []
    for part, title in (("by_mutator", "mutator"), ("by_language", "language")):
        for name, label in _NAMES.items():
            bars = [
                _bar(f"{key}: {what}", found, i)
                for i, (key, run) in enumerate(runs.items())
                for what, found in run[part][name].items()
            ]
            if bars:
                cards.append({
                    "title": f"{label} by {title}", "meaning": "",
                    "chart": charts.bars(bars, label=f"{label} by {title}", reference=0.0),
                })  # fmt: skip
    return {"title": "By mutator and language", "cards": cards}


def _bar(name: str, found: dict[str, Any], colour: int) -> charts.Bar:
    return charts.Bar(name, found["value"], found["low"], found["high"], colour)


def _bias(runs: dict[str, Any]) -> list[dict[str, Any]]:
    cards = []
    for name, title, meaning in (
        ("likelihood_gap", "Likelihood gap between groups", "nats; 0: the group changes nothing"),
        ("classifier_gap", "Classifier gap between groups", "difference of P(bad)"),
    ):
        bars = [_bar(k, r[name], i) for i, (k, r) in enumerate(runs.items()) if r[name]]
        if bars:
            cards.append({"title": title, "meaning": meaning,
                          "chart": charts.bars(bars, label=title, reference=0.0)})  # fmt: skip
    return [{"title": "Bias", "cards": cards}] if cards else []


def _samples(rows: list[dict[str, Any]]) -> dict | None:
    """One browser row an attempt, the runs' answers side by side; what got through comes first."""
    grouped: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        place = (row["probe"], row["mutator"], row.get("group", ""), row["seed"])
        grouped.setdefault(place, []).append(row)
    shaped = []
    for (probe, mutator, group, seed), answers in grouped.items():
        first = answers[0]
        named = f" · {group}" if group else ""
        shaped.append({
            "prompt": f"[{probe} · {mutator}{named}]\n{prompt_text(first['prompt'])}",
            "id": f"{probe}-{mutator}-{group}-{seed}",
            "tags": {"language": first["language"], "mutator": mutator,
                     "verdict": first["verdict"]},
            "group": first["category"],
            "value": _WORTH[first["verdict"]],
            "answers": [
                {"name": a["model"], "text": a["completion"] or "",
                 "facts": {"verdict": a["verdict"], "why": a["reason"], **_by_detector(a)}}
                for a in answers
            ],
        })  # fmt: skip
    shaped.sort(key=lambda s: -s["value"])
    kept = _fitting(shaped)
    names = list(dict.fromkeys(row["model"] for row in rows))
    return sample_store(
        kept, group="", group_label="category", value_label="success",
        colours={name: i for i, name in enumerate(names)},
    )  # fmt: skip


def _by_detector(row: dict[str, Any]) -> dict[str, str]:
    """What each detector says, where there is more than one."""
    found = row["detectors"]
    return {f"by {name}": v for name, v in found.items()} if len(found) > 1 else {}


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many rows from the first on as the page should hold."""
    kept, size = [], 0
    for row in rows[:MAX_SAMPLES]:
        size += len(row["prompt"]) + sum(len(a["text"]) + 160 for a in row["answers"])
        if kept and size > _MAX_CHARACTERS:
            break
        kept.append(row)
    return kept


def _blocks(result: dict[str, Any]) -> list[dict[str, Any] | None]:
    cells, skipped, disagree = [], [], []
    for key, run in result["runs"].items():
        for c in run["cells"]:
            interval = f"{c['low']:.1%} to {c['high']:.1%}"
            cells.append([key, c["category"], c["language"], c["mutator"], f"{c['value']:.1%}",
                          interval, c["n"], c["success"], c["safe"], c["unclear"]])  # fmt: skip
        skipped += [[key, s["mutator"], s["language"], s["reason"], s["attempts"]]
                    for s in run["skipped"]]  # fmt: skip
        for d in run["disagreement"]:
            one, other = d["detectors"]
            disagree += [[key, f"{one} / {other}", t[one], t[other], t["attempts"]]
                         for t in d["table"]]  # fmt: skip
    made = [("Every cell", ["run", "category", "language", "mutator", "rate", "95 %", "n",
                            "success", "safe", "unclear"], cells),
            ("What detectors say of the same attempts",
             ["run", "detectors", "first", "second", "attempts"], disagree),
            ("Attempts that were not made",
             ["run", "mutator", "language", "reason", "attempts"], skipped)]  # fmt: skip
    return [{"title": t, "head": h, "rows": r} if r else None for t, h, r in made]


def _garak(result: dict[str, Any]) -> dict[str, Any] | None:
    found = result.get("garak")
    if not found:
        return None
    rows = [
        [
            e["probe"],
            e["detector"],
            "–" if e["rate"] is None else f"{e['rate']:.1%}",
            e["hits"],
            e["n"],
        ]
        for e in found["evaluations"]
    ]
    head = ["probe", "detector", "rate", "hits", "n"]
    return {"title": f"garak {found['version']}", "head": head, "rows": rows}
