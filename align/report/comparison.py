"""A comparison becomes report.html: table, reward-vs-KL picture, bars, samples side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report import charts
from align.report.page import sample_store, write_page
from align.report.run import prompt_text
from align.report.verdict import Verdict

number = charts.number


def write_comparison(
    summary: dict[str, Any], path: str | Path, samples: list[dict[str, Any]] | None = None
) -> Path:
    """Write the page of a comparison.

    summary: what `align.evaluation.compare.compare` returns. samples: its samples.jsonl rows.
    path: the HTML file.
    """
    runs = summary["runs"]
    colours = {r["name"]: i for i, r in enumerate(runs)}
    decoding = ", ".join(f"{k} {v}" for k, v in summary["decoding"].items())
    facts = [
        f"{summary['num_prompts']} held-out prompts", f"seeds {_list(summary['seeds'])}", decoding,
        f"reward {summary['reward']}", f"judge {summary['judge'] or 'none'}",
    ]  # fmt: skip
    return write_page(
        Path(path),
        title="Comparison: " + ", ".join(r["name"] for r in runs),
        subtitle=" · ".join(facts),
        verdict=_verdict(summary),
        table=_table(summary),
        sections=[_frontier(runs, colours), _bars(summary, colours)],
        samples=_samples(samples or [], colours, summary["baseline"]),
        blocks=[_sources(runs)],
        footer="Definitions and formulas: docs/evaluation.md.",
    )


def _verdict(summary: dict) -> Verdict:
    others = [r for r in summary["runs"] if r["name"] != summary["baseline"]]
    if not others:
        return Verdict("Only the baseline was evaluated.")
    best = max(others, key=lambda r: r["reward"]["mean"])
    kl = f" at {number(best['kl']['value'])} nats of KL" if best.get("kl") else ""
    std = best["gain"]["in_baseline_std"]
    verdict = Verdict(
        f"{best['name']} scores highest: {number(best['reward']['mean'])} mean reward, "
        f"{_std(std)} standard deviations from {summary['baseline']}{kl}, "
        f"win rate {best['win_rate']['value']:.0%}."
    )
    for r in others:
        verdict.add(*_finding(r, summary["baseline"]))
        if r.get("judge") and not r["judge"]["agrees"]:
            moved = _signed(r["judge"]["gain"]["value"])
            verdict.add("warn", f"{r['name']}: the judge moved the other way ({moved}).")
        if r["eos_rate"] < 0.5:
            verdict.add("warn", f"{r['name']}: only {r['eos_rate']:.0%} of the completions ended.")
    return verdict


def _finding(run: dict, baseline: str) -> tuple[str, str]:
    gain = run["gain"]
    text = (f"{run['name']}: reward {_signed(gain['value'])} "
            f"[{number(gain['low'])}, {number(gain['high'])}] against {baseline}")  # fmt: skip
    if gain["low"] > 0:
        return "good", text + "."
    if gain["high"] < 0:
        return "bad", text + ": worse."
    return "warn", text + ": the interval includes 0."


def _table(summary: dict) -> dict:
    head = ["run", "reward", "gain in SFT std", "win rate", "KL to SFT", "NLL under SFT", "judge",
            "equal-length gain", "length", "distinct‑2", "repetition", "EOS rate", "time",
            "tokens"]  # fmt: skip
    return {
        "title": "Results",
        "head": head,
        "rows": [_row(r, summary["baseline"]) for r in summary["runs"]],
        "notes": [
            "Intervals are 95 % bootstrap over prompts. KL: nats per completion, on the run's own "
            "samples. NLL: nats per token of the completions under the baseline. Length: tokens.",
            *summary.get("notes", []),
        ],
    }


def _row(r: dict, baseline: str) -> list[tuple[str, str]]:
    base = r["name"] == baseline
    win, kl, judge, gain = r["win_rate"], r.get("kl"), r.get("judge"), r["gain"]
    dash = ("–", "")
    return [
        (r["name"], "baseline" if base else ""),
        (number(r["reward"]["mean"]), f"± {number(r['reward']['std'])}"),
        dash if base or gain["in_baseline_std"] is None else (_std(gain["in_baseline_std"]), ""),
        dash if base else (f"{win['value']:.1%}", f"{win['low']:.1%} to {win['high']:.1%}"),
        dash if base or not kl else (number(kl["value"]), _interval(kl)),
        (number(r["nll_baseline"]["per_token"]), "") if r.get("nll_baseline") else dash,
        (number(judge["mean"]), "" if base else _signed(judge["gain"]["value"])) if judge else dash,
        dash if base else (_signed(r["length_controlled"]["gain"]), ""),
        (number(r["length"]), ""),
        (number(r["distinct_2"]), ""),
        (number(r["repetition_4"]), ""),
        (f"{r['eos_rate']:.0%}", ""),
        (_seconds(r["time_s"]), "") if r.get("time_s") is not None else dash,
        (number(r["tokens"]), "") if r.get("tokens") is not None else dash,
    ]


def _frontier(runs: list[dict], colours: dict[str, int]) -> dict:
    dots = []
    for r in runs:
        if not r.get("kl"):
            continue
        trail = [(p["kl"], p["reward"]) for p in r.get("trajectory", [])]
        dots.append(charts.Dot(
            r["name"], r["kl"]["value"], r["reward"]["mean"],
            (r["kl"]["low"], r["kl"]["high"]), (r["reward"]["low"], r["reward"]["high"]),
            colours[r["name"]], trail,
        ))  # fmt: skip
    chart = charts.picture(
        dots, label="mean reward against KL to the baseline", x_label="KL to the baseline, nats",
        y_label="mean reward",
    )  # fmt: skip
    return {"title": "Reward against KL", "cards": [{
        "title": "What each run paid for its reward",
        "meaning": "Large: this comparison, with intervals. Small: evaluations during training, "
                   "on the run's own held-out prompts.",
        "legend": [(r["name"], colours[r["name"]]) for r in runs],
        "chart": chart, "wide": True,
    }]}  # fmt: skip


def _bars(summary: dict, colours: dict[str, int]) -> dict:
    runs = summary["runs"]
    others = [r for r in runs if r["name"] != summary["baseline"]]

    def bar(r: dict, value: float | None, interval: dict | None = None) -> charts.Bar:
        low, high = (interval["low"], interval["high"]) if interval else (None, None)
        value = float("nan") if value is None else value
        return charts.Bar(r["name"], value, low, high, colours[r["name"]])

    cards = [
        ("Mean reward", "", [bar(r, r["reward"]["mean"], r["reward"]) for r in runs], None),
        (f"Win rate against {summary['baseline']}", "by the reward, a tie counts one half",
         [bar(r, r["win_rate"]["value"], r["win_rate"]) for r in others], 0.5),
        ("Judge", str(summary["judge"] or ""),
         [bar(r, r["judge"]["mean"], r["judge"]) for r in runs if r.get("judge")], None),
        ("Equal-length reward gain", "length differences regressed out",
         [bar(r, r["length_controlled"]["gain"]) for r in others], None),
        ("Length", "tokens", [bar(r, r["length"]) for r in runs], None),
        ("Distinct-2", "share of distinct bigrams over all samples",
         [bar(r, r["distinct_2"]) for r in runs], None),
        ("NLL under the baseline", "nats per token; high means unlike the baseline",
         [bar(r, r["nll_baseline"]["per_token"]) for r in runs if r.get("nll_baseline")], None),
        ("Repetition", "share of 4-grams already seen in the text",
         [bar(r, r["repetition_4"]) for r in runs], None),
    ]  # fmt: skip
    return {"title": "Side by side", "cards": [
        {"title": title, "meaning": meaning,
         "chart": charts.bars(items, label=f"{title} by run", reference=reference)}
        for title, meaning, items, reference in cards if items
    ]}  # fmt: skip


def _samples(rows: list[dict], colours: dict[str, int], baseline: str) -> dict | None:
    """One browser row a (prompt, seed), runs in order; value: the best gain over the baseline."""
    grouped: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        grouped.setdefault((row["prompt_id"], row["seed"]), []).append(row)
    shaped = []
    for (_, seed), answers in grouped.items():
        own = {a["run"]: a for a in answers}
        base = own[baseline]["score"] if baseline in own else 0.0
        gains = [a["score"] - base for name, a in own.items() if name != baseline]
        shaped.append({
            "prompt": prompt_text(answers[0]["prompt"]),
            "group": f"seed {seed}",
            "value": max(gains, default=0.0),
            "answers": [
                {"name": a["run"], "text": a["completion"], "facts": {
                    k: round(a[k], 3) if isinstance(a[k], float) else a[k]
                    for k in ("score", "kl", "judge", "length", "finished") if a.get(k) is not None
                }} for a in sorted(answers, key=lambda a: colours.get(a["run"], 99))
            ],
        })  # fmt: skip
    first = shaped[0]["group"] if shaped else ""
    return sample_store(
        shaped, group=first, group_label="seed", value_label="best gain", colours=colours
    )


def _sources(runs: list[dict]) -> dict:
    rows = [[r["name"], r.get("method") or "–", r["path"], r["samples"]] for r in runs]
    return {"title": "Runs", "head": ["run", "method", "path", "samples"], "rows": rows}


def _signed(value: float | None) -> str:
    if value is None:
        return "–"
    return ("+" if value > 0 else "") + number(value)


def _std(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _interval(e: dict) -> str:
    return f"{number(e['low'])} to {number(e['high'])}"


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"


def _list(values: list) -> str:
    return ", ".join(str(v) for v in values)
