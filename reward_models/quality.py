"""What an annotation set looks like before anyone trains on it: agreement, biases, contradictions.

Figures are collected group by group: memory holds one digest a prompt, and the annotators.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from align.records import PreferenceGroup, normalise_text
from reward_models.preferences import Vote, votes

MAX_EXAMPLES = 20
NEAR_IDENTICAL = 0.9


class Quality:
    """Collects figures: ``observe`` every group, then ``report``."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.groups = self.judgements = self.pairs = self.ties = 0
        self.kinds: Counter[str] = Counter()
        self.candidates: Counter[int] = Counter()
        self.suspects: Counter[str] = Counter()
        self.expected_untouched = 0.0
        self.rankings = 0
        self._first = [0, 0]
        self._longer = [0, 0]
        self._agree: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._votes: Counter[str] = Counter()
        self._split_of: dict[str, str] = {}
        self._leaks = 0
        self._findings: dict[str, list[str]] = defaultdict(list)
        self._found: Counter[str] = Counter()

    def observe_shown(self, group: PreferenceGroup) -> None:
        """Takes a group as one input row gave it, where the candidates stand in display order."""
        if not group.meta.get("display_order"):
            return
        for cast in votes(group, ties="drop").values():
            for vote in cast:
                self._first[0] += vote.value > 0.5
                self._first[1] += 1

    def observe(self, group: PreferenceGroup, key: str, split: str) -> None:
        """Takes a finished group. key: its prompt key. split: where it was written."""
        self.groups += 1
        self.candidates[len(group.candidates)] += 1
        self._leaks += self._split_of.setdefault(key, split) != split
        for judgement in group.judgements:
            self.judgements += 1
            self.kinds[judgement.kind] += 1
            self._votes[judgement.annotator or "(unnamed)"] += 1
            if judgement.suspect:
                self.suspects[judgement.suspect] += 1
                self._find(f"suspect: {judgement.suspect}", group)
            if judgement.kind == "rank":
                self.rankings += 1
                ranks = [v for v in judgement.value.values() if v is not None]
                if len(ranks) > 1 and len(set(ranks)) == len(ranks):
                    self.expected_untouched += 1.0 / math.factorial(len(ranks))
        self._pairs(group)
        self._candidates(group)

    def _pairs(self, group: PreferenceGroup) -> None:
        for (i, j), cast in votes(group).items():
            self.pairs += 1
            longer = len(group.candidates[i].text) - len(group.candidates[j].text)
            for vote in cast:
                if vote.value == 0.5:
                    self.ties += 1
                elif longer:
                    self._longer[0] += (vote.value > 0.5) == (longer > 0)
                    self._longer[1] += 1
            self._agreement(cast)
            decided = {v.value > 0.5 for v in cast if v.value != 0.5}
            if len(decided) == 2:
                self._find("contradiction", group)

    def _agreement(self, cast: list[Vote]) -> None:
        """Each named annotator against the majority of the others on the same pair."""
        for k, vote in enumerate(cast):
            rest = [v.value for m, v in enumerate(cast) if m != k]
            if vote.annotator is None or vote.value == 0.5 or not rest:
                continue
            mean = sum(rest) / len(rest)
            if mean == 0.5:
                continue
            agreed = self._agree[vote.annotator]
            agreed[0] += (vote.value > 0.5) == (mean > 0.5)
            agreed[1] += 1

    def _candidates(self, group: PreferenceGroup) -> None:
        for a, b in combinations(group.candidates, 2):
            if similarity(a.text, b.text) >= NEAR_IDENTICAL:
                self._find("near_identical", group)
                return

    def _find(self, kind: str, group: PreferenceGroup) -> None:
        self._found[kind] += 1
        examples = self._findings[kind]
        if len(examples) < MAX_EXAMPLES and group.group_id not in examples:
            examples.append(group.group_id)

    def report(self) -> dict[str, Any]:
        """All figures as JSON values. Rates carry a 95 % Wilson interval."""
        return {
            "groups": self.groups,
            "judgements": self.judgements,
            "pairs": self.pairs,
            "ties": self.ties,
            "kinds": dict(sorted(self.kinds.items())),
            "candidates_per_group": {str(k): n for k, n in sorted(self.candidates.items())},
            "agreement": self._agreement_report(),
            "position_bias": rate(*self._first),
            "length_bias": rate(*self._longer),
            "contradictions": self._found["contradiction"],
            "near_identical": self._found["near_identical"],
            "suspects": dict(sorted(self.suspects.items())),
            "rankings": self.rankings,
            "untouched_rankings_by_chance": round(self.expected_untouched, 3),
            "prompts": len(self._split_of),
            "prompts_in_two_splits": self._leaks,
            "findings": {
                kind: {"count": self._found[kind], "group_ids": ids}
                for kind, ids in sorted(self._findings.items())
            },
        }

    def _agreement_report(self) -> dict[str, Any]:
        annotators = {
            name: {"judgements": n, **rate(*map(int, self._agree.get(name, (0, 0))))}
            for name, n in sorted(self._votes.items())
        }
        agreed = sum(int(a) for a, _ in self._agree.values())
        total = sum(int(n) for _, n in self._agree.values())
        return {"overall": rate(agreed, total), "annotators": annotators}


def rate(hits: int, n: int) -> dict[str, Any]:
    """A proportion with its 95 % Wilson interval: {"rate", "low", "high", "n"}; None for n = 0."""
    if n == 0:
        return {"rate": None, "low": None, "high": None, "n": 0}
    z, p = 1.959964, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"rate": round(p, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of character 4-gram sets of the normalised texts, in [0, 1]."""
    if min(len(a), len(b)) < NEAR_IDENTICAL * max(len(a), len(b)) - 8:
        return 0.0  # too different in length to be near-identical: spare the n-grams
    a, b = normalise_text(a), normalise_text(b)
    if a == b:
        return 1.0
    first, second = ({t[i : i + 4] for i in range(max(1, len(t) - 3))} for t in (a, b))
    return len(first & second) / len(first | second)


def advice(report: Mapping[str, Any]) -> list[str]:
    """What the figures do to training, one sentence each; only what stands out."""
    said = []
    position, length = report["position_bias"], report["length_bias"]
    if position["n"] and not position["low"] <= 0.5 <= position["high"]:
        said.append(
            f"The first-shown answer wins {position['rate']:.0%} of {position['n']} votes; "
            "a fair panel gives 50%. Shuffle the answers' order in the next round."
        )
    if length["n"] and length["low"] > 0.6:
        said.append(
            f"The longer answer wins {length['rate']:.0%} of {length['n']} votes: a "
            "reward model can score well here by length alone. Compare it with that baseline."
        )
    if report["contradictions"]:
        said.append(
            f"{report['contradictions']} pairs have votes for both sides; soft targets "
            "train them towards an even score."
        )
    untouched = report["suspects"].get("display_order", 0)
    if untouched:
        said.append(
            f"{untouched} of {report['rankings']} rankings equal the display order; "
            f"chance would give {report['untouched_rankings_by_chance']:.1f}. Untouched "
            "rankings are noise: --suspects drop leaves them out."
        )
    if report["near_identical"]:
        said.append(
            f"{report['near_identical']} groups have near-identical answers and teach little."
        )
    return said
