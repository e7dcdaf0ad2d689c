"""What an annotation set looks like before anyone trains on it: agreement, biases, contradictions.

Figures are collected group by group, or from parts that were collected elsewhere. Memory holds one
number a prompt, the annotators, one number for each short answer up to a limit, and counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align.records import PreferenceGroup
from reward_models.marks import Marks
from reward_models.preferences import Vote, votes
from reward_models.quality_findings import Findings, advice, rate
from reward_models.quality_texts import (
    LENGTH_BINS,
    Repeated,
    is_escaped,
    is_refusal,
    length_bin,
    near_identical,
    similarity,
    speaks_other,
)
from reward_models.quality_votes import (
    SHARE_BINS,
    Agreement,
    Leaderboard,
    add_up,
    in_circle,
    majority_edges,
    own_circles,
)
from reward_models.reading_speed import UNNAMED, lead_times, seconds_to_skim

__all__ = ["Quality", "advice", "rate", "similarity"]

COUNTERS = (
    "kinds", "candidates", "votes_per_pair", "suspects", "scales", "prompt_languages",
    "answer_languages", "ranked", "_votes",
)  # fmt: skip
# Group, place, key of its prompt, split, short answers.
Shared = tuple[str, str | None, str, str, list[str]]


class Quality:
    """Collects figures: ``observe`` every group, or ``add`` parts that did, then ``report``.

    Parts of groups in their order, added in their order, give what all the groups give one by one.
    """

    def __init__(self, part: bool = False) -> None:
        """part: it is to be added to another one, which alone knows what stood in other parts."""
        self.groups = self.judgements = self.ties = self.rankings = 0
        self.kinds: Counter[str] = Counter()
        self.candidates: Counter[int] = Counter()
        self.votes_per_pair: Counter[int] = Counter()
        self.suspects: Counter[str] = Counter()
        self.scales: Counter[str] = Counter()
        self.prompt_languages: Counter[str] = Counter()
        self.answer_languages: Counter[str] = Counter()
        # How many rankings there are of each length.
        self.ranked: Counter[int] = Counter()
        self.alpha, self.repeated, self.findings = Agreement(), Repeated(), Findings()
        self.leaderboard = Leaderboard(limited=not part)
        self._first, self._refusals = [0, 0], [0, 0]
        self._longer = [[0, 0] for _ in LENGTH_BINS]
        self._agree: dict[str, list[int]] = {}
        self._votes: Counter[str] = Counter()
        self._timed: dict[str, list[int]] = {}
        self._split_of = None if part else Marks(bits=3)
        self._splits: dict[str, int] = {}
        self._leaks = 0
        self._later: list[Shared] = []  # of a part

    def observe_shown(self, group: PreferenceGroup, where: str | None = None) -> None:
        """Takes a group as one input row gave it, where the candidates stand in display order."""
        meta = group.meta
        if meta.get("display_order"):
            for cast in votes(group, ties="drop").values():
                for vote in cast:
                    self._first[0] += vote.value > 0.5
                    self._first[1] += 1
        if "lead_time" in meta:
            self._speed(group, where)

    def observe(
        self,
        group: PreferenceGroup,
        key: str,
        split: str,
        where: str | None = None,
        found: Mapping[tuple[int, int], Sequence[Vote]] | None = None,
    ) -> None:
        """Takes a finished group. key: its prompt key. split: where it was written.

        where: file and line of its (first) row. found: its ``votes``, where they are known already.
        """
        self.groups += 1
        self.candidates[len(group.candidates)] += 1
        self._judgements(group, where)
        if found is None:
            found = votes(group)
        texts = [c.text for c in group.candidates]
        self._pairs(group, texts, found, where)
        self._texts(group, texts, found, where)
        self._across((group.group_id, where, key, split, self.repeated.short(texts)))

    def _across(self, shared: Shared) -> None:
        """Takes what a group may share with others, those of other parts too."""
        if self._split_of is None:
            self._later.append(shared)
            return
        group_id, where, key, split, texts = shared
        prompt = hash(key)
        code = self._splits.setdefault(split, min(7, len(self._splits) + 1))
        if self._split_of.setdefault(prompt, code) not in (0, code):
            self._leaks += 1
            self.findings.add("two_splits", group_id, where)
        again = sum([self.repeated.again(text, prompt) for text in texts]) if texts else 0
        if again:
            self.findings.add("repeated_answer", group_id, where, again)

    def add(self, part: Quality) -> None:
        """Takes the figures of a part."""
        self.groups += part.groups
        self.judgements += part.judgements
        self.ties += part.ties
        self.rankings += part.rankings
        for name in COUNTERS:
            getattr(self, name).update(getattr(part, name))
        for into, other in ((self._agree, part._agree), (self._timed, part._timed)):
            for who, counts in other.items():
                add_up(into.setdefault(who, [0, 0]), counts)
        for bins, other in zip(self._longer, part._longer, strict=True):
            add_up(bins, other)
        add_up(self._first, part._first)
        add_up(self._refusals, part._refusals)
        self.alpha.merge(part.alpha)
        self.leaderboard.merge(part.leaderboard)
        self.findings.merge(part.findings)
        for shared in part._later:
            self._across(shared)

    def _judgements(self, group: PreferenceGroup, where: str | None) -> None:
        for judgement in group.judgements:
            self.judgements += 1
            self.kinds[judgement.kind] += 1
            self._votes[judgement.annotator or UNNAMED] += 1
            if judgement.suspect:
                self.suspects[judgement.suspect] += 1
                self.findings.add(f"suspect: {judgement.suspect}", group.group_id, where)
            if judgement.kind == "rank":
                self.rankings += 1
                ranks = [v for v in judgement.value.values() if v is not None]
                if len(ranks) > 1 and len(set(ranks)) == len(ranks):
                    self.ranked[len(ranks)] += 1

    def _pairs(
        self,
        group: PreferenceGroup,
        texts: Sequence[str],
        found: Mapping[tuple[int, int], Sequence[Vote]],
        where: str | None,
    ) -> None:
        lengths = [len(text) for text in texts]
        several = False
        for (i, j), cast in found.items():
            self.votes_per_pair[len(cast)] += 1
            a, b = lengths[i], lengths[j]
            longer = self._longer[length_bin(a, b)] if a != b else None
            ups = downs = 0
            for vote in cast:
                if vote.value == 0.5:
                    self.ties += 1
                elif vote.value > 0.5:
                    ups += 1
                else:
                    downs += 1
                if vote.strength is not None:
                    self.scales[vote.scale] += 1
                if vote.both:
                    self.findings.add("self_contradiction", group.group_id, where)
            if longer:
                longer[0] += ups if a > b else downs
                longer[1] += ups + downs
            if ups and downs:
                self.findings.add("contradiction", group.group_id, where)
            if len(cast) > 1:
                several = True
                self._agreement(cast)
        if several:
            self.alpha.observe(found)
        if len(found) > 2 and (several or len(group.judgements) > 1):
            self._circles(group, found, where)
        models = [c.model for c in group.candidates]
        if any(models):
            self.leaderboard.observe(models, found)

    def _circles(self, group: PreferenceGroup, found: Any, where: str | None) -> None:
        if in_circle(majority_edges(found)):
            self.findings.add("circle", group.group_id, where)
        if own_circles(found):
            self.findings.add("own_circle", group.group_id, where)

    def _agreement(self, cast: Sequence[Vote]) -> None:
        """Each named annotator against the majority of the others on the same pair."""
        total, others = sum(v.value for v in cast), len(cast) - 1
        for vote in cast:
            rest = 2.0 * (total - vote.value) - others
            # Sums of halves are exact; sums of other shares are not quite.
            if vote.annotator is None or vote.value == 0.5 or abs(rest) < 1e-9:
                continue
            agreed = self._agree.setdefault(vote.annotator, [0, 0])
            agreed[0] += (vote.value > 0.5) == (rest > 0)
            agreed[1] += 1

    def _texts(
        self, group: PreferenceGroup, texts: Sequence[str], found: Any, where: str | None
    ) -> None:
        add, name = self.findings.add, group.group_id
        if near_identical(texts):
            add("near_identical", name, where)
        asked = group.prompt[-1].content
        if speaks_other(asked, texts, self.answer_languages, self.prompt_languages):
            add("other_language", name, where)
        escaped, refused = is_escaped(asked), []
        for text in texts:
            escaped = escaped or ("&" in text and is_escaped(text))
            refused.append(is_refusal(text))
        if escaped:
            add("html_escaped", name, where)
        if True in refused:
            add("refusal", name, where)
            for (i, j), cast in found.items():
                if refused[i] != refused[j]:
                    decided = [v.value > 0.5 for v in cast if v.value != 0.5]
                    self._refusals[0] += sum(up == refused[i] for up in decided)
                    self._refusals[1] += len(decided)

    def _speed(self, group: PreferenceGroup, where: str | None) -> None:
        needed = seconds_to_skim(group)
        for name, seconds in lead_times(group).items():
            timed = self._timed.setdefault(name, [0, 0])
            timed[1] += 1
            if seconds < needed:
                timed[0] += 1
                self.findings.add("too_fast", group.group_id, where)

    def report(self) -> dict[str, Any]:
        """All figures as JSON values. Rates carry a 95 % Wilson interval."""
        pairs = sum(self.votes_per_pair.values())
        timed = sum(n for _, n in self._timed.values())
        answers = sum(k * n for k, n in self.candidates.items())
        totals = {
            "groups": self.groups, "pairs": pairs, "judgements": self.judgements,
            "rankings": self.rankings, "timed votes": timed, "candidates": answers,
        }  # fmt: skip
        count = self.findings.count
        untouched = sum((n / math.factorial(k) for k, n in sorted(self.ranked.items())), 0.0)
        longer = [sum(column) for column in zip(*self._longer, strict=True)]
        return {
            "groups": self.groups,
            "judgements": self.judgements,
            "pairs": pairs,
            "ties": self.ties,
            "kinds": dict(sorted(self.kinds.items())),
            "candidates_per_group": {str(k): n for k, n in sorted(self.candidates.items())},
            "votes_per_pair": {str(k): n for k, n in sorted(self.votes_per_pair.items())},
            "agreement": self._agreement_report(),
            "vote_shares": dict(zip(SHARE_BINS, self.alpha.shares, strict=True)),
            "position_bias": rate(*self._first),
            "length_bias": rate(*longer),
            "length_bins": {
                name: rate(*counts) for name, counts in zip(LENGTH_BINS, self._longer, strict=True)
            },
            "refusals_win": rate(*self._refusals),
            "contradictions": count("contradiction"),
            "self_contradictions": count("self_contradiction"),
            "circles": count("circle"),
            "near_identical": count("near_identical"),
            "suspects": dict(sorted(self.suspects.items())),
            "rankings": self.rankings,
            "untouched_rankings_by_chance": round(untouched, 3),
            "strength_units": dict(sorted(self.scales.items())),
            "timed_votes": timed,
            "languages": {
                "prompts": dict(self.prompt_languages.most_common()),
                "answers": dict(self.answer_languages.most_common()),
            },
            "repeated_answers": self.repeated.most(),
            "models": self.leaderboard.report(),
            "prompts": len(self._split_of or ()),
            "prompts_in_two_splits": self._leaks,
            "findings": self.findings.report(totals),
        }

    def _agreement_report(self) -> dict[str, Any]:
        annotators = {}
        for name, n in sorted(self._votes.items()):
            fast, timed = self._timed.get(name, (0, 0))
            annotators[name] = {
                "judgements": n,
                **rate(*self._agree.get(name, (0, 0))),
                "timed": timed,
                "too_fast": fast,
            }
        agreed = [sum(counts[k] for counts in self._agree.values()) for k in (0, 1)]
        return {"overall": rate(*agreed), "alpha": self.alpha.report(), "annotators": annotators}
