"""Every pair of runs of a comparison, by the reward and by each judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from align.checkpoints import run_dir_of
from align.evaluation import metrics, win_rates
from align.evaluation.compare_measure import Measured, scores_texts
from align.evaluation.judges import Comparison, VotesJudge, report_of

REWARD = "reward"  # how the reward itself is called among the judges


def all_pairs(
    measured: Sequence[Measured], judges: Sequence[Any]
) -> dict[str, list[Comparison]]:  # fmt: skip
    """Comparisons of all pairs of runs: {"reward": …, judge: …}."""
    found = {REWARD: _by_scores(measured, [m.outputs.scores for m in measured])}
    for judge in judges:
        if isinstance(judge, VotesJudge):
            found[judge.name] = judge.between(_aliases(measured))
        elif scores_texts(judge):
            found[judge.name] = _by_scores(measured, [m.judges[judge.name] for m in measured])
        else:
            found[judge.name] = _by_preference(measured, judge)
    return found


def _by_scores(measured: Sequence[Measured], scores: Sequence[np.ndarray]) -> list[Comparison]:
    """The higher score wins; a sample that a judge could not score is compared with none."""
    rows: list[Comparison] = []
    for i, j in combinations(range(len(measured)), 2):
        outcomes = metrics.outcomes_from_scores(scores[i], scores[j])
        known = np.isfinite(scores[i]) & np.isfinite(scores[j])
        rows += _rows(measured[i], measured[j], outcomes, known)
    return rows


def _by_preference(measured: Sequence[Measured], judge: Any) -> list[Comparison]:
    """All pairs of runs in one request of a judge that only compares."""
    pairs = list(combinations(measured, 2))
    prompts = [list(p.messages) for a, _ in pairs for p in a.outputs.row_prompts]
    first = [text for a, _ in pairs for text in a.outputs.texts]
    second = [text for _, b in pairs for text in b.outputs.texts]
    said = np.asarray(judge.prefer(prompts, first, second) if pairs else [], dtype=np.float64)
    rows: list[Comparison] = []
    for k, (a, b) in enumerate(pairs):
        n = len(a.outputs.texts)
        rows += _rows(a, b, said[k * n : (k + 1) * n], np.ones(n, dtype=bool))
    return rows


def _rows(a: Measured, b: Measured, outcomes: np.ndarray, known: np.ndarray) -> list[Comparison]:
    prompts = [p.prompt_id for p in a.outputs.row_prompts]
    return [
        Comparison(prompts[i], a.name, b.name, float(outcomes[i]), len(x), len(y))
        for i, (x, y) in enumerate(zip(a.outputs.texts, b.outputs.texts, strict=True))
        if known[i]
    ]


def _aliases(measured: Sequence[Measured]) -> dict[str, str]:
    """Names that a file of votes may call a run by: its short name, its folder, its path."""
    found: dict[str, str] = {}
    for m in measured:
        folder = run_dir_of(m.path)
        for alias in (str(m.path), str(folder), folder.name, m.name):
            found.setdefault(alias, m.name)
    return found | {m.name: m.name for m in measured}


def summarise_pairs(
    found: dict[str, list[Comparison]], names: Sequence[str], judges: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """{judge: {"matrix", "ranking", "note", "report"}}; the first name anchors the ranking."""
    reports = {j.name: report_of(j) for j in judges}
    out = {}
    for judge, comparisons in found.items():
        ranks = win_rates.ranking(comparisons, names, anchor=names[0])
        out[judge] = {
            "matrix": win_rates.matrix(comparisons, names),
            "ranking": ranks["rows"],
            "note": ranks["note"],
            "report": reports.get(judge, {}),
        }
    return out


def against(comparisons: Sequence[Comparison], run: str, baseline: str) -> list[Comparison]:
    """Comparisons of a run with the baseline, the run first."""
    rows = []
    for c in comparisons:
        if (c.a, c.b) == (run, baseline):
            rows.append(c)
        elif (c.b, c.a) == (run, baseline):
            rows.append(
                Comparison(c.prompt_id, c.b, c.a, 1 - c.outcome, c.length_b, c.length_a)
            )  # fmt: skip
    return rows


def at_equal_length(comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """Length-controlled win rate of comparisons whose first side is the run; None without any."""
    if not comparisons:
        return None
    return win_rates.length_controlled(
        [c.outcome for c in comparisons],
        [c.length_a - c.length_b for c in comparisons],
        [c.prompt_id for c in comparisons],
    )
