"""Suites: what is asked of a model, how it is decoded, what is measured, and what must hold.

    name: zh_general
    tasks:
      - name: instructions
        data: data/zh_general.jsonl         # relative to this file
        kind: generate                      # or log_likelihood, perplexity
        prompt: "{question}"
        decoding: {max_new_tokens: 256, temperature: 0}
        metrics: [length, repetition, rouge]
        references: reference
        category: category
    thresholds: {"instructions/eos_rate": {min: 0.5}}

Strict: a wrong key, field or metric is a UserError before a model is loaded. No torch here.
Keys and figures: docs/suites.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.config_errors import NO_VALUE, UserError, nearest
from align.config_yaml import read_yaml
from align.evaluation.suite_metrics import METRICS, names_of
from align.evaluation.suite_rows import Row, Shots, read_rows

FOLDER = Path(__file__).resolve().parents[2] / "suites"
KINDS = ("generate", "log_likelihood", "perplexity")
_SUITE_KEYS = ("name", "description", "tasks", "thresholds")
_ROUGE_TOKENS = ("auto", "default", "char", "jieba")


@dataclass(frozen=True)
class TaskDecoding:
    """How a task's answers are drawn. num_samples: completions a prompt; temperature 0: greedy."""

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One list of prompts with its figures; rows are read and checked already.

    chat: None renders with the tokenizer's template where it has one. answer_as: what stands for a
    choice, its text or its letter. window, stride, packed: of perplexity.
    """

    name: str
    kind: str
    data: Path
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    shots: tuple[Shots, ...] = ()
    decoding: TaskDecoding = TaskDecoding()
    chat: bool | None = None
    answer_as: str = "text"
    tokenizer: str = "auto"
    window: int | None = None
    stride: int | None = None
    packed: bool = False

    def figures(self, *, reward: bool = False, judge: bool = False) -> dict[str, bool | None]:
        """Names of the figures that it will have, and whether more is better (None: neither)."""
        return names_of(self.kind, self.metrics, self.decoding.num_samples, reward, judge)


@dataclass(frozen=True)
class Threshold:
    """A limit that a figure `task/metric` must keep."""

    figure: str
    low: float | None = None
    high: float | None = None

    def verdict(self, value: float) -> dict[str, Any]:
        """The entry of evaluation.json; a figure that is no number fails."""
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        limits = {"min": self.low, "max": self.high}
        kept = {k: v for k, v in limits.items() if v is not None}
        return {"figure": self.figure, "value": value, **kept, "passed": bool(above and below)}


@dataclass(frozen=True)
class Suite:
    """Tasks and thresholds of one file."""

    name: str
    path: Path
    tasks: tuple[Task, ...]
    thresholds: tuple[Threshold, ...] = ()
    description: str = ""

    def figures(self, *, reward: bool = False, judge: bool = False) -> dict[str, bool | None]:
        """`task/metric` of every figure, and whether more is better."""
        return {
            f"{task.name}/{name}": better
            for task in self.tasks
            for name, better in task.figures(reward=reward, judge=judge).items()
        }

    def check_thresholds(self, *, reward: bool, judge: bool) -> None:
        """Raise UserError for a threshold on a figure that needs a reward or judge not given."""
        have = self.figures(reward=reward, judge=judge)
        for t in self.thresholds:
            if t.figure not in have:
                reason = "is a limit on what is not measured: no reward or judge is given"
                fix = "Give --reward or --judge, or remove the threshold"
                raise UserError(f"{self.path}: thresholds", t.figure, reason, fix)


def load_suite(given: str | Path, option: str = "--suite") -> Suite:
    """Read a suite file, or the shipped one of that name; UserError for anything wrong with it."""
    path = find_suite(given, option)
    try:
        raw = read_yaml(path)
    except UserError as error:
        error.field = option
        raise
    where = _Where(str(path))
    where.keys(raw, "", _SUITE_KEYS)
    name = where.text(raw, "", "name", path.stem)
    tasks = raw.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise where.error("tasks", tasks, "is no list of tasks", "Write tasks: [{name, data, …}]")
    made = tuple(_task(where, t, f"tasks.{i}", path.parent) for i, t in enumerate(tasks))
    for i, task in enumerate(made):
        if task.name in [other.name for other in made[:i]]:
            raise where.error(f"tasks.{i}.name", task.name, "is taken twice", "Give another name")
    suite = Suite(name, path, made, description=where.text(raw, "", "description", ""))
    limits = _thresholds(where, raw.get("thresholds"), suite)
    return dataclasses.replace(suite, thresholds=limits)


def find_suite(given: str | Path, option: str = "--suite") -> Path:
    """The file of a path, or of the name of a shipped suite."""
    path = Path(given)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(FOLDER.glob("*.yaml"))}
    if path.suffix == "" and path.name == str(given) and path.name in shipped:
        return shipped[path.name]
    close = nearest(path.stem, shipped)
    fix = f"Did you mean '{close}'?" if close else f"Shipped: {', '.join(shipped)}; or give a path"
    raise UserError(option, str(given), "is neither a file nor a shipped suite", fix)


class _Where:
    """Reads keys of a file and says where something is wrong."""

    def __init__(self, file: str) -> None:
        self.file = file

    def error(self, dotted: str, value: Any, reason: str, fix: str = "") -> UserError:
        return UserError(f"{self.file}: {dotted}", value, reason, fix)

    def keys(self, given: Any, prefix: str, known: Sequence[str]) -> None:
        if not isinstance(given, Mapping):
            raise self.error(prefix or "file", given, "is not a section", "Write {key: value}")
        for name in given:
            if name not in known:
                dotted = f"{prefix}.{name}" if prefix else str(name)
                close = nearest(str(name), known)
                fix = f"Did you mean '{close}'?" if close else f"Known here: {', '.join(known)}"
                raise self.error(dotted, given[name], "is not a known key", fix)

    def text(self, given: Mapping[str, Any], prefix: str, name: str, default: str) -> str:
        value = given.get(name, default)
        if not isinstance(value, str) or (not value and name == "name"):
            raise self.error(f"{prefix}.{name}".strip("."), value, "is not text")
        return value

    def choice(self, given: Mapping[str, Any], prefix: str, name: str, known: Sequence[Any]) -> Any:
        """The value of a key, the first of the known ones where it is left out."""
        value = given.get(name, known[0])
        if value not in known or isinstance(value, bool) != (value in (True, False)):
            close = nearest(str(value), map(str, known))
            hint = f"Did you mean '{close}'? " if close else ""
            fix = f"{hint}One of: {', '.join(map(str, known))}"
            raise self.error(f"{prefix}.{name}", value, "is not one of the choices", fix)
        return value

    def number(
        self, given: Mapping[str, Any], prefix: str, name: str, default: Any, low: float,
        *, whole: bool = True, high: float = float("inf"),
    ) -> Any:  # fmt: skip
        value = given.get(name, default)
        if value is default:
            return default
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            span = f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
            raise self.error(f"{prefix}.{name}", value, f"is not {kind} of {span}")
        return value


_TASK_KEYS = (
    "name", "data", "kind", "prompt", "system", "few_shot", "chat", "decoding", "metrics",
    "references", "category", "num_prompts", "answer_as", "tokenizer", "window", "stride", "packed",
)  # fmt: skip
_ONLY = {
    "decoding": "generate", "references": "generate", "tokenizer": "generate",
    "answer_as": "log_likelihood", "window": "perplexity", "stride": "perplexity",
    "packed": "perplexity",
}  # fmt: skip


def _task(where: _Where, raw: Any, at: str, folder: Path) -> Task:
    where.keys(raw, at, _TASK_KEYS)
    name = where.text(raw, at, "name", "")
    if "/" in name:
        raise where.error(f"{at}.name", name, "has a slash, which parts it from the metric")
    kind = where.choice(raw, at, "kind", KINDS)
    for key, owner in _ONLY.items():
        if key in raw and kind != owner:
            reason = f"has no meaning for kind: {kind}"
            raise where.error(f"{at}.{key}", raw[key], reason, f"It is for {owner}")
    if "data" not in raw:
        raise where.error(f"{at}.data", NO_VALUE, "is missing", "Give a file")
    data = folder / where.text(raw, at, "data", "")
    metrics = _metrics(where, raw, at, kind)
    decoding = _decoding(where, raw.get("decoding") or {}, f"{at}.decoding")
    rows, shots = read_rows(
        data, kind, f"{where.file}: {at}", raw,
        needs_references=bool({"rouge", "bleu", "chrf", "exact_match", "f1"} & set(metrics)),
        needs_checks="checks" in metrics,
    )  # fmt: skip
    limit = where.number(raw, at, "num_prompts", None, 1)
    chat = where.choice(raw, at, "chat", (None, True, False))
    return Task(
        name, kind, data, metrics, tuple(rows[:limit]), tuple(shots), decoding, chat,
        where.choice(raw, at, "answer_as", ("text", "letter")),
        where.choice(raw, at, "tokenizer", _ROUGE_TOKENS),
        where.number(raw, at, "window", None, 2), where.number(raw, at, "stride", None, 1),
        where.choice(raw, at, "packed", (False, True)),
    )  # fmt: skip


def _metrics(where: _Where, raw: Mapping[str, Any], at: str, kind: str) -> tuple[str, ...]:
    known = METRICS[kind]
    given = raw.get("metrics", list(known) if kind != "generate" else None)
    if not isinstance(given, list) or not given:
        fix = f"Write metrics: [{', '.join(known)}], or some of them"
        raise where.error(f"{at}.metrics", given, "is no list of metrics", fix)
    for i, name in enumerate(given):
        if name not in known:
            close = nearest(str(name), known)
            hint = f"Did you mean '{close}'? " if close else ""
            reason, fix = f"is no metric of kind: {kind}", f"{hint}One of: {', '.join(known)}"
            raise where.error(f"{at}.metrics.{i}", name, reason, fix)
    return tuple(dict.fromkeys(given))


def _decoding(where: _Where, raw: Any, at: str) -> TaskDecoding:
    where.keys(raw, at, [f.name for f in dataclasses.fields(TaskDecoding)])
    default = TaskDecoding()
    stop = raw.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise where.error(f"{at}.stop", stop, "is no list of texts", 'Write ["\\n\\n"]')
    made = TaskDecoding(
        where.number(raw, at, "max_new_tokens", default.max_new_tokens, 1),
        where.number(raw, at, "min_new_tokens", 0, 0),
        float(where.number(raw, at, "temperature", 0.0, 0, whole=False)),
        float(where.number(raw, at, "top_p", 1.0, 1e-9, whole=False, high=1)),
        where.number(raw, at, "top_k", 0, 0),
        where.number(raw, at, "num_samples", 1, 1),
        where.number(raw, at, "seed", 0, 0),
        tuple(stop),
    )
    if made.num_samples > 1 and made.temperature == 0:
        reason = "draws the same answer every time at temperature 0"
        raise where.error(f"{at}.num_samples", made.num_samples, reason, "Set temperature: 1.0")
    return made


def _thresholds(where: _Where, raw: Any, suite: Suite) -> tuple[Threshold, ...]:
    raw = {} if raw is None else raw
    known = suite.figures(reward=True, judge=True)
    where.keys(raw, "thresholds", list(known))
    made = []
    for figure, limits in raw.items():
        at = f"thresholds.{figure}"
        where.keys(limits, at, ("min", "max"))
        if not limits:
            raise where.error(at, limits, "has no limit", "Write {min: 0.5} or {max: 0.5}")
        span = float("-inf")
        low = where.number(limits, at, "min", None, span, whole=False)
        high = where.number(limits, at, "max", None, span, whole=False)
        made.append(Threshold(figure, low, high))
    return tuple(made)


@dataclass
class SuiteResult:
    """What running a suite gave. report: for evaluation.json; samples: for samples.jsonl."""

    report: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, float]:
        """Every figure's value."""
        return {
            f"{task}/{name}": found["value"]
            for task, entry in self.report["tasks"].items()
            for name, found in entry["metrics"].items()
        }


def failed(report: dict[str, Any]) -> list[str]:
    """A line for each threshold of a suite's report that does not hold: figure, value, limit."""
    lines = []
    for t in report["thresholds"]:
        if t["passed"]:
            continue
        words = (("min", "at least"), ("max", "at most"))
        limits = " and ".join(f"{word} {t[key]:g}" for key, word in words if key in t)
        lines.append(f"{report['suite']}: {t['figure']} is {t['value']:.6g}, must be {limits}")
    return lines
