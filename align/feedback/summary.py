"""What the votes of an arena say: win rates with intervals, sides, annotators.

A model's win rate is the share of its comparisons that it won, ties and both-bad one half. A
comparison that several people judged counts once, with the mean of their votes, and intervals
resample prompts: votes on one prompt are not independent.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from align.evaluation.metrics import Estimate, bootstrap, share
from reward_models.annotations.feedback import PAIR_VOTES, SINGLE_VOTES

WORTH = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
_MIRROR = {"left": "right", "right": "left"}


@dataclass
class _Score:
    """One model against another, or against all. by_prompt: {prompt: {item: [worth, …]}}."""

    by_prompt: dict[str, dict[Any, list[float]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: str, item: Any, vote: str) -> None:
        worth = WORTH[vote]
        self.by_prompt.setdefault(prompt, {}).setdefault(item, []).append(worth)
        self.counts["wins" if worth == 1 else "losses" if worth == 0 else "ties"] += 1
        self.counts["both_bad"] += vote == "both_bad"

    def to_json(self) -> dict[str, Any]:
        """Rate with its interval, and how many votes there were of each kind."""
        counts = {name: self.counts[name] for name in ("wins", "ties", "losses", "both_bad")}
        return {**self.rate().to_json(), **counts, "items": sum(map(len, self.by_prompt.values()))}

    def rate(self) -> Estimate:
        """Mean over items; a prompt with two of them counts twice."""
        means = [[float(np.mean(v)) for v in items.values()] for items in self.by_prompt.values()]
        sums = np.array([(sum(row), len(row)) for row in means])
        return bootstrap(sums, lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()))


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of a log's lines.

    "models": each against all others, best first, and "pairs": the first named against the second;
    both with value, low, high (95 %), wins, ties, losses, both_bad, items. "left": the share of
    decided votes for the left side, which an unbiased crowd holds at one half. "agreement": share
    of equal votes among two people who judged the same item, None without such items. "thumbs":
    share of up among votes on single answers.
    """
    models: dict[str, _Score] = defaultdict(_Score)
    pairs: dict[tuple[str, str], _Score] = defaultdict(_Score)
    thumbs: dict[str, list[float]] = defaultdict(list)
    said: dict[str, dict[str, str]] = defaultdict(dict)
    people: Counter[str] = Counter()
    sides: list[float] = []
    skips = 0
    for row in rows:
        vote, completions = row.get("vote"), row.get("completions") or []
        names = [str(c.get("model")) for c in completions]
        skips += vote is None
        prompt = json.dumps(row.get("prompt") or row.get("item"), sort_keys=True)
        if vote in SINGLE_VOTES and len(names) == 1:
            thumbs[names[0]].append(float(vote == "up"))
        if vote not in PAIR_VOTES or len(names) != 2:
            continue
        people[str(row.get("annotator"))] += 1
        item = row.get("item") or row.get("id")
        if vote in _MIRROR:
            sides.append(float(vote == "left"))
        mirrored = _MIRROR.get(vote, vote)
        for name, own in zip(names, (vote, mirrored), strict=True):
            models[name].add(prompt, item, own)
        swapped = names[0] > names[1]
        verdict = mirrored if swapped else vote
        pairs[tuple(sorted(names))].add(prompt, item, verdict)  # type: ignore[index]
        said[str(item)].setdefault(str(row.get("annotator")), verdict)
    found = {name: score.to_json() for name, score in models.items()}
    ranked = sorted(found.items(), key=lambda entry: (-entry[1]["value"], entry[0]))
    return {
        "votes": sum(people.values()),
        "skips": skips,
        "annotators": dict(people.most_common()),
        "models": dict(ranked),
        "pairs": [{"models": list(k), **s.to_json()} for k, s in sorted(pairs.items())],
        "left": share(np.array(sides)).to_json() if sides else None,
        "agreement": _agreement(said),
        "thumbs": {
            k: {**share(np.array(v)).to_json(), "votes": len(v)} for k, v in thumbs.items()
        },
    }


def _agreement(said: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    both = [
        float(WORTH[a] == WORTH[b])
        for votes in said.values()
        for a, b in combinations(votes.values(), 2)
    ]
    return {**share(np.array(both)).to_json(), "pairs": len(both)} if both else None


def table(summary: Mapping[str, Any]) -> str:
    """The summary as text."""
    people = len(summary["annotators"])
    lines = [f"{summary['votes']} votes of {people} annotator(s), {summary['skips']} skipped"]
    for name, s in summary["models"].items():
        lines.append(f"{name}: wins {_interval(s)}; {_counts(s)}")
    if len(summary["pairs"]) > 1:
        for s in summary["pairs"]:
            lines.append(f"{s['models'][0]} against {s['models'][1]}: {_interval(s)}; {_counts(s)}")
    for name, s in summary["thumbs"].items():
        lines.append(f"{name}: {_interval(s)} of {s['votes']} thumbs are up")
    if summary["left"]:
        lines.append(f"the left side wins {_interval(summary['left'])} of the decided votes")
    if summary["agreement"]:
        agreed = summary["agreement"]
        lines.append(f"annotators agree in {_interval(agreed)} of {agreed['pairs']} double votes")
    return "\n".join(lines)


def _interval(s: Mapping[str, Any]) -> str:
    return f"{s['value']:.0%} [{s['low']:.0%}, {s['high']:.0%}]"


def _counts(s: Mapping[str, Any]) -> str:
    both_bad = f", {s['both_bad']} of them both bad" if s["both_bad"] else ""
    return f"{s['wins']} won, {s['ties']} tied{both_bad}, {s['losses']} lost"
