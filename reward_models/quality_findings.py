"""Findings of the quality report: counts, the rows to look at, what they do to training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_EXAMPLES = 20

# kind → (what its share is of, what it does to training).
EFFECTS = {
    "contradiction": (
        "pairs",
        "Annotators disagree: soft targets train the pair towards an even score, majority takes "
        "the larger side as certain.",
    ),
    "self_contradiction": (
        "pairs",
        "One annotator preferred each side at some time: their votes are averaged, mostly to a "
        "tie. Look whether the question or the interface misled them.",
    ),
    "circle": (
        "groups",
        "The votes go round (A > B > C > A): no scores can fit them all, so the loss cannot reach "
        "its minimum and the scores are drawn together.",
    ),
    "own_circle": (
        "groups",
        "One annotator's own votes go round: at least one of them is a slip, and it is trained on "
        "like the others.",
    ),
    "near_identical": (
        "groups",
        "Two answers are nearly the same text: their pair teaches noise, or that a trifle decides.",
    ),
    "too_fast": (
        "timed votes",
        "Judged in less time than skimming takes: as targets such votes are close to coin flips "
        "or habits. Leave the annotator out, or use --aggregate dawid_skene.",
    ),
    "html_escaped": (
        "groups",
        "Text holds escapes such as &lt; or &#39;, which no model writes: escaped and clean "
        "answers can then be told apart by that alone. --unescape_html turns them back.",
    ),
    "other_language": (
        "groups",
        "An answer is in another language than the prompt's last turn: the reward model may learn "
        "the language instead of the quality.",
    ),
    "refusal": (
        "groups",
        "An answer begins like a refusal: see how often refusals win, since that is what the "
        "policy will be pushed to.",
    ),
    "repeated_answer": (
        "candidates",
        "The same short answer stands under several prompts: the model can learn the sentence "
        "by heart.",
    ),
    "two_splits": (
        "groups",
        "The prompt stands in another split too: held-out figures will be too good.",
    ),
    "suspect: display_order": (
        "rankings",
        "A ranking equal to the order shown is also what is stored when nobody touched it: noise "
        "in favour of the first answers. --suspects drop leaves it out.",
    ),
    "suspect: accepted_prediction": (
        "judgements",
        "The annotator submitted the model's suggestion unchanged: training on it teaches the "
        "model its own opinion. --suspects drop leaves it out.",
    ),
}
SUSPECT = ("judgements", "Doubted at import; --suspects drop leaves it out.")


class Findings:
    """What was found: how often, and the first places."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self.found: dict[str, list[Any]] = {}

    def add(self, kind: str, group_id: str, where: str | None = None, n: int = 1) -> None:
        """One finding. where: file and line of the group's (first) row."""
        entry = self.found.setdefault(kind, [0, {}])
        entry[0] += n
        if len(entry[1]) < MAX_EXAMPLES:
            entry[1].setdefault(group_id, where)

    def merge(self, other: Findings) -> None:
        """Takes the findings in later groups."""
        for kind, (count, places) in other.found.items():
            entry = self.found.setdefault(kind, [0, {}])
            entry[0] += count
            for group_id, where in places.items():
                if len(entry[1]) >= MAX_EXAMPLES:
                    break
                entry[1].setdefault(group_id, where)

    def count(self, kind: str) -> int:
        """How often."""
        return self.found[kind][0] if kind in self.found else 0

    def report(self, totals: Mapping[str, int]) -> dict[str, Any]:
        """{kind: {"count", "of", "share", "group_ids", "rows", "effect"}}.

        group_ids and rows stand side by side; a row is None where it is not known. totals: how many
        groups, pairs, … there are in all, by the names in ``EFFECTS``.
        """
        made = {}
        for kind, (count, places) in sorted(self.found.items()):
            of, effect = EFFECTS.get(kind, SUSPECT)
            total = totals.get(of, 0)
            made[kind] = {
                "count": count,
                "of": of,
                "share": round(count / total, 4) if total else None,
                "group_ids": list(places),
                "rows": list(places.values()),
                "effect": effect,
            }
        return made


def rate(hits: int, n: int) -> dict[str, Any]:
    """A proportion with its 95 % Wilson interval: {"rate", "low", "high", "n"}; None for n = 0."""
    if n == 0:
        return {"rate": None, "low": None, "high": None, "n": 0}
    z, p = 1.959964, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"rate": round(p, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def advice(report: Mapping[str, Any]) -> list[str]:
    """What the figures do to training, one sentence each; only what stands out."""
    return [*_biases(report), *_panel(report), *_texts(report)]


def _biases(report: Mapping[str, Any]) -> list[str]:
    said = []
    position, length, refusal = (
        report[n] for n in ("position_bias", "length_bias", "refusals_win")
    )
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
    if refusal["n"] and refusal["low"] > 0.5:
        said.append(
            f"Refusals win {refusal['rate']:.0%} of {refusal['n']} votes against answers: the "
            "policy will be pushed to refuse."
        )
    return said


def _panel(report: Mapping[str, Any]) -> list[str]:
    said = []
    alpha, found = report["agreement"]["alpha"], report["findings"]
    if alpha["high"] is not None and alpha["high"] < 0.667:
        said.append(
            f"Krippendorff's alpha is {alpha['alpha']:.2f} ({alpha['low']:.2f} to "
            f"{alpha['high']:.2f}); below 0.667 conclusions are not even tentative. Keep soft "
            "targets, and look at who disagrees with whom."
        )
    if report["contradictions"]:
        said.append(
            f"{_have(report['contradictions'], 'pair')} votes for both sides; soft "
            "targets train towards an even score there."
        )
    if report["circles"]:
        said.append(
            f"{_have(report['circles'], 'group')} votes that go round in a circle "
            "(A > B > C > A): no scores fit them all."
        )
    untouched = report["suspects"].get("display_order", 0)
    if untouched:
        said.append(
            f"{untouched} of {report['rankings']} rankings equal the display order; "
            f"chance would give {report['untouched_rankings_by_chance']:.1f}. Untouched "
            "rankings are noise: --suspects drop leaves them out."
        )
    units = report["strength_units"]
    if len(units) > 1:
        names = ", ".join(list(units)[:5]) + (", …" if len(units) > 5 else "")
        said.append(
            f"Strengths come in {len(units)} units ({names}), which reward.margin would mix: "
            "leave it off, or import one source at a time."
        )
    fast = found.get("too_fast")
    if fast and fast["share"] >= 0.01:
        said.append(
            f"{fast['count']} of {report['timed_votes']} timed votes were cast faster than the "
            "texts can be skimmed."
        )
    return said


def _texts(report: Mapping[str, Any]) -> list[str]:
    said = []
    found = report["findings"]
    if report["near_identical"]:
        said.append(
            f"{_have(report['near_identical'], 'group')} near-identical answers: little "
            "to learn there."
        )
    other = found.get("other_language")
    if other and other["share"] >= 0.05:
        said.append(
            f"In {other['share']:.0%} of the groups an answer is in another language than its "
            "prompt: check that the better answer is not just the one in the right language."
        )
    if report["prompts_in_two_splits"]:
        said.append(
            f"{_have(report['prompts_in_two_splits'], 'group')} a prompt that is in another split "
            "too: held-out figures will be too good."
        )
    return said


def _have(n: int, noun: str) -> str:
    return f"{n} {noun} has" if n == 1 else f"{n} {noun}s have"
