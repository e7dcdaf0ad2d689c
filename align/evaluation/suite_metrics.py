"""What a suite's tasks can measure, and how a task's samples become figures. No torch here.

A figure is either a mean over prompts, which has a bootstrap interval, or belongs to a whole set of
texts (distinct-n, self-BLEU, BLEU, chrF, percentiles), which has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.evaluation import metrics as m
from align.evaluation.checks import run_checks
from align.evaluation.refusal import refuses

Direction = bool | None
_SCORED = ("", "_p1", "_p5", "_p10", "_min")

# kind → metric as a suite names it → its figures, and whether more of them is better.
METRICS: dict[str, dict[str, dict[str, Direction]]] = {
    "generate": {
        "length": {"length_tokens": None, "length_units": None, "length_chars": None},
        "distinct": {"distinct_1": True, "distinct_2": True},
        "repetition": {"repetition_4": False},
        "self_bleu": {"self_bleu": False},
        "unique_rate": {"unique_rate": True},
        "eos_rate": {"eos_rate": True},
        "empty_rate": {"empty_rate": False},
        "rouge": {"rouge1": True, "rouge2": True, "rougeL": True},
        "bleu": {"bleu": True},
        "chrf": {"chrf": True},
        "exact_match": {"exact_match": True},
        "f1": {"f1": True},
        "refusal_rate": {"refusal_rate": True},
        "over_refusal_rate": {"over_refusal_rate": False},
        "checks": {"pass_rate": True, "checks_rate": True},
        "reward": {f"reward{end}": True for end in _SCORED},
        "judge": {f"judge{end}": True for end in _SCORED},
    },
    "log_likelihood": {"acc": {"acc": True}, "acc_norm": {"acc_norm": True}},
    "perplexity": {
        "perplexity": {"perplexity": False}, "nll_per_token": {"nll_per_token": False},
        "nll_per_char": {"nll_per_char": False},
    },
}  # fmt: skip
RATES = frozenset({
    "eos_rate", "empty_rate", "exact_match", "refusal_rate", "over_refusal_rate", "pass_rate",
    "checks_rate", "acc", "acc_norm",
})  # fmt: skip
"""Figures that are shares of rows, and so have an interval where all rows are alike."""
VERIFIED = {"checks": "pass_rate", "exact_match": "exact_match"}
"""Metrics that say right or wrong, of which pass@k is made; the first that a task has."""


def names_of(
    kind: str, chosen: Sequence[str], num_samples: int, reward: bool, judge: bool
) -> dict[str, Direction]:
    """Figures of a task with these metrics, and whether more is better."""
    given = {"reward": reward, "judge": judge}
    found: dict[str, Direction] = {}
    for name in chosen:
        if given.get(name, True):
            found |= METRICS[kind][name]
    if num_samples > 1 and set(chosen) & set(VERIFIED):
        found |= {f"pass@{k}": True for k in m.tries(num_samples)}
    return found


@dataclass
class Answers:
    """Samples of a task's rows, S a row: lists have rows·S entries, row after row.

    grids: (rows, S) numbers of each sample by figure. references, checks: one entry a row.
    """

    texts: list[str]
    finished: list[bool]
    lengths: list[int]
    references: list[tuple[str, ...]]
    categories: list[str | None]
    grids: dict[str, np.ndarray]

    @property
    def samples(self) -> int:
        """Completions a row."""
        return len(self.texts) // max(1, len(self.categories))

    def part(self, rows: Sequence[int]) -> Answers:
        """The same for some of the rows."""
        each = [r * self.samples + s for r in rows for s in range(self.samples)]
        return Answers(
            [self.texts[i] for i in each], [self.finished[i] for i in each],
            [self.lengths[i] for i in each], [self.references[r] for r in rows],
            [self.categories[r] for r in rows],
            {name: grid[list(rows)] for name, grid in self.grids.items()},
        )  # fmt: skip


def fill_grids(
    answers: Answers, chosen: Sequence[str], checks: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: Any,
) -> None:  # fmt: skip
    """Put the numbers of every sample that the chosen metrics need into `grids`."""
    texts, s = answers.texts, answers.samples
    refs = [r for r in answers.references for _ in range(s)]

    def put(name: str, values: Sequence[Any]) -> None:
        answers.grids[name] = np.asarray(values, np.float64).reshape(len(answers.categories), s)

    single: dict[str, Callable[[], Sequence[Any]]] = {
        "repetition": lambda: [m.repetition(t) for t in texts],
        "eos_rate": lambda: answers.finished,
        "empty_rate": lambda: [not t.strip() for t in texts],
        "exact_match": lambda: [m.exact_match(t, r) for t, r in zip(texts, refs, strict=True)],
        "f1": lambda: [m.f1(t, r) for t, r in zip(texts, refs, strict=True)],
        "refusal_rate": lambda: [refuses(t) for t in texts],
        "over_refusal_rate": lambda: [refuses(t) for t in texts],
    }
    for name in chosen:
        if name in single:
            put(next(iter(METRICS["generate"][name])), single[name]())
    if "length" in chosen:
        put("length_tokens", answers.lengths)
        put("length_units", [len(m.units(t)) for t in texts])
        put("length_chars", [len(t) for t in texts])
    if "rouge" in chosen:
        types = tuple(METRICS["generate"]["rouge"])
        for name, values in m.rouge(texts, refs, tokenizer=tokenizer, types=types).items():
            put(name, values)
    if "checks" in chosen:
        found = [run_checks(t, checks[i // s]) for i, t in enumerate(texts)]
        put("pass_rate", [all(row) for row in found])
        put("checks_rate", [sum(row) / len(row) for row in found])


def figures(
    answers: Answers, chosen: Sequence[str], *, intervals: bool = True
) -> dict[str, dict[str, float]]:
    """{figure: {"value", "low", "high"}}; only "value" where it is no mean over prompts.

    intervals: False leaves them out everywhere.
    """
    found: dict[str, dict[str, float]] = {}
    means = dict(answers.grids)
    if answers.samples > 1:
        grid = next((means[f] for c, f in VERIFIED.items() if c in chosen and f in means), None)
        if grid is not None:
            n = grid.shape[1]
            means |= {
                f"pass@{k}": np.array([[m.pass_at_k(n, int(row.sum()), k)] for row in grid])
                for k in m.tries(n)
            }
    for name, grid in means.items():
        found[name] = mean_of(name, grid, intervals)
    for name in ("reward", "judge"):
        if name in answers.grids:
            worst = m.worst_cases(answers.grids[name])
            found |= {f"{name}_{end}": {"value": value} for end, value in worst.items()}
    return found | {name: {"value": value} for name, value in _of_sets(answers, chosen).items()}


def mean_of(name: str, grid: np.ndarray, intervals: bool = True) -> dict[str, float]:
    """A figure that is a mean over prompts: its value, and its interval where it is asked for."""
    if not intervals:
        return {"value": float(grid.mean())}
    rate = name in RATES or name.startswith("pass@")
    return (m.share if rate else m.bootstrap)(grid).to_json()


def _of_sets(answers: Answers, chosen: Sequence[str]) -> dict[str, float]:
    """Figures that belong to all texts together."""
    texts = answers.texts
    refs = [r for r in answers.references for _ in range(answers.samples)]
    found: dict[str, float] = {}
    if "distinct" in chosen:
        found |= {f"distinct_{n}": m.distinct_n(texts, n) for n in (1, 2)}
    if "self_bleu" in chosen:
        found["self_bleu"] = m.self_bleu(texts)
    if "unique_rate" in chosen:
        found["unique_rate"] = len(set(texts)) / len(texts)
    if "bleu" in chosen:
        found["bleu"] = m.bleu(texts, refs)["score"]
    if "chrf" in chosen:
        found["chrf"] = m.chrf(texts, refs)["score"]
    return found


def by_category(
    categories: Sequence[str | None], measure: Callable[[list[int]], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """{category: {"n", figure: value}} in the order of first appearance; {} without categories."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(categories):
        if name is not None:
            rows.setdefault(name, []).append(i)
    return {name: {"n": len(which), **measure(which)} for name, which in rows.items()}
