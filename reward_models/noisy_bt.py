"""Noisy Bradley–Terry: candidates' scores and annotators' skills from pairwise votes.

An annotator w looks at the answers with probability γ_w and otherwise picks a side by habit:

    P(w prefers i, shown on the left, to j) = γ_w · σ(s_i − s_j) + (1 − γ_w) · σ(q_w)

(Bugakova, Fedorova, Gusev and Drutsa, "Aggregation of pairwise comparisons with reduction of
biases", arXiv:1906.03711.) Where the side is not known the habit is even, ½. Priors keep the scores
of a pair with few votes finite and an annotator with few votes ordinary: s ~ N(0, 2²),
q ~ N(0, 1) and logit γ ~ N(1, 2²), whose median is a skill of 0.73.

crowd-kit has the model too (``NoisyBradleyTerry``), but the gradient that its 1.4 gives the
optimiser is not that of its likelihood: skills and biases are written one place off, and each keeps
the last vote's term only, so that bad annotators are not found. Hence the fit here.

A pair has two scores of its own and few votes, and skills are fitted beside them: with three or
four votes a pair somebody unreliable is hard to see, and Dawid–Skene sees more. Rankings, which tie
the candidates of a group together, are where this model is at home.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SCORE_SD, SKILL_MEAN, SKILL_SD, HABIT_SD = 2.0, 1.0, 2.0, 1.0


@dataclass(frozen=True)
class NoisyFit:
    """scores: one a candidate. skills: γ, one an annotator. habits: σ(q), P(left) when not looking.

    converged: whether the optimiser stopped by itself.
    """

    scores: np.ndarray
    skills: np.ndarray
    habits: np.ndarray
    converged: bool


def fit(
    first: np.ndarray,
    second: np.ndarray,
    worker: np.ndarray,
    value: np.ndarray,
    side: np.ndarray,
    items: int,
    workers: int,
    iterations: int = 500,
) -> NoisyFit:
    """The most probable scores, skills and habits.

    Arrays have one entry a vote: the two candidates, the annotator, the share of the vote that
    ``first`` gets (a tie ½) and the side on which ``first`` was shown (1 left, −1 right, 0 not
    known). Starts from equal scores, so that the result has no seed.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    start = np.concatenate([np.zeros(items + workers), np.full(workers, SKILL_MEAN)])
    votes = (first, second, worker, value, side)
    found: Any = minimize(
        objective, start, args=(votes, items, workers), jac=True, method="L-BFGS-B",
        options={"maxiter": iterations},
    )  # fmt: skip
    scores, q, gamma = np.split(found.x, [items, items + workers])
    return NoisyFit(scores, expit(gamma), expit(q), bool(found.success))


def objective(
    x: np.ndarray, votes: tuple[np.ndarray, ...], items: int, workers: int
) -> tuple[float, np.ndarray]:
    """(−log posterior up to a constant, its gradient) at x = scores, q, logit γ."""
    import numpy as np
    from scipy.special import expit, log_expit

    first, second, worker, value, side = votes
    s, q, gamma = np.split(x, [items, items + workers])
    gap, habit, skill = s[first] - s[second], side * q[worker], expit(gamma)[worker]
    looked, blind = expit(gap), expit(habit)
    # log P and log(1 − P) as sums of logs: neither factor can round to 0 on its own.
    trust, doubt = log_expit(gamma)[worker], log_expit(-gamma)[worker]
    log_p = np.logaddexp(trust + log_expit(gap), doubt + log_expit(habit))
    log_not = np.logaddexp(trust + log_expit(-gap), doubt + log_expit(-habit))
    loss = -np.sum(value * log_p + (1.0 - value) * log_not)
    loss += np.sum(s**2) / (2 * SCORE_SD**2) + np.sum(q**2) / (2 * HABIT_SD**2)
    loss += np.sum((gamma - SKILL_MEAN) ** 2) / (2 * SKILL_SD**2)

    # d loss / d P, then the chain rule.
    pull = -(value * np.exp(-log_p) - (1.0 - value) * np.exp(-log_not))
    by_gap = pull * skill * looked * (1.0 - looked)
    by_habit = pull * (1.0 - skill) * blind * (1.0 - blind) * side
    by_gamma = pull * (looked - blind) * skill * (1.0 - skill)
    scores = np.bincount(first, by_gap, items) - np.bincount(second, by_gap, items)
    gradient = np.concatenate(
        [
            scores + s / SCORE_SD**2,
            np.bincount(worker, by_habit, workers) + q / HABIT_SD**2,
            np.bincount(worker, by_gamma, workers) + (gamma - SKILL_MEAN) / SKILL_SD**2,
        ]
    )
    return float(loss), gradient
