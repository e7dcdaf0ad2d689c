"""The demo's preference data in the shape of a Label Studio export.

The texts are real reviews. The votes are simulated: an annotator prefers the review from the
positive file, with a known rate of slips in the training export and none in the held-out one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from align.data.demo_keywords import PHRASINGS, TOPICS, prompt_text

if TYPE_CHECKING:
    from align.data.demo import Review

ANNOTATORS = (11, 12, 13, 14, 15)
SLIP = 0.04  # share of training votes for the wrong side
CANCELLED, SKIPPED, PREDICTED = 0.03, 0.01, 0.10
USES = 2  # training pairs a review may stand in

LABEL_CONFIG = """<View>
  <Header value="$prompt"/>
  <Pairwise name="comparison" toName="answer1,answer2"/>
  <Text name="answer1" value="$answer1"/>
  <Text name="answer2" value="$answer2"/>
</View>
"""


@dataclass(frozen=True)
class Pair:
    """Two reviews of one topic that mention the same keywords."""

    topic: str
    words: tuple[str, ...]
    good: str
    bad: str


def pair_reviews(
    reviews: Sequence[Review],
    allowed: Callable[[str, tuple[str, ...]], bool],
    rng: random.Random,
    uses: int = USES,
) -> list[Pair]:
    """Pairs a positive with a negative review that shares an allowed keyword combination.

    Among the negatives that share one, the nearest in length is taken, so that length does not
    tell the sides apart. A review stands in at most ``uses`` pairs, and no two pairs repeat.
    """
    index: dict[tuple[str, tuple[str, ...]], list[Review]] = defaultdict(list)
    positives = []
    for review in reviews:
        if not review.topic or not review.words:
            continue
        if review.positive:
            positives.append(review)
            continue
        for words in _combinations(review.words):
            if allowed(review.topic, words):
                index[review.topic, words].append(review)
    used: dict[str, int] = defaultdict(int)
    pairs: list[Pair] = []
    done: set[tuple[str, str]] = set()
    for _ in range(uses):
        rng.shuffle(positives)
        for review in positives:
            pair = _partner(review, index, allowed, used, done, rng, uses)
            if pair is not None:
                done.add((pair.good, pair.bad))
                used[pair.bad] += 1
                pairs.append(pair)
    return pairs


def _partner(
    review: Review, index: Any, allowed: Any, used: dict[str, int], done: set[tuple[str, str]],
    rng: random.Random, uses: int,
) -> Pair | None:  # fmt: skip
    topic, good = review.topic or "", review.excerpt or ""
    options = [w for w in _combinations(review.words) if allowed(topic, w) and index[topic, w]]
    rng.shuffle(options)
    best = None
    for words in options[:4]:
        for other in index[topic, words]:
            bad = other.excerpt or ""
            if used[bad] >= uses or bad == good or (good, bad) in done:
                continue
            gap = abs(len(bad) - len(good))
            if best is None or gap < best[0]:
                best = (gap, words, bad)
    if best is None or best[0] > max(12, len(good) // 2):
        return None
    return Pair(topic, best[1], good, best[2])


def _combinations(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    # Sorted, because two reviews mention the same words in different orders.
    return [tuple(sorted(c)) for size in (1, 2) for c in combinations(words, size)]


def label_studio_export(
    pairs: Sequence[Pair], *, slips: bool, rng: random.Random
) -> list[dict[str, Any]]:
    """The pairs as a Label Studio JSON export: pairwise votes of one to three annotators.

    With everything a real export carries: random sides, cancelled annotations, submitted
    non-votes (an empty result), tasks nobody voted on, model predictions, which are not votes.
    slips=False (the held-out export): three annotators, no slip, nothing skipped.
    """
    export = []
    for number, pair in enumerate(pairs, start=1):
        left_is_good = rng.random() < 0.5
        answers = (pair.good, pair.bad) if left_is_good else (pair.bad, pair.good)
        voters = rng.sample(ANNOTATORS, rng.choice((1, 1, 2, 3)) if slips else 3)
        votes = [_annotation(number, who, left_is_good, slips, rng) for who in voters]
        words = prompt_text(pair.topic, pair.words, rng.randrange(len(PHRASINGS)))
        task: dict[str, Any] = {
            "id": number,
            "data": {"prompt": words, "answer1": answers[0], "answer2": answers[1],
                     "topic": TOPICS[pair.topic]},
            "annotations": votes,
            "predictions": [],
        }  # fmt: skip
        if rng.random() < PREDICTED:
            side = rng.choice(("left", "right"))
            task["predictions"] = [
                {"id": number, "model_version": "random", "result": [_result(side)]}
            ]
        export.append(task)
    return export


def _annotation(
    task: int, who: int, left_is_good: bool, slips: bool, rng: random.Random
) -> dict[str, Any]:
    good, bad = ("left", "right") if left_is_good else ("right", "left")
    side = bad if slips and rng.random() < SLIP else good
    chance = rng.random() if slips else 1.0
    cancelled = chance < CANCELLED
    skipped = CANCELLED <= chance < CANCELLED + SKIPPED
    minute, second = divmod(task * 7 % 3600, 60)
    return {
        "id": task * 10 + ANNOTATORS.index(who),
        "completed_by": who,
        "was_cancelled": cancelled,
        "ground_truth": False,
        "lead_time": round(rng.uniform(3, 40), 1),
        "created_at": f"2024-05-{1 + task % 28:02d}T09:{minute:02d}:{second:02d}.000000Z",
        "result": [] if cancelled or skipped else [_result(side)],
    }


def _result(side: str) -> dict[str, Any]:
    return {
        "from_name": "comparison",
        "to_name": "answer1",
        "type": "pairwise",
        "value": {"selected": side},
    }
