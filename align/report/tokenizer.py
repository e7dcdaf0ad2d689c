"""The tokenizer's part of a run's page: fit by language, beside other tokenizers, coloured tokens.

Everything is read from `tokenizer_report.json`, which the tokenizer stage writes.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from align.report import charts
from align.report.verdict import Verdict

# Below this share of the vocabulary in use on the measured text, say so.
_LITTLE_USED = 0.5
_FIGURES = (
    ("fertility", "tokens / character"),
    ("chars_per_token", "characters / token"),
    ("bytes_per_token", "bytes / token"),
    ("byte_fallback_share", "part-of-a-character tokens"),
    ("unknown_rate", "unknown"),
    ("vocabulary_coverage", "vocabulary used"),
    ("tokens", "tokens"),
)
_SHARES = ("byte_fallback_share", "unknown_rate", "vocabulary_coverage")
# Colours of neighbouring tokens, then they repeat.
_COLOURS = 5


def tokenizer_content(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a report: verdict, table, sections and blocks of tokens."""
    names = _short_names(list(report["rates"]))
    return {
        "verdict": _verdict(report, names),
        "table": _table(report, names),
        "sections": [_charts(report, names)],
        "tokens": [_sample(sample, names) for sample in report["samples"]],
    }


def _short_names(paths: list[str]) -> dict[str, str]:
    """Folder names for paths where that leaves them apart."""
    short = {path: _last(path) for path in paths}
    return short if len(set(short.values())) == len(paths) else {path: path for path in paths}


def _last(path: str) -> str:
    mark = "base " if path.startswith("base ") else ""
    parts = [p for p in PurePath(path.removeprefix(mark)).parts if p != "final"]
    return mark + parts[-1] if parts else path


def _languages(report: dict[str, Any]) -> list[str]:
    texts = report["texts"]
    return ["all", *sorted((n for n in texts if n != "all"), key=lambda n: -texts[n])]


def _verdict(report: dict[str, Any], names: dict[str, str]) -> Verdict:
    rates, texts = report["rates"]["this"]["all"], report["texts"]["all"]
    entries, changed = report["vocabulary"]["this"], report["changed"]["this"]
    fertility = charts.number(rates["fertility"])
    verdict = Verdict(f"{entries:,} entries, {fertility} tokens a character", "good")
    for name, other in report["rates"].items():
        if name != "this" and rates["tokens"] and other["all"]["tokens"]:
            change = rates["tokens"] / other["all"]["tokens"] - 1
            words = "fewer" if change < 0 else "more"
            verdict.add("info", f"{abs(change):.1%} {words} tokens than {names[name]}.")
    if changed:
        verdict.add("warn", f"{changed} of {texts} texts do not come back exactly.")
    if rates["unknown_rate"]:
        verdict.add("warn", f"{rates['unknown_rate']:.2%} of the tokens are unknown.")
    if rates["vocabulary_coverage"] < _LITTLE_USED:
        used = f"{rates['vocabulary_coverage']:.0%}"
        verdict.add("info", f"The measured text uses {used} of the vocabulary.")
    if not report["held_out"]:
        verdict.add("info", "Measured on the text it was learned from; set data.validation.")
    return verdict


def _table(report: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    rows = []
    for language in _languages(report):
        for path, rates in report["rates"].items():
            if language in rates:
                texts = f"texts: {report['texts'][language]:,}" if path == "this" else ""
                cells = [_figure(name, rates[language][name]) for name, _ in _FIGURES]
                row = [(language if path == "this" else "", texts), (names[path], "")]
                rows.append([*row, *((cell, "") for cell in cells)])
    return {
        "title": "Fit by language",
        "head": ["language", "tokenizer", *(title for _, title in _FIGURES)],
        "rows": rows,
        "notes": [
            f"Measured on {report['measured_on']}. A text's language is the script of most of its "
            "letters; latin is every language in Latin letters."
        ],
    }


def _figure(name: str, value: float) -> str:
    if name in _SHARES:
        return f"{value:.2%}"
    return f"{value:,.0f}" if name == "tokens" else f"{value:.3f}"


def _charts(report: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    cards = []
    for language in _languages(report):
        bars = [
            charts.Bar(names[path], rates[language]["fertility"], colour=i)
            for i, (path, rates) in enumerate(report["rates"].items())
            if language in rates
        ]
        label = f"tokens a character in {language} by tokenizer"
        cards.append({"title": language, "meaning": "tokens a character; less is better",
                      "chart": charts.bars(bars, label=label)})  # fmt: skip
    return {"title": "Tokens a character", "cards": cards}


def _sample(sample: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A text under each tokenizer: (what is shown, name and id, colour) of each token."""
    lines = [
        {
            "name": names[path],
            "count": len(tokens),
            "tokens": [(text, hint, i % _COLOURS) for i, (text, hint) in enumerate(tokens)],
        }
        for path, tokens in sample["tokens"].items()
    ]
    return {"title": sample["language"], "lines": lines}
