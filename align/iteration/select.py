"""n scored answers to a prompt → one to imitate and pairs to prefer, or the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from align.evaluation.metrics import Estimate, bootstrap
from align.records import Candidate, Example, Judgement, Message, PreferenceGroup, Prompt
from reward_models.evaluation_best_of_n import pick_probabilities, sizes

PAIRS = ("best_worst", "all")
UNFINISHED = ("lose", "keep")
SOURCE = "best_of_n"


@dataclass(frozen=True)
class Sample:
    """One answer. score: its reward. finished: whether the policy ended it itself."""

    text: str
    score: float
    finished: bool = True


@dataclass(frozen=True)
class Rules:
    """What is good enough.

    pairs: "best_worst" the best against the worst; "all" every two answers. min_margin: the least
    difference of their rewards. min_score: the least reward of an answer to imitate. unfinished:
    "lose": an answer that was cut off at the token limit is never the better one.
    """

    pairs: str = "best_worst"
    min_margin: float = 0.0
    min_score: float | None = None
    unfinished: str = "lose"


def best_example(
    prompt: Prompt, samples: Sequence[Sample], rules: Rules
) -> tuple[Example | None, str]:
    """(the best answer as an SFT record, "") or (None, reason).

    Reasons: unfinished, empty, below_min_score. Of equal rewards the first answer is taken.
    """
    best, reason = _best(samples, rules)
    if best is None:
        return None, reason
    chosen = samples[best]
    if rules.min_score is not None and chosen.score < rules.min_score:
        return None, "below_min_score"
    messages = (*prompt.messages, Message("assistant", chosen.text))
    meta = {**prompt.meta, "source": SOURCE, "score": chosen.score, "n": len(samples)}
    return Example(messages, meta), ""


def preference_group(
    prompt: Prompt, samples: Sequence[Sample], rules: Rules, model: str | None = None
) -> tuple[PreferenceGroup | None, str]:
    """(a group whose judgements are the reward's, "") or (None, reason).

    strength of a judgement: the difference of the rewards. Reasons: those of `best_example`, equal
    (no two rewards differ) and below_min_margin.
    """
    best, reason = _best(samples, rules)
    if best is None:
        return None, reason
    keep = _distinct(samples)
    if rules.pairs == "best_worst":
        worst = min(keep, key=lambda i: (samples[i].score, -i))
        pairs = [(best, worst)] if samples[worst].text != samples[best].text else []
    else:
        pairs = [(i, j) if samples[i].score >= samples[j].score else (j, i)
                 for i, j in combinations(keep, 2)]  # fmt: skip
        pairs = [(i, j) for i, j in pairs if _may_win(samples[i], rules)]
    gaps = [(i, j, samples[i].score - samples[j].score) for i, j in pairs]
    gaps = [entry for entry in gaps if entry[2] > 0]
    if not gaps:
        return None, "equal"
    gaps = [entry for entry in gaps if entry[2] >= rules.min_margin]
    if not gaps:
        return None, "below_min_margin"
    used = sorted({i for pair in gaps for i in pair[:2]})
    judgements = tuple(
        Judgement(None, "pair", {"winner": f"s{i}", "loser": f"s{j}"}, gap, SOURCE)
        for i, j, gap in gaps
    )
    candidates = tuple(Candidate(f"s{i}", samples[i].text, model) for i in used)
    meta = {
        **prompt.meta, "source": SOURCE, "n": len(samples),
        "scores": {f"s{i}": samples[i].score for i in used},
    }  # fmt: skip
    return PreferenceGroup(prompt.prompt_id, prompt.messages, candidates, judgements, meta), ""


def _best(samples: Sequence[Sample], rules: Rules) -> tuple[int | None, str]:
    written = [i for i, s in enumerate(samples) if s.text.strip()]
    if not written:
        return None, "empty"
    able = [i for i in written if _may_win(samples[i], rules)]
    if not able:
        return None, "unfinished"
    return max(able, key=lambda i: (samples[i].score, -i)), ""


def _may_win(sample: Sample, rules: Rules) -> bool:
    return sample.finished or rules.unfinished == "keep"


def _distinct(samples: Sequence[Sample]) -> list[int]:
    """The first of equal texts, without empty ones."""
    first: dict[str, int] = {}
    for i, sample in enumerate(samples):
        if sample.text.strip():
            first.setdefault(sample.text, i)
    return list(first.values())


def curve(scores: np.ndarray) -> list[dict[str, Any]]:
    """Expected reward of the best of n answers for every n up to N, without bias.

    scores: (prompts, N). For each prompt the mean over all ways to draw n of its N answers; value
    is the mean over prompts, low and high its 95 % interval (prompts resampled). kl: the bound
    log n − (n − 1)/n on the KL of best-of-n to the policy, nats (Beirami et al. 2024,
    arXiv:2401.01879).
    """
    points = []
    for n in sizes(scores.shape[1]):
        found: Estimate = bootstrap(
            np.array([float(pick_probabilities(row, n) @ row) for row in scores])
        )
        points.append({"n": n, **found.to_json(), "kl": float(np.log(n) - (n - 1) / n)})
    return points
