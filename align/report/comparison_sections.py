"""The sections of a comparison's page: each takes the summary and returns what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from align.report import charts, charts_compare
from align.report.charts import number
from align.report.run import prompt_text

Colours = dict[str, int]


def signed(value: float | None) -> str:
    """A number with its sign; `–` for none."""
    return "–" if value is None else ("+" if value > 0 else "") + few(value)


def few(value: float) -> str:
    """A number in three digits, for sentences and intervals."""
    return number(float(f"{value:.3g}"))


def interval(e: dict) -> str:
    """`low to high`."""
    return f"{few(e['low'])} to {few(e['high'])}"


def percent(e: dict) -> str:
    """`low to high` in percent."""
    return f"{e['low']:.0%} to {e['high']:.0%}"


def judges_of(run: dict) -> dict[str, dict]:
    """{judge: its figures} of a run."""
    found = run.get("judges")
    return found if found is not None else {"the judge": run["judge"]} if run.get("judge") else {}


def _others(summary: dict) -> list[dict]:
    return [r for r in summary["runs"] if r["name"] != summary["baseline"]]


def frontier(summary: dict, colours: Colours) -> dict:
    """Reward against KL, the gold judge against KL, and both over the steps of each run."""
    runs = summary["runs"]
    legend = [(r["name"], colours[r["name"]]) for r in runs]
    gold = summary["judge"]
    cards = [_against_kl(runs, colours, "reward", "Mean reward", legend)]
    if any((r.get("judge") or {}).get("mean") is not None for r in runs):
        cards.append(_against_kl(runs, colours, "gold", f"Judge: {gold}", legend))
    sources = sorted({s for r in runs if (s := (r.get("frontier") or {}).get("source"))})
    small = f"Small points: {' and '.join(sources)}" if sources else (
        "Small points: evaluations during training, on the run's own held-out prompts")  # fmt: skip
    tabs = [
        {"name": r["name"], "meaning": _steps_meaning(r, gold), "cards": _over_steps(r, colours)}
        for r in runs
        if len((r.get("frontier") or {}).get("points", [])) > 1
    ]
    return {
        "title": "Reward against KL",
        "meaning": f"Large points: this comparison, with intervals. {small}. A good run is high "
                   "and to the left; one whose reward rises while the judge falls is "
                   "over-optimised.",
        "cards": cards, "two": True, "tabs": tabs,
    }  # fmt: skip


def _against_kl(runs: list[dict], colours: Colours, what: str, title: str, legend: list) -> dict:
    dots = []
    for r in runs:
        value = r["reward"] if what == "reward" else r.get("judge")
        if not r.get("kl") or not value or value["mean"] is None:
            continue
        trail, spans = _trail(r, what)
        dots.append(charts.Dot(
            r["name"], r["kl"]["value"], value["mean"], (r["kl"]["low"], r["kl"]["high"]),
            (value["low"], value["high"]), colours[r["name"]], trail, spans,
        ))  # fmt: skip
    chart = charts.picture(
        dots, label=f"{title} against KL to the baseline", x_label="KL to the baseline, nats",
        y_label="",
    )  # fmt: skip
    return {"title": title, "legend": legend, "chart": chart}


def _trail(run: dict, what: str) -> tuple[list, list]:
    """(KL, value) on the way to the final model, and the intervals of the values."""
    points = (run.get("frontier") or {}).get("points", [])
    known = [p for p in points if p["kl"] and p[what]]
    if known:
        trail = [(p["kl"]["value"], p[what]["value"]) for p in known]
        return trail, [(p[what]["low"], p[what]["high"]) for p in known]
    if what == "reward":
        return [(p["kl"], p["reward"]) for p in run.get("trajectory", [])], []
    return [], []


def _steps_meaning(run: dict, gold: str | None) -> str:
    found = run["frontier"]["over_optimisation"]
    text = f"From {run['frontier']['source']}; the shade is a 95 % interval over prompts."
    if not found:
        return text
    drop = found["drop"]
    if found["peak_step"] == found["last_step"]:
        return f"{text} {gold}: highest at the end ({few(found['gold_at_peak'])})."
    lost = f"{few(drop['value'])} [{few(drop['low'])}, {few(drop['high'])}]"
    return (f"{text} {gold}: highest at step {found['peak_step']} "
            f"({few(found['gold_at_peak'])}), and after it a loss of {lost}, an interval at "
            f"{found['level']:.1%} because the peak was picked among the points.")  # fmt: skip


def _over_steps(run: dict, colours: Colours) -> list[dict]:
    cards = []
    for what, title in (("reward", "Reward"), ("gold", "Judge"), ("kl", "KL to the baseline")):
        rows = [(p["step"], p[what]) for p in run["frontier"]["points"] if p[what]]
        if len(rows) < 2:
            continue
        series = charts.Series(
            title, [(s, e["value"]) for s, e in rows], colours[run["name"]], "line+points",
            [(s, e["low"], e["high"]) for s, e in rows],
        )  # fmt: skip
        chart = charts.lines([series], label=f"{title} of {run['name']} by step")
        cards.append({"title": title, "last": number(rows[-1][1]["value"]), "chart": chart})
    return cards


def pairs(summary: dict, colours: Colours) -> dict | None:
    """Who beats whom, by the reward and by each judge: matrix and ranks."""
    names = [r["name"] for r in summary["runs"]]
    tabs = []
    for judge, found in (summary.get("pairwise") or {}).items():
        ranked = [r["name"] for r in found["ranking"]] or names
        cards = []
        if found["matrix"]:
            cards.append({
                "title": "Win rate of the row against the column",
                "table": _matrix(found["matrix"], [n for n in ranked if n in found["matrix"]]),
            })  # fmt: skip
        if found["ranking"]:
            rows = [
                charts.Bar(r["name"], r["elo"], r["low"], r["high"], colours[r["name"]])
                for r in found["ranking"]
            ]
            anchor = summary["baseline"] if summary["baseline"] in ranked else names[0]
            cards.append({
                "title": "Bradley–Terry rank, Elo points",
                "meaning": f"{anchor} is 1000; 100 points are odds of 1.78 to 1",
                "chart": charts_compare.forest(rows, label=f"Elo by {judge}", reference=1000.0),
            })  # fmt: skip
        if cards:
            did = [f"{k.replace('_', ' ')} {_said(v)}" for k, v in found.get("report", {}).items()]
            did += [found["note"]] if found["matrix"] and found.get("note") else []
            tabs.append({"name": judge, "cards": cards, "two": True, "meaning": " · ".join(did)})
    return {"title": "Who beats whom", "tabs": tabs} if tabs and len(names) > 1 else None


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return number(value) if isinstance(value, (int, float)) else str(value or "–")


def _matrix(matrix: dict, names: list[str]) -> dict:
    rows = []
    for a in names:
        cells: list[tuple] = [(a, "")]
        for b in names:
            e = matrix[a].get(b)
            cells.append(
                ("–", "") if e is None else (f"{e['value']:.0%}", percent(e), e["value"] - 0.5)
            )
        rows.append(cells)
    return {"head": ["", *names], "rows": rows, "heat": True}


def bars(summary: dict, colours: Colours) -> dict:
    """Every figure side by side, with intervals where it is a mean."""
    runs, others = summary["runs"], _others(summary)

    def bar(r: dict, value: float | None, e: dict | None = None) -> charts.Bar:
        low, high = (e["low"], e["high"]) if e and "low" in e else (None, None)
        value = float("nan") if value is None else value
        return charts.Bar(r["name"], value, low, high, colours[r["name"]])

    def mean(name: str) -> list[charts.Bar]:
        return [bar(r, r[name], r.get("intervals", {}).get(name)) for r in runs]

    cards = [
        ("Mean reward", "", [bar(r, r["reward"]["mean"], r["reward"]) for r in runs], None),
        (f"Win rate against {summary['baseline']}", "by the reward, a tie counts one half",
         [bar(r, r["win_rate"]["value"], r["win_rate"]) for r in others], 0.5),
        ("Win rate at equal length", "logistic in the length difference",
         [bar(r, e["value"], e) for r in others if (e := r.get("length_controlled_win_rate"))],
         0.5),
        *_judge_bars(summary, bar),
        ("Equal-length reward gain", "length differences regressed out",
         [bar(r, e["gain"], e) for r in others if (e := r["length_controlled"])], None),
        ("Length", "tokens", mean("length"), None),
        ("Distinct-2", "share of distinct bigrams over all samples",
         [bar(r, r["distinct_2"]) for r in runs], None),
        ("NLL under the baseline", "nats per token; high means unlike the baseline",
         [bar(r, n["per_token"], n) for r in runs if (n := r.get("nll_baseline"))], None),
        ("Repetition", "share of 4-grams already seen in the text", mean("repetition_4"), None),
    ]  # fmt: skip
    return {"title": "Side by side", "cards": [
        {"title": title, "meaning": meaning,
         "chart": charts.bars(items, label=f"{title} by run", reference=reference)}
        for title, meaning, items, reference in cards if items
    ]}  # fmt: skip


def _judge_bars(summary: dict, bar: Callable[..., charts.Bar]) -> list[tuple]:
    """A judge's means where it scores texts, else its win rates."""
    names = dict.fromkeys(n for r in summary["runs"] for n in judges_of(r))
    cards = []
    for name in names:
        own = [(r, judges_of(r).get(name)) for r in summary["runs"]]
        scored = [bar(r, j["mean"], j) for r, j in own if j and j["mean"] is not None]
        if scored:
            cards.append((f"Judge: {name}", "mean", scored, None))
            continue
        won = [
            bar(r, j["win_rate"]["value"], j["win_rate"])
            for r, j in own if j and j.get("win_rate") and r["name"] != summary["baseline"]
        ]  # fmt: skip
        cards.append((f"Judge: {name}", f"win rate against {summary['baseline']}", won, 0.5))
    return cards


def shifts(summary: dict, colours: Colours) -> dict | None:
    """What changed in the text itself, paired with the baseline."""
    others = [r for r in _others(summary) if r.get("shifts")]
    cards = []
    for name, title in (
        ("length", "Length, tokens"), ("length_chars", "Length, characters"),
        ("distinct_1", "Distinct-1"), ("distinct_2", "Distinct-2"),
        ("repetition_4", "Repetition"), ("eos_rate", "EOS rate"),
    ):  # fmt: skip
        rows = [
            charts.Bar(r["name"], e["value"], e.get("low"), e.get("high"), colours[r["name"]])
            for r in others if (e := r["shifts"].get(name))
        ]  # fmt: skip
        if rows:
            chart = charts_compare.forest(rows, label=f"shift of {title}", reference=0.0)
            cards.append({"title": title, "chart": chart})
    meaning = f"Difference from {summary['baseline']} on the same prompts and seeds. " \
              "Distinct-n is no mean and has no interval."  # fmt: skip
    return {"title": "Shifts in length and diversity", "meaning": meaning, "cards": cards} \
        if cards else None  # fmt: skip


def categories(summary: dict, colours: Colours) -> dict | None:
    """Win rates by category: a radar where there are at least three, and the figures."""
    others = [r for r in _others(summary) if r.get("categories")]
    names = list(dict.fromkeys(c for r in others for c in r["categories"]))
    if len(names) < 2:
        return None
    cards = []
    if len(names) > 2:
        largest = sorted(names, key=lambda c: -others[0]["categories"][c]["prompts"])[:12]
        axes = [c for c in names if c in largest]
        series = [
            (r["name"], [r["categories"][c]["win_rate"]["value"] for c in axes],
             colours[r["name"]]) for r in others
        ]  # fmt: skip
        cards.append({
            "title": f"Win rate against {summary['baseline']}",
            "meaning": "by the reward; the dashed ring is 50 %",
            "legend": [(r["name"], colours[r["name"]]) for r in others],
            "chart": charts_compare.radar(axes, series, label="win rate by category",
                                          reference=0.5),
        })  # fmt: skip
    rows = []
    for c in names:
        cells: list[tuple] = [(c, f"{others[0]['categories'][c]['prompts']} prompts")]
        for r in others:
            e = r["categories"][c]["win_rate"]
            cells.append((f"{e['value']:.0%}", percent(e), e["value"] - 0.5))
        rows.append(cells)
    table = {"head": ["", *(r["name"] for r in others)], "rows": rows, "heat": True}
    cards.append({"title": "Win rate by category", "table": table})
    return {"title": "Categories", "cards": cards, "two": True}


def worst(summary: dict, colours: Colours, sample_id: Callable[[str, int], str]) -> dict | None:
    """The prompts on which each run lost most against the baseline, with both answers."""
    tabs = []
    for r in _others(summary):
        listed = [
            {
                "id": sample_id(row["prompt_id"], row["seed"]), "value": signed(row["gain"]),
                "title": " ".join(prompt_text(row["prompt"]).split())[:160],
                "meaning": _loss(row), "prompt": prompt_text(row["prompt"]),
                "answers": [
                    {"name": summary["baseline"], "text": row["baseline"],
                     "colour": colours[summary["baseline"]] % charts.COLOURS},
                    {"name": r["name"], "text": row["completion"],
                     "colour": colours[r["name"]] % charts.COLOURS},
                ],
            }
            for row in r.get("regressions", [])
        ]  # fmt: skip
        if listed:
            tabs.append({"name": r["name"], "pairs": listed})
    meaning = (f"Reward against {summary['baseline']}, mean over seeds, worst first; the seed with "
               "the largest loss is shown.")  # fmt: skip
    return {"title": "Where runs lost most", "meaning": meaning, "tabs": tabs} if tabs else None


def _loss(row: dict) -> str:
    judges = "".join(f", {name} {signed(v)}" for name, v in row.get("judges", {}).items())
    return f"Reward {signed(row['gain'])}{judges} (seed {row['seed']})."


def cost(runs: list[dict], colours: Colours) -> dict | None:
    """What training took, where the run recorded it."""
    cards = []
    for key, title, unit, scale in (
        ("time_s", "Time", "minutes", 60.0), ("tokens", "Tokens", "tokens trained on", 1.0),
        ("peak_memory_mb", "Peak memory", "GB of the device, else of the process", 1000.0),
    ):  # fmt: skip
        rows = [
            charts.Bar(r["name"], r[key] / scale, colour=colours[r["name"]])
            for r in runs if r.get(key) is not None
        ]  # fmt: skip
        if rows:
            cards.append({"title": title, "meaning": unit,
                          "chart": charts.bars(rows, label=f"{title} by run")})  # fmt: skip
    return {"title": "Cost of training", "cards": cards} if cards else None
