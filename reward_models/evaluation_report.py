"""Evaluations as one HTML page: self-contained, escaped, light and dark."""

from __future__ import annotations

from typing import Any

from reward_models import evaluation_charts as charts

STYLE = (
    """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff;
        --c0: #2f6fba; --c1: #c2571a; --c2: #7a828b; --c3: #2b8a4b; --warn: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --c0: #5b9bdf;
          --c1: #f0883e; --c2: #8b949e; --c3: #56c271; --warn: #3a2f12; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; overflow-wrap: break-word; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { white-space: pre-wrap; min-width: 12rem; overflow-wrap: anywhere; }
tr.total td { font-weight: 600; }
.soft { color: var(--soft); } .big { font-size: 1.15rem; }
.warn { background: var(--warn); padding: .5rem 1rem; border-radius: 6px; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; } .pair > figure { flex: 1 1 26rem; margin: 0; }
.bar { background: var(--line); height: .6rem; width: 10rem; position: relative;
       margin-top: .4rem; }
.bar i { background: var(--c0); height: 100%; display: block; }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px; background: var(--c1); }
.bar u { position: absolute; top: .25rem; height: 2px; background: var(--ink); }
svg { width: 100%; max-width: 38rem; height: auto; }
svg text { fill: var(--soft); font-size: 12px; }
svg .rule { stroke: var(--line); } svg .zero { stroke: var(--soft); }
svg .whisker { stroke: var(--ink); opacity: .6; } svg .line { fill: none; stroke-width: 2; }
svg .ideal { stroke: var(--soft); stroke-dasharray: 4 4; } svg .faint { opacity: .55; }
svg .band { opacity: .18; stroke: none; }
"""
    + "".join(
        f"svg .line.c{i} {{ stroke: var(--c{i}); }} svg .dot.c{i}, svg .band.c{i}, i.c{i} "
        f"{{ fill: var(--c{i}); background: var(--c{i}); }}\n"
        for i in range(4)
    )
    + "i.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; } "
    + "span.key { white-space: nowrap; margin-right: .8rem; }"
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p class="soft">{% for name, value in about.items() %}{{ name }} <code>{{ value }}</code>
{{- "; " if not loop.last }}{% endfor %}</p>
<p class="big">{{ headline }}</p>
{% if advice %}<div class="warn"><ul>{% for text in advice %}<li>{{ text }}</li>{% endfor %}
</ul></div>{% endif %}
{{ body }}
{% if counts %}<h2>Accounting</h2>
<table><tr><th></th><th class="n">used</th><th>dropped</th></tr>
{% for name, c in counts.items() %}<tr><td>{{ name }}</td><td class="n">{{ c.used }}</td>
<td>{% for reason, n in c.dropped.items() %}{{ n }} {{ reason }}{{ ", " if not loop.last }}
{%- else %}none{% endfor %}</td></tr>{% endfor %}</table>{% endif %}
</body></html>
"""

MACROS = """
{% macro percent(x) %}{{ "–" if x is none else "%.1f" % (100 * x) }}{% endmacro %}
{% macro span(low, high) %}{% if low is none %}–{% else %}{{ percent(low) }}–{{ percent(high) }}
{%- endif %}{% endmacro %}
{% macro bar(x, low, high, mark) %}<div class="bar">
{%- if x is not none %}<i style="width:{{ percent(x) }}%"></i>{% endif %}
{%- if low is not none %}<u style="left:{{ percent(low) }}%;width:{{ percent(high - low) }}%"></u>
{%- endif %}{% if mark is not none %}<b style="left:{{ percent(mark) }}%"></b>{% endif %}</div>
{%- endmacro %}
{% macro plain(f) %}<td class="n">{{ number(f.value) }}</td>
<td class="n">{% if f.low is none %}–{% else %}{{ number(f.low) }} to {{ number(f.high) }}
{%- endif %}</td>{% endmacro %}
{% macro key(i, text) %}<span class="key">
<i class="key c{{ i }}"></i> {{ text }}</span> {% endmacro %}
"""

PAIRS = (
    MACROS
    + """
{% if r.by %}<h2>Accuracy in parts</h2>
<p class="soft">Per cent of pairs in the right order; 95 % interval, groups resampled. The mark is
the length baseline: the longer answer is called better.</p>
<table><tr><th></th><th></th><th class="n">accuracy</th><th class="n">95 %</th>
<th class="n">length alone</th><th class="n">pairs</th><th></th></tr>
<tr class="total"><td>all</td><td></td><td class="n">{{ percent(r.eval_accuracy) }}</td>
<td class="n">{{ span(r.eval_accuracy_low, r.eval_accuracy_high) }}</td>
<td class="n">{{ percent(r.eval_length_baseline) }}</td><td class="n">{{ r.eval_pairs }}</td>
<td>{{ bar(r.eval_accuracy, r.eval_accuracy_low, r.eval_accuracy_high, r.eval_length_baseline) }}
</td></tr>
{% for name, parts in r.by.items() %}{% for label, p in parts.items() %}
<tr><td>{{ name.replace("_", " ") if loop.first }}</td><td>{{ label }}</td>
<td class="n">{{ percent(p.accuracy) }}</td><td class="n">{{ span(p.low, p.high) }}</td>
<td class="n">{{ percent(p.length_baseline) }}</td><td class="n">{{ p.pairs }}</td>
<td>{{ bar(p.accuracy, p.low, p.high, p.length_baseline) }}</td></tr>
{% endfor %}{% endfor %}</table>
<div class="pair"><figure><h2>Calibration</h2>{{ reliability }}
<p class="soft">{{ key(0, "as it is") }}{{ key(1, "with the temperature") }}<br>
Expected calibration error {{ number(r.eval_ece) }}; with temperature
{{ number(r.eval_temperature) }}: {{ number(r.eval_ece_calibrated) }}. Loss
{{ number(r.eval_loss) }} nats; 0.693 says nothing is known. Dots grow with their share of the
pairs.</p></figure>
{% if r.length_bias %}<figure><h2>Length</h2>{{ scatter }}
<p class="soft">{{ key(0, "a pair") }}{{ key(1, "slope") }}<br>One character is one code point.</p>
</figure>{% endif %}</div>
{% if r.length_bias %}<table><tr><th></th><th class="n">value</th><th class="n">95 %</th></tr>
{% for name, text in length_names.items() %}<tr><td>{{ text }}</td>{{ plain(r.length_bias[name]) }}
</tr>{% endfor %}</table>{% endif %}{% endif %}
{% for b in r.best_of_n %}<h2>Best of n{{ " (" + b.unit + ")" }}</h2>
{{ curves[loop.index0] }}
<p class="soft">{{ key(0, "the model's pick") }}{{ key(1, "the longest") }}{{ key(2, "random") }}
{{ key(3, "the best there is") }}<br>Exact expectations over all ways to draw n of
the answers of each of {{ b.groups }} groups.</p>
<table><tr><th class="n">n</th><th class="n">pick</th><th class="n">95 %</th><th class="n">random
</th><th class="n">longest</th><th class="n">best</th><th class="n">share of the possible gain</th>
<th class="n">groups</th></tr>{% for p in b.curve if p.n in shown_n or loop.last %}
<tr><td class="n">{{ p.n }}</td><td class="n">{{ number(p.gold) }}</td>
<td class="n">{{ number(p.low) }} to {{ number(p.high) }}</td><td class="n">{{ number(p.random) }}
</td><td class="n">{{ number(p.longest) }}</td><td class="n">{{ number(p.oracle) }}</td>
<td class="n">{{ percent(p.gain) }}</td><td class="n">{{ p.groups }}</td></tr>{% endfor %}</table>
{% endfor %}
{% if r.mistakes %}<h2>Surest mistakes</h2>
<p class="soft">Pairs that the model orders against the votes, widest first. Wrong labels are often
among them.</p><table><tr><th>prompt</th><th>preferred</th><th>other</th><th class="n">Δ</th></tr>
{% for m in r.mistakes %}<tr><td class="t">{{ m.prompt }}</td><td class="t">{{ m.preferred }}</td>
<td class="t">{{ m.other }}</td><td class="n">{{ number(m.delta) }}</td></tr>{% endfor %}</table>
{% endif %}
"""
)

BENCH = (
    MACROS
    + """
{% for title, part in tables %}<h2>{{ title }}</h2>
<table><tr><th></th><th class="n">score</th><th class="n">95 %</th>
<th class="n">length alone</th>{% if title == "Subsets" %}<th class="n">rows</th>{% endif %}
<th></th></tr>
{% for name, s in part.items() %}{% set base = r.length_baseline[title | lower][name] %}
<tr><td>{{ name }}{% if s.missing %} <span class="soft">without {{ s.missing | join(", ") }}</span>
{%- endif %}</td><td class="n">{{ percent(s.score) }}</td>
<td class="n">{{ span(s.low, s.high) }}</td><td class="n">{{ percent(base) }}</td>
{% if title == "Subsets" %}<td class="n">{{ s.rows }}</td>{% endif %}
<td>{{ bar(s.score, s.low, s.high, base) }}</td></tr>
{% endfor %}</table>{% endfor %}
<p class="soft">Per cent. The mark is the longer answer's score.</p>
{% if r.ties %}<h2>Parts of Ties</h2><table>{% for name, x in r.ties.items() %}
<tr><td>{{ name.replace("_", " ") }}</td><td class="n">{{ percent(x) }}</td></tr>{% endfor %}
</table>{% endif %}
"""
)

COMPARE = (
    MACROS
    + """
<h2>Agreement</h2><table><tr><th></th><th class="n">value</th><th class="n">95 %</th></tr>
{% for name, text in names.items() %}<tr><td>{{ text }}</td>{{ plain(r[name]) }}</tr>{% endfor %}
{% if r.votes %}{% for name, text in vote_names.items() %}<tr><td>{{ text }}</td>
{{ plain(r.votes[name]) }}</tr>{% endfor %}{% endif %}</table>
{% if r.disagreements %}<h2>Surest disagreements</h2>
<table><tr><th>prompt</th><th>A prefers</th><th>B prefers</th><th class="n">A: scores</th>
<th class="n">B: scores</th></tr>{% for d in r.disagreements %}<tr><td class="t">{{ d.prompt }}</td>
<td class="t">{{ d.a_prefers }}</td><td class="t">{{ d.b_prefers }}</td>
{% for s in (d.scores_a, d.scores_b) %}<td class="n">{{ number(s[0]) }}<br>{{ number(s[1]) }}</td>
{% endfor %}</tr>{% endfor %}</table>{% endif %}
"""
)

LENGTH_NAMES = {
    "gain_over_length": "accuracy beyond that of length alone",
    "slope": "score per 100 characters",
    "slope_given_votes": "score per 100 characters where the votes are alike",
    "correlation": "correlation of length and score differences",
    "model_prefers_longer": "share of pairs where the model prefers the longer answer",
    "votes_prefer_longer": "share of votes for the longer answer",
}
COMPARE_NAMES = {
    "pair_agreement": "pairs in the same order",
    "kappa": "Cohen's κ of the order",
    "spearman": "Spearman's ρ within groups of three or more",
    "kendall": "Kendall's τ-b within groups of three or more",
    "longer_a": "A prefers the longer answer",
    "longer_b": "B prefers the longer answer",
}
VOTE_NAMES = {
    "accuracy_a": "A: accuracy",
    "accuracy_b": "B: accuracy",
    "difference": "B − A",
    "error_consistency": "κ of being right (error consistency)",
}


def render(result: dict[str, Any], about: dict[str, Any]) -> str:
    """The page of a result of ``evaluate`` (any protocol) or ``compare``.

    about: what was evaluated, shown under the title.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True)
    title, template, values = _content(result)
    counts = {n: _counts(result[n]) for n in ("rows", "groups") if isinstance(result.get(n), dict)}
    body = environment.from_string(template).render(r=result, number=charts.number, **values)
    return environment.from_string(PAGE).render(
        title=title,
        style=Markup(STYLE),
        about=about,
        headline=headline(result),
        advice=[*advice(result), *result.get("warnings", [])],
        body=Markup(body),  # rendered with autoescape
        counts=counts,
    )


def _content(result: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if "protocol" in result:
        name = {"rewardbench": "RewardBench", "rewardbench2": "RewardBench 2"}[result["protocol"]]
        tables = [("Sections", result["sections"]), ("Subsets", result["subsets"])]
        # RewardBench 2's sections are its subsets: both are shown only where one is missing.
        alike = result["protocol"] == "rewardbench2" and result["overall"]["score"] is not None
        return name, BENCH, {"tables": tables[alike:]}
    if "pair_agreement" in result:
        return "Two reward models", COMPARE, {"names": COMPARE_NAMES, "vote_names": VOTE_NAMES}
    values: dict[str, Any] = {
        "length_names": LENGTH_NAMES,
        "shown_n": {1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024},
        "curves": [charts.curves(b["curve"], b["unit"]) for b in result["best_of_n"]],
    }
    if result.get("calibration"):
        bins = result["calibration"]
        values["reliability"] = charts.reliability(bins["raw"], bins["with_temperature"])
    if bias := result.get("length_bias"):
        values["scatter"] = charts.scatter(bias["points"], bias["slope"]["value"], 100.0)
    return "Reward model evaluation", PAIRS, values


def _counts(counts: dict[str, Any]) -> dict[str, Any]:
    used = counts.get("used", counts.get("scored"))
    return {"used": used, "dropped": counts.get("dropped", {})}


def headline(result: dict[str, Any]) -> str:
    """The result in one sentence."""
    if "protocol" in result:
        score = result["overall"]
        if score["score"] is None:
            return f"No overall score: {', '.join(score['missing'])} missing."
        return f"Overall {_percent(score['score'], score['low'], score['high'])}."
    if "pair_agreement" in result:
        found = result["pair_agreement"]
        said = _percent(found["value"], found["low"], found["high"])
        return f"The models order {said} of {result['pairs']} pairs alike."
    if result["eval_accuracy"] is None:
        return _without_votes(result)
    bounds = (result["eval_accuracy_low"], result["eval_accuracy_high"])
    longer = result["eval_length_baseline"]
    side, share = ("longer", longer) if longer >= 0.5 else ("shorter", 1.0 - longer)
    return (
        f"{_percent(result['eval_accuracy'], *bounds)} of {result['eval_pairs']} pairs are in the "
        f"order of the votes. Length alone (the {side} answer): {share:.1%}."
    )


def _without_votes(result: dict[str, Any]) -> str:
    if not result["best_of_n"]:
        return "The votes prefer no answer, so there is no accuracy."
    first = result["best_of_n"][0]
    last, number = first["curve"][-1], charts.number
    return (
        f"The best of {last['n']} by this model: {number(last['gold'])} ({first['unit']}); a "
        f"random one {number(last['random'])}, the best there is {number(last['oracle'])}."
    )


def _percent(value: float, low: float | None, high: float | None) -> str:
    bounds = "" if low is None or high is None else f" (95 %: {low:.1%} to {high:.1%})"
    return f"{value:.1%}{bounds}"


def advice(result: dict[str, Any]) -> list[str]:
    """What to watch, one sentence each; only what stands out."""
    said = _shortened(result)
    if missing := result.get("in_no_section"):
        said.append(f"In no section: {', '.join(missing)}.")
    if "eval_temperature" not in result:
        return said
    bias = result["length_bias"]
    if bias and (low := bias["gain_over_length"]["low"]) is not None and low <= 0:
        said.append(
            "The model is not clearly better than length: the interval of its accuracy beyond "
            "that of length alone does not lie above 0."
        )
    partial = bias["slope_given_votes"] if bias else {}
    if partial.get("low") is not None and partial["low"] * partial["high"] > 0:
        side = "longer" if partial["low"] > 0 else "shorter"
        said.append(f"Where the votes are alike it still prefers {side} answers.")
    if result["eval_temperature"] > 1.5:
        said.append(
            f"It is too sure: differences mean what they claim when they are divided by "
            f"{result['eval_temperature']:.2g}."
        )
    if result["eval_accuracy_high"] - result["eval_accuracy_low"] > 0.1:
        said.append("The interval of the accuracy is wide: take more pairs before comparing.")
    return said


def _shortened(result: dict[str, Any]) -> list[str]:
    """Said where a model did not see the ends of a tenth of the answers or more."""
    found, answers = result.get("truncated", 0), result.get("answers", 0)
    most = max(found) if isinstance(found, list) else found
    if not answers or 10 * most < answers:
        return []
    return [f"{most} of {answers} answers were too long: the model read them shortened."]
