"""The import report as one HTML page: self-contained, escaped, light and dark."""

from __future__ import annotations

from typing import Any

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Annotation import</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff;
        --bar: #2f6fba; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --bar: #5b9bdf; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.soft { color: var(--soft); }
.bar { background: var(--line); height: .6rem; width: 12rem; position: relative; }
.bar i { background: var(--bar); height: 100%; display: block; }
code { font-size: .85em; }
</style></head><body>
<h1>Annotation import</h1>
<p class="soft">{{ r.groups.used }} groups, {{ r.pairs }} pairs;
{% for name, n in r.splits.items() %}{{ name }} {{ n }}{{ ", " if not loop.last }}{% endfor %}</p>
{% if r.advice or r.warnings %}<h2>Look at this first</h2><ul>
{% for text in r.warnings + r.advice %}<li>{{ text }}</li>{% endfor %}</ul>{% endif %}
<h2>Accounting</h2>
<table><tr><th></th><th class="n">in</th><th class="n">used</th><th>dropped</th></tr>
{% for name in ("rows", "votes", "groups") %}{% set c = r[name] %}
<tr><td>{{ name }}</td><td class="n">{{ c.used + c.dropped.values() | sum }}</td>
<td class="n">{{ c.used }}</td><td>{% for reason, n in c.dropped.items() %}{{ n }} {{ reason }}
{%- if c.examples[reason] %} <span class="soft">(first: {{ c.examples[reason] }})</span>{% endif %}
{{- ", " if not loop.last }}{% else %}none{% endfor %}</td></tr>{% endfor %}</table>
<p class="soft">{{ r.merged_rows }} used rows joined a comparison that was there already: the same
prompt and the same answers.</p>
<h2>Inputs</h2>
<table><tr><th>file</th><th>format</th><th>evidence</th><th class="n">used</th></tr>
{% for i in r.inputs %}<tr><td>{{ i.file }}</td><td>{{ i.format }}</td><td>{{ i.evidence }}</td>
<td class="n">{{ i.used }}</td></tr>{% endfor %}</table>
<h2>Biases</h2>
<table><tr><th>share of decided votes</th><th class="n">rate</th><th>95 % interval</th>
<th class="n">votes</th><th></th></tr>
{% for name, b in (("first-shown answer wins", r.quality.position_bias),
("longer answer wins", r.quality.length_bias),
("annotator agrees with the others", r.quality.agreement.overall)) %}
<tr><td>{{ name }}</td>{{ share(b) }}</tr>{% endfor %}</table>
<h2>Annotators against the rest</h2>
<table><tr><th>annotator</th><th class="n">judgements</th><th class="n">agreement</th>
<th>95 % interval</th><th class="n">pairs</th><th></th></tr>
{% for name, a in r.quality.agreement.annotators.items() %}<tr><td>{{ name }}</td>
<td class="n">{{ a.judgements }}</td>{{ share(a) }}</tr>{% endfor %}</table>
<h2>Findings</h2>
<table><tr><th>what</th><th class="n">times</th><th>group ids to look at</th></tr>
{% for name, found in r.quality.findings.items() %}<tr><td>{{ name }}</td>
<td class="n">{{ found.count }}</td>
<td>{% for id in found.group_ids[:5] %}<code>{{ id }}</code> {% endfor %}</td></tr>
{% else %}<tr><td colspan="3">none</td></tr>{% endfor %}
<tr><td>prompts in two splits</td><td class="n">{{ r.quality.prompts_in_two_splits }}</td>
<td></td></tr></table>
<h2>Settings</h2><table>
{% for name, value in r.settings.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></body></html>
"""

SHARE = """{% if b.rate is none %}<td class="n">–</td><td></td><td class="n">0</td><td></td>
{% else %}<td class="n">{{ "%.1f" % (100 * b.rate) }} %</td>
<td>{{ "%.1f" % (100 * b.low) }}–{{ "%.1f" % (100 * b.high) }} %</td><td class="n">{{ b.n }}</td>
<td><div class="bar"><i style="width: {{ "%.1f" % (100 * b.rate) }}%"></i></div></td>{% endif %}"""


def render(report: dict[str, Any]) -> str:
    """The page for the report of ``importing.run_import``."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True)
    share = environment.from_string(SHARE)
    page = environment.from_string(PAGE)
    return page.render(r=_Attributes(report), share=lambda b: Markup(share.render(b=b)))


class _Attributes:
    """Lets the page write ``r.rows.used`` without meeting ``dict.items`` and its like."""

    def __init__(self, values: dict[str, Any]):
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]
