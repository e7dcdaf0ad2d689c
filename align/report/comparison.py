"""A comparison becomes report.html: verdict, table, charts, regressions, samples side by side."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from align.report import comparison_sections as parts
from align.report.charts import number
from align.report.comparison_sections import few, interval, judges_of, percent, signed
from align.report.page import sample_store, write_page
from align.report.run import prompt_text
from align.report.verdict import Verdict


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
    judges = summary.get("judges") or [j for j in (summary["judge"],) if j]
    facts = [
        f"{summary['num_prompts']} held-out prompts", f"seeds {_list(summary['seeds'])}", decoding,
        f"reward {summary['reward']}", f"judge {_list(judges) or 'none'}",
    ]  # fmt: skip
    sections = [
        parts.frontier(summary, colours),
        parts.pairs(summary, colours),
        parts.bars(summary, colours),
        parts.shifts(summary, colours),
        parts.categories(summary, colours),
        parts.worst(summary, colours, sample_id),
        parts.cost(runs, colours),
    ]
    return write_page(
        Path(path),
        title="Comparison: " + ", ".join(r["name"] for r in runs),
        subtitle=" · ".join(facts),
        verdict=_verdict(summary),
        table=_table(summary),
        sections=[s for s in sections if s],
        samples=_samples(samples or [], colours, summary["baseline"]),
        blocks=[_sources(runs)],
        footer="Definitions and formulas: docs/comparison.md.",
    )


def sample_id(prompt_id: str, seed: int) -> str:
    """What a link calls a prompt under a seed."""
    return hashlib.sha256(f"{prompt_id}\x1f{seed}".encode("utf-8", "replace")).hexdigest()[:10]


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
        for name, judged in judges_of(r).items():
            if not judged["agrees"]:
                verdict.add("warn", f"{r['name']}: {name} moved the other way ({_moved(judged)}).")
        _over_optimised(verdict, r, summary["judge"])
        _by_length(verdict, r)
        if r["eos_rate"] < 0.5:
            verdict.add("warn", f"{r['name']}: only {r['eos_rate']:.0%} of the completions ended.")
    for name, found in (summary.get("pairwise") or {}).items():
        _doubtful(verdict, name, found.get("report") or {})
    order = ("bad", "warn", "good", "info")
    verdict.findings.sort(key=lambda found: order.index(found[0]))
    return verdict


def _finding(run: dict, baseline: str) -> tuple[str, str]:
    gain = run["gain"]
    text = (f"{run['name']}: reward {signed(gain['value'])} "
            f"[{few(gain['low'])}, {few(gain['high'])}] against {baseline}")  # fmt: skip
    if gain["low"] > 0:
        return "good", text + "."
    if gain["high"] < 0:
        return "bad", text + ": worse."
    return "warn", text + ": the interval includes 0."


def _moved(judged: dict) -> str:
    if judged.get("gain"):
        return signed(judged["gain"]["value"])
    rate = judged.get("win_rate")
    return f"win rate {rate['value']:.0%}" if rate else "no votes"


def _over_optimised(verdict: Verdict, run: dict, judge: str | None) -> None:
    """Whether the gold judge fell while the reward went on rising."""
    found = (run.get("frontier") or {}).get("over_optimisation")
    if not found:
        return
    name, drop = run["name"], found["drop"]
    peak = f"{judge} was highest at step {found['peak_step']} ({few(found['gold_at_peak'])})"
    lost = f"{few(drop['value'])} [{few(drop['low'])}, {few(drop['high'])}]"
    if found["found"]:
        rise = signed(found["reward_rise_after_peak"])
        verdict.add("bad", f"{name} is over-optimised: {peak} and lost {lost} by step "
                           f"{found['last_step']}, while the reward moved by {rise}.")  # fmt: skip
    elif found["peak_step"] == found["last_step"]:
        verdict.add("good", f"{name}: {judge} is highest at the end of the run.")
    else:
        verdict.add("info", f"{name}: {peak}; what it lost after that, {lost}, "
                            + ("came with the reward." if drop["low"] > 0
                               else "may be chance."))  # fmt: skip


def _by_length(verdict: Verdict, run: dict) -> None:
    raw, even = run["win_rate"], run.get("length_controlled_win_rate")
    if even and raw["value"] > 0.5 > even["value"]:
        verdict.add("warn", f"{run['name']} wins by length: {raw['value']:.0%} of the pairs, and "
                            f"{even['value']:.0%} at equal length.")  # fmt: skip


def _doubtful(verdict: Verdict, judge: str, report: dict) -> None:
    """What speaks against a judge of pairs: its own answers in the other order, or none."""
    if (report.get("flip_rate") or 0.0) > 1 / 3:
        verdict.add("warn", f"{judge} changed its mind with the order of the answers in "
                            f"{report['flip_rate']:.0%} of the pairs.")  # fmt: skip
    failed = report.get("failed", 0) / report["pairs"] if report.get("pairs") else 0.0
    if failed > 0.05:
        verdict.add("warn", f"{judge} gave no verdict on {failed:.0%} of the pairs, which count as "
                            "ties.")  # fmt: skip


def _table(summary: dict) -> dict:
    head = ["run", "reward", "gain in SFT std", "win rate", "at equal length", "KL to SFT",
            "NLL under SFT", "judge", "length", "distinct‑2", "repetition", "EOS rate"]  # fmt: skip
    return {
        "title": "Results",
        "head": head,
        "rows": [_row(r, summary["baseline"]) for r in summary["runs"]],
        "notes": [
            "Intervals are 95 % bootstrap over prompts. Win rate: by the reward, as it is and at "
            "equal length (logistic). KL: nats per completion, on the run's own samples. NLL: nats "
            "per token of the completions under the baseline. Length: tokens.",
            *summary.get("notes", []),
        ],
    }


def _row(r: dict, baseline: str) -> list[tuple[str, str]]:
    base, means = r["name"] == baseline, r.get("intervals", {})
    win, kl, judge, gain = r["win_rate"], r.get("kl"), r.get("judge"), r["gain"]
    even, nll = r.get("length_controlled_win_rate"), r.get("nll_baseline")
    dash = ("–", "")

    def mean(name: str, text: str) -> tuple[str, str]:
        return text, interval(means[name]) if name in means else ""

    rate = means.get("eos_rate")
    return [
        (r["name"], "baseline" if base else ""),
        (number(r["reward"]["mean"]), f"± {number(r['reward']['std'])}"),
        dash if base or gain["in_baseline_std"] is None else (_std(gain["in_baseline_std"]), ""),
        dash if base else (f"{win['value']:.1%}", percent(win)),
        dash if base or not even else (f"{even['value']:.1%}", percent(even)),
        dash if base or not kl else (number(kl["value"]), interval(kl)),
        (number(nll["per_token"]), interval(nll) if "low" in nll else "") if nll else dash,
        _judge_cell(judge, base) if judge else dash,
        mean("length", number(r["length"])),
        (number(r["distinct_2"]), ""),
        mean("repetition_4", number(r["repetition_4"])),
        (f"{r['eos_rate']:.0%}", percent(rate) if rate else ""),
    ]


def _judge_cell(judge: dict, base: bool) -> tuple[str, str]:
    if judge["mean"] is None:
        return "–", ""
    return number(judge["mean"]), "" if base else signed(judge["gain"]["value"])


def _samples(rows: list[dict], colours: dict[str, int], baseline: str) -> dict | None:
    """One browser row a (prompt, seed), runs in order; value: the best gain over the baseline."""
    grouped: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        grouped.setdefault((row["prompt_id"], row["seed"]), []).append(row)
    one_seed = len({seed for _, seed in grouped}) < 2
    shaped = []
    for (prompt_id, seed), answers in grouped.items():
        own = {a["run"]: a for a in answers}
        base = own[baseline]["score"] if baseline in own else None
        category = answers[0].get("category")
        made = [
            _answer(a, base, baseline)
            for a in sorted(answers, key=lambda a: colours.get(a["run"], 99))
        ]
        shaped.append({
            "id": sample_id(prompt_id, seed),
            "prompt": prompt_text(answers[0]["prompt"]),
            "group": "" if one_seed else f"seed {seed}",
            "value": max((a["gain"] for a in made if "gain" in a), default=0.0),
            "tags": {"category": category} if category is not None else {},
            "answers": made,
        })  # fmt: skip
    name = baseline if any(a["run"] == baseline for a in rows) else None
    return sample_store(
        shaped, group="", group_label="seed", value_label="gain", colours=colours,
        base=name if len(colours) > 1 else None,
    )  # fmt: skip


def _answer(row: dict, base: float | None, baseline: str) -> dict:
    judges = row.get("judges") or {"judge": row.get("judge")}
    facts = {"score": row["score"], "kl": row["kl"], **judges, "length": row["length"]}
    gain = {} if base is None or row["run"] == baseline else {"gain": round(row["score"] - base, 4)}
    return {
        "name": row["run"],
        "text": row["completion"],
        "score": round(row["score"], 4),
        "finished": row["finished"],
        **gain,
        "facts": {
            k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items() if v is not None
        },
    }


def _sources(runs: list[dict]) -> dict:
    rows = [[r["name"], r.get("method") or "–", r["path"], r["samples"]] for r in runs]
    return {"title": "Runs", "head": ["run", "method", "path", "samples"], "rows": rows}


def _std(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _list(values: list) -> str:
    return ", ".join(str(v) for v in values)
