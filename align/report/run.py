"""A run directory becomes report.html: verdict, curves, samples, data counts, config, manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from align.config_yaml import load_yaml
from align.report import charts, glossary
from align.report.page import sample_store, write_page
from align.report.tokenizer import tokenizer_content
from align.report.verdict import judge

Curve = list[tuple[float, float]]


def write_run_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Reads config.yaml, manifest.json, metrics.jsonl, samples.jsonl and data_counts.json; each may be
    missing or end in a half-written line, as they do while a run is under way.
    """
    run_dir = Path(run_dir)
    config, manifest = _yaml(run_dir / "config.yaml"), _json(run_dir / "manifest.json")
    rows = read_lines(run_dir / "metrics.jsonl")
    curves = curves_of(rows)
    method = method_of(run_dir, config, manifest, curves)
    name = run_dir.resolve().name
    blocks = [
        _counts_block(_json(run_dir / "data_counts.json")),
        _text_block("Config", "config.yaml", run_dir / "config.yaml"),
        _text_block("Manifest", "manifest.json", run_dir / "manifest.json"),
    ]
    own = _json(run_dir / "tokenizer_report.json") if method == "tokenizer" else {}
    content: dict[str, Any] = {"verdict": judge(method, curves), "sections": _sections(curves)}
    return write_page(
        run_dir / "report.html",
        title=name if name == method else f"{name} · {method}",
        subtitle=_subtitle(config, manifest),
        stats=_stats(curves, rows),
        samples=sample_browser(read_lines(run_dir / "samples.jsonl")),
        blocks=[b for b in blocks if b],
        footer="Names are explained in docs/metrics.md.",
        **(tokenizer_content(own) if own else content),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file; a line that is not complete JSON (half written) is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def curves_of(rows: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    """Curves by metric name, sorted by step; where a resumed run repeats a step the last wins."""
    values: dict[str, dict[float, float]] = {}
    for row in rows:
        step = row.get("step")
        if step is None or not _is_number(step):
            continue
        for key, value in row.items():
            if key not in glossary.NOT_CURVES and _is_number(value):
                values.setdefault(key, {})[float(step)] = float(value)
    return {k: sorted(v.items()) for k, v in values.items()}


def method_of(run_dir: Path, config: dict, manifest: dict, curves: dict[str, Curve]) -> str:
    """Method of a run: from its manifest or config, else guessed from what it logged."""
    for source in (manifest, config):
        if isinstance(source.get("method"), str):
            return source["method"]
    if any(k in curves for k in ("score/mean", "approx_kl")):
        return "ppo"
    if any(k in curves for k in ("log_odds", "loss/odds")):
        return "orpo"
    if any(k in curves for k in ("rewards/margins", "logps/chosen")):
        return "dpo"
    if "eval_accuracy" in curves:
        return "reward"
    name = run_dir.resolve().name
    return name if name in ("pretrain", "sft", "tokenizer") else "run"


def _sections(curves: dict[str, Curve]) -> list[dict]:
    """Cards by group; a quantity and its `eval_` twin share one chart, single values get none."""
    names = dict.fromkeys(glossary.base_name(k) for k in curves)
    grouped: dict[str, list[dict]] = {}
    for name in names:
        train, held_out = curves.get(name, []), curves.get(f"eval_{name}", [])
        if len(train) < 2 and len(held_out) < 2:
            continue
        grouped.setdefault(glossary.group_of(name), []).append(_card(name, train, held_out))
    order = [*glossary.GROUPS, glossary.OTHER]
    return [{"title": g, "cards": grouped[g]} for g in order if g in grouped]


def _card(name: str, train: Curve, held_out: Curve) -> dict:
    series = []
    if train:
        series.append(charts.Series("training", train, 0, "line" if len(train) > 1 else "points"))
    if held_out:
        series.append(charts.Series("held out", held_out, 1, "line+points"))
    key = series[-1]
    last = charts.number(key.points[-1][1])
    first = charts.number(key.points[0][1])
    steps = charts.number(key.points[-1][0])
    return {
        "title": name,
        "meaning": glossary.meaning(name),
        "last": last,
        "legend": [(s.name, s.colour) for s in series] if len(series) > 1 else [],
        "chart": charts.lines(series, label=f"{name}: {first} to {last} at step {steps}"),
    }


def _stats(curves: dict[str, Curve], rows: list[dict]) -> list[tuple[str, str]]:
    """Headline numbers: steps, and the metrics that were logged once (totals, final evaluation)."""
    steps = [float(r["step"]) for r in rows if _is_number(r.get("step"))]
    out = [("steps", charts.number(max(steps)))] if steps else []
    single = [(k, v[0][1]) for k, v in curves.items() if len(v) == 1]
    paired = {glossary.base_name(k) for k, v in curves.items() if len(v) > 1}
    out += [(k, charts.number(v)) for k, v in single if glossary.base_name(k) not in paired]
    return out[:16]


def sample_browser(rows: list[dict]) -> dict | None:
    """What the page's sample browser shows of samples.jsonl rows; opens at the newest step."""
    shaped = []
    for row in rows:
        facts = {
            k: round(v, 4) if isinstance(v, float) else v
            for k, v in row.items()
            if k not in ("prompt", "completion", "text") and isinstance(v, (int, float, str))
        }
        score = row.get("score")
        text = str(row.get("completion", row.get("text", "")))
        shaped.append({
            "prompt": prompt_text(row.get("prompt", "")),
            "group": f"step {row['step']}" if "step" in row else "",
            "value": float(score) if isinstance(score, (int, float)) else 0.0,
            "answers": [{"name": "completion", "text": text, "facts": facts}],
        })  # fmt: skip
    newest = shaped[-1]["group"] if shaped else ""
    return sample_store(shaped, group=newest, group_label="step", value_label="score", colours={})


def prompt_text(prompt: Any) -> str:
    """A prompt for reading: text as it is, messages as `role: content` lines (one turn bare)."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(isinstance(m, dict) for m in prompt):
        if len(prompt) == 1:
            return str(prompt[0].get("content", ""))
        return "\n".join(f"{m.get('role', '?')}: {m.get('content', '')}" for m in prompt)
    return json.dumps(prompt, ensure_ascii=False)


def _counts_block(counts: Any) -> dict | None:
    counts = [counts] if isinstance(counts, dict) and counts else counts
    if not isinstance(counts, list) or not counts:
        return None
    rows = []
    for c in counts:
        dropped = c.get("dropped") or {}
        reasons = ", ".join(f"{k} {v}" for k, v in dropped.items()) or "none"
        total = sum(v for v in dropped.values() if _is_number(v))
        rows.append([c.get("file", ""), c.get("used", 0), total, reasons, c.get("truncated", 0)])
    head = ["file", "used", "dropped", "reasons", "truncated"]
    return {"title": "Data", "head": head, "rows": rows}


def _text_block(title: str, summary: str, path: Path) -> dict | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    return {"title": title, "summary": summary, "text": text}


def _subtitle(config: dict, manifest: dict) -> str:
    policy = config.get("policy") if isinstance(config.get("policy"), dict) else {}
    parts = [f"model {policy['path']}" if policy and policy.get("path") else ""]
    parts += [f"git {str(manifest['git_commit'])[:10]}" if manifest.get("git_commit") else ""]
    for key in ("started", "created", "world_size", "seed"):
        parts.append(f"{key.replace('_', ' ')} {manifest[key]}" if key in manifest else "")
    return " · ".join(p for p in parts if p)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _yaml(path: Path) -> dict:
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
