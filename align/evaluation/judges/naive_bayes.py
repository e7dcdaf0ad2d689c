"""Naive Bayes over character n-grams: a judge of another kind than any neural reward model."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from align.config_errors import UserError
from align.evaluation.logistic import fit_logistic, sigmoid
from align.files import write_atomic
from align.records import Message


def text_ngrams(text: str, low: int = 1, high: int = 3) -> set[str]:
    """Distinct character n-grams of a text, white space removed and letters lower-cased."""
    s = "".join(text.lower().split())
    return {s[i : i + n] for n in range(low, high + 1) for i in range(len(s) - n + 1)}


@dataclass
class NaiveBayesJudge:
    """Multinomial naive Bayes over the character 1–3-grams of a text, calibrated on held-out text.

    weights[g] = log P(g | positive) − log P(g | negative), both with add-`alpha` smoothing over the
    kept n-grams (McCallum & Nigam 1998); an n-gram counts once a text (Wang & Manning 2012). Then

        z = (log P(positive)/P(negative) + Σ_g weights[g]) / √(number of n-grams of the text)

    and P(positive) = σ(slope · z + offset). Naive Bayes takes overlapping n-grams for independent
    evidence and is too sure, the more so the longer the text: hence the root, and Platt's two
    numbers, fitted on text it has not seen. A judge of another kind than a neural reward model: it
    shares no weights and no tokenizer with it. N-grams it has never seen say nothing. It reads the
    completion alone, not the prompt.
    """

    weights: dict[str, float]
    prior: float
    slope: float = 1.0
    offset: float = 0.0
    low: int = 1
    high: int = 3
    name: str = "naive_bayes"
    info: dict = field(default_factory=dict)

    @classmethod
    def train(
        cls,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        held_out: float = 0.2,
        seed: int = 0,
        alpha: float = 1.0,
        min_count: int = 1,
        low: int = 1,
        high: int = 3,
    ) -> NaiveBayesJudge:
        """Fit on a random part of each class and calibrate on the rest.

        held_out: share of each class kept back; half of it calibrates, and `info` holds accuracy
        and calibration error on the other half. min_count: rarer n-grams are dropped.
        """
        train, calibration, test = _split_classes(positive, negative, held_out, seed)
        judge = cls._fit(train, alpha, min_count, low, high)
        z = np.array([judge.evidence(text) for text, _ in calibration])
        y = np.array([label for _, label in calibration], dtype=np.float64)
        judge.slope, judge.offset = platt(z, y)
        p = np.array([judge.probability(text) for text, _ in test])
        labels = np.array([label for _, label in test], dtype=np.float64)
        judge.info = {
            "trained_on": len(train),
            "calibrated_on": len(calibration),
            "tested_on": len(test),
            "accuracy": float(((p > 0.5) == (labels == 1)).mean()),
            "calibration_error": expected_calibration_error(p, labels),
        }
        return judge

    @classmethod
    def _fit(
        cls, rows: list[tuple[str, int]], alpha: float, min_count: int, low: int, high: int
    ) -> NaiveBayesJudge:
        counts: list[Counter[str]] = [Counter(), Counter()]
        texts = [0, 0]
        for text, label in rows:
            counts[label].update(text_ngrams(text, low, high))
            texts[label] += 1
        kept = [g for g in counts[0] | counts[1] if counts[0][g] + counts[1][g] >= min_count]
        total = [sum(c[g] for g in kept) + alpha * len(kept) for c in counts]
        weights = {
            g: math.log((counts[1][g] + alpha) / total[1])
            - math.log((counts[0][g] + alpha) / total[0])
            for g in kept
        }
        return cls(weights, math.log(texts[1] / texts[0]), low=low, high=high)

    def evidence(self, text: str) -> float:
        """The z above: log-odds of the text over the root of how many n-grams it has."""
        grams = text_ngrams(text, self.low, self.high)
        log_odds = self.prior + math.fsum(self.weights.get(g, 0.0) for g in grams)
        return log_odds / math.sqrt(max(1, len(grams)))

    def probability(self, text: str) -> float:
        """Calibrated P(positive | text)."""
        return sigmoid(self.slope * self.evidence(text) + self.offset)

    def score(
        self, prompts: Sequence[Sequence[Message]], completions: Sequence[str]
    ) -> list[float]:
        """Calibrated P(positive) of each completion."""
        return [self.probability(c) for c in completions]

    def save(self, path: str | Path) -> None:
        """Write one JSON file; weights keep five decimals."""
        payload = {
            "kind": "naive_bayes",
            "name": self.name,
            "prior": self.prior,
            "slope": self.slope,
            "offset": self.offset,
            "ngrams": [self.low, self.high],
            "info": self.info,
            "weights": {g: round(w, 5) for g, w in self.weights.items()},
        }
        write_atomic(Path(path), json.dumps(payload, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> NaiveBayesJudge:
        """Read what `save` wrote; UserError when it is something else."""
        try:
            d = json.loads(Path(path).read_text(encoding="utf-8"))
            low, high = d["ngrams"]
            numbers = (d["prior"], d["slope"], d["offset"])
            return cls(d["weights"], *numbers, low, high, d["name"], d["info"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(
                "judge", str(path), f"not a saved naive Bayes judge ({e})",
                "give the JSON file that NaiveBayesJudge.save wrote, or a reward-model folder",
            ) from e


def _split_classes(
    positive: Sequence[str], negative: Sequence[str], held_out: float, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[tuple[str, int]]]:
    rng = random.Random(seed)
    parts: tuple[list, list, list] = ([], [], [])
    for label, texts in ((1, positive), (0, negative)):
        unique = sorted(set(texts))
        if len(unique) < 6:
            raise UserError(
                "judge", f"{len(unique)} texts", "a class needs at least 6 different texts",
                "give more labelled texts",
            )
        rng.shuffle(unique)
        n = max(2, round(len(unique) * held_out))
        parts[1].extend((t, label) for t in unique[: n // 2])
        parts[2].extend((t, label) for t in unique[n // 2 : n])
        parts[0].extend((t, label) for t in unique[n:])
    return parts


def platt(z: np.ndarray, y: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Slope a and offset b that minimise the log loss of σ(a·z + b), with Platt's soft targets.

    z: (n,) raw log-odds; y: (n,) 0 or 1. Targets are (n₊+1)/(n₊+2) and 1/(n₋+2) as in Platt 1999,
    which keeps separable data finite. Newton's method on z divided by its spread.
    """
    pos, neg = float(y.sum()), float(len(y) - y.sum())
    t = np.where(y == 1, (pos + 1) / (pos + 2), 1 / (neg + 2))
    spread = float(np.sqrt(np.mean(z**2))) or 1.0
    w = fit_logistic(np.stack([z / spread, np.ones_like(z)], axis=1), t, 1e-9, steps=steps)
    return float(w[0] / spread), float(w[1])


def expected_calibration_error(p: np.ndarray, y: np.ndarray, bins: int = 10) -> float:
    """Mean |observed rate − mean probability| over equal-width bins, weighted by their counts."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            error += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    return float(error)
