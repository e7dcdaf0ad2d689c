"""The tables and the page of serve_load.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.report import charts
from align.report.page import write_page
from align.report.verdict import Verdict

BUSY_CLIENT = 0.8
HEAD = ("concurrency", "completed", "failed", "latency p50", "p95", "p99", "first token p50", "p95",
        "per token p50", "p95", "tokens/s", "tokens/answer", "requests/s")  # fmt: skip
ENGINE_HEAD = ("concurrency", "running max", "waiting max", "KV cache max", "tokens (engine)",
               "tokens (client)", "prompt tokens (engine)", "prefix cache hits")  # fmt: skip
NOTES = (
    "Times in seconds, of completed requests; percentiles are nearest-rank: the ⌈p/100 · n⌉-th "
    "smallest. First token: until the first piece of the stream. Per token: from the first piece "
    "to the last, divided by the tokens after the first.",
    "Tokens/s: output tokens of completed requests divided by the level's wall-clock time. "
    "Failures are counted by kind: http_NNN, timeout, connection, stream (an error inside it, or "
    "no end), empty (an answer without a word).",
)


def _s(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _n(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def row(level: dict[str, Any]) -> list[str]:
    """The cells of a level under HEAD."""
    failures = ", ".join(f"{n} {kind}" for kind, n in level["failures"].items()) or "0"
    if level["unfinished"]:
        failures += f", {level['unfinished']} cut off"
    latency, first, per = level["latency"], level["first_token"], level["per_token"]
    return [
        str(level["concurrency"]), f"{level['completed']}/{level['started']}", failures,
        *(_s(latency[p]) for p in ("p50", "p95", "p99")), *(_s(first[p]) for p in ("p50", "p95")),
        *(_s(per[p]) for p in ("p50", "p95")), _n(level["tokens_per_s"]),
        _n(level["tokens_per_answer"]), _n(level["requests_per_s"], 2),
    ]  # fmt: skip


def engine_row(level: dict[str, Any]) -> list[str]:
    """The cells of a level under ENGINE_HEAD."""
    found = level["engine"] or {}
    cells = [found.get(k) for k in ("max_running", "max_waiting", "max_kv_cache", "tokens")]
    kv = "–" if cells[2] is None else f"{cells[2]:.1%}"
    hits = "–"
    if found.get("prefix_queries"):
        hits = f"{found['prefix_hits'] / found['prefix_queries']:.0%}"
    whole = ["–" if v is None else f"{v:.0f}" for v in (cells[0], cells[1], cells[3])]
    prompt = found.get("prompt_tokens")
    return [str(level["concurrency"]), whole[0], whole[1], kv, whole[2],
            "–" if level["tokens"] is None else str(level["tokens"]),
            "–" if prompt is None else f"{prompt:.0f}", hits]  # fmt: skip


def findings(run: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing the figures of one server."""
    found = []
    for level in run["levels"]:
        where = f"concurrency {level['concurrency']}"
        if level["client_cpu"] > BUSY_CLIENT:
            found.append(f"{where}: this client used {level['client_cpu']:.0%} of a core and may "
                         "have been the limit")  # fmt: skip
        if level["stopped"]:
            found.append(f"{where}: {level['stopped']}")
        found += [f"{where}: {kind}: {text}" for kind, text in level["failure_details"].items()]
    if any("counted" in (level["tokens_from"] or "") for level in run["levels"]):
        found.append("the server sends no usage: tokens are pieces of its streams")
    short = [lv["tokens_per_answer"] for lv in run["levels"] if lv["tokens_per_answer"]]
    if short and min(short) < 0.99 * run["max_tokens"]:
        seen = f"{min(short):.1f} of {run['max_tokens']} tokens at one level"
        found.append(f"answers ended early: {seen}: engines did not do the same work")
    if run["error"]:
        found.append(run["error"])
    return found


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows])


def markdown(result: dict[str, Any]) -> str:
    """load.md: a table a server, what it says of itself, and how to read both."""
    parts = [f"# Load: {result['model']}", "", f"    {result['command']}", ""]
    for run in result["runs"]:
        parts += [f"## {run['name']}", "", _about(run), ""]
        if run["levels"]:
            parts += [_table(HEAD, [row(level) for level in run["levels"]]), ""]
            if any(level["engine"] for level in run["levels"]):
                parts += [_table(ENGINE_HEAD, [engine_row(lv) for lv in run["levels"]]), ""]
            else:
                parts += ["no /metrics", ""]
        parts += [f"- {text}" for text in findings(run)]
        parts += [""] if findings(run) else []
    return "\n".join([*parts, *NOTES, ""])


def _about(run: dict[str, Any]) -> str:
    started = f", ready after {run['start_s']:.1f} s" if run.get("start_s") is not None else ""
    return f"{run['url']}, model {run['model']}{started}; length fixed by: {run['form']}"


def write_report(result: dict[str, Any], path: Path) -> Path:
    """report.html: the curves over concurrency of all servers, and the tables."""
    runs = [run for run in result["runs"] if run["levels"]]
    verdict = Verdict("; ".join(map(_headline, runs)) or "Nothing was measured.")
    for run in result["runs"]:
        for text in findings(run):
            verdict.add("warn", f"{run['name']}: {text}")
    pictures = (
        ("Output tokens per second", "more is better", ("tokens_per_s", None)),
        ("Latency p50", "s, whole answer", ("latency", "p50")),
        ("Latency p95", "s, whole answer", ("latency", "p95")),
        ("Latency p99", "s, whole answer", ("latency", "p99")),
        ("First token p50", "s", ("first_token", "p50")),
        ("First token p95", "s", ("first_token", "p95")),
        ("Per token p50", "s, after the first", ("per_token", "p50")),
    )
    cards = [_card(runs, title, meaning, *keys) for title, meaning, keys in pictures]
    blocks = []
    for run in runs:
        rows = [row(level) for level in run["levels"]]
        blocks.append({"title": f"{run['name']}: {run['model']}", "head": HEAD, "rows": rows})
        if any(level["engine"] for level in run["levels"]):
            own = [engine_row(level) for level in run["levels"]]
            blocks.append({"title": f"{run['name']}: /metrics", "head": ENGINE_HEAD, "rows": own})
    return write_page(
        path, title=f"Load: {result['model']}",
        subtitle=f"at most {result['max_tokens']} tokens, seed {result['seed']}, {result['time']}",
        verdict=verdict, sections=[{"title": "Over concurrency", "cards": cards}], blocks=blocks,
        footer=" ".join(NOTES),
    )  # fmt: skip


def _headline(run: dict[str, Any]) -> str:
    best = max(run["levels"], key=lambda level: level["tokens_per_s"] or 0.0)
    if best["tokens_per_s"] is None:
        return f"{run['name']}: no tokens were counted"
    return (
        f"{run['name']}: up to {best['tokens_per_s']:.0f} tokens/s at concurrency "
        f"{best['concurrency']}"
    )


def _card(
    runs: list[dict[str, Any]], title: str, meaning: str, key: str, part: str | None
) -> dict[str, Any]:
    series = []
    for colour, run in enumerate(runs):
        found = [(lv["concurrency"], lv[key] if part is None else lv[key][part])
                 for lv in run["levels"]]  # fmt: skip
        points = [(float(x), float(y)) for x, y in found if y is not None]
        series.append(charts.Series(run["name"], points, colour, "line+points"))
    legend = [(s.name, s.colour) for s in series] if len(series) > 1 else []
    return {"title": title, "meaning": meaning, "legend": legend,
            "chart": charts.lines(series, label=title, x_label="concurrency")}  # fmt: skip
