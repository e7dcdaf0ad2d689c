"""Targets from all votes of an import: who is to be believed is estimated from what everyone said.

``dawid_skene`` (Dawid and Skene 1979, by crowd-kit): each annotator has a confusion matrix. Tasks
are the compared pairs; labels "first is better", "second is better" and, where there are any,
"tie". Labels must mean the same whatever the display order, so the first candidate of a pair is the
one whose text has the smaller hash: half of the truths are then "first", and somebody who always
takes the left answer tells nothing. Everybody starts with a few invented answers to invented tasks
with a known truth, two right to one wrong (Laplace smoothing; three labels: three right and one of
each wrong one): one vote by one person is no proof. The target is P(first) + ½ P(tie).

``noisy_bt`` (``reward_models.noisy_bt``): each candidate has a score within its group and each
annotator a skill and a habit (left or right); target σ(s_i − s_j).

Both see pairs of at least ``min_annotators`` votes. Votes without a name are taken as one
annotator's, since nothing is known about who cast them. Memory: 29 bytes a vote while reading,
about 240 while fitting.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from align.config_errors import UserError
from align.records import Candidate, PairTarget, PreferenceGroup
from reward_models import noisy_bt
from reward_models.preferences import Vote, note_aggregated, targets, votes

if TYPE_CHECKING:
    import numpy as np

INSTALL = "pip install 'align[annotations]'"
UNNAMED = "(unnamed)"
RIGHT_ANSWERS = {2: 2, 3: 3}  # invented right answers by number of labels; wrong ones: one of each


class Given(Protocol):
    """What is used of the import's settings; see ``importing.ImportSettings``."""

    @property
    def ties(self) -> str: ...  # noqa: D102
    @property
    def suspects(self) -> str: ...  # noqa: D102
    @property
    def alpha(self) -> float: ...  # noqa: D102
    @property
    def min_annotators(self) -> int: ...  # noqa: D102


class Ballots:
    """Every vote in flat arrays, whatever the size of the texts."""

    def __init__(self) -> None:
        """No votes yet."""
        self.first, self.second = array("Q"), array("Q")
        self.worker, self.side, self.value = array("i"), array("b"), array("d")
        self.workers: dict[str, int] = {}
        self.named = 0

    def add(self, one: int, other: int, vote: Vote, shown: bool) -> None:
        """One vote on the candidates with these keys. shown: ``one`` stood left of ``other``."""
        value, side = vote.value, int(shown)
        if one > other:
            one, other, value, side = other, one, 1.0 - value, -side
        self.first.append(one)
        self.second.append(other)
        self.value.append(value)
        self.side.append(side)
        name = UNNAMED if vote.annotator is None else vote.annotator
        self.named += vote.annotator is not None
        self.worker.append(self.workers.setdefault(name, len(self.workers)))

    def pairs(self) -> np.ndarray:
        """The keys of the pairs that were voted on, sorted."""
        import numpy as np

        return np.unique(self.pair_keys())

    def pair_keys(self) -> np.ndarray:
        """The key of each vote's pair."""
        import numpy as np

        first, second = (np.asarray(a, dtype=np.uint64) for a in (self.first, self.second))
        return _pair_key(first, second)

    def check(self, aggregate: str) -> None:
        """UserError where the votes cannot tell who is reliable."""
        if not self.named:
            raise UserError(
                "aggregate", aggregate, f"needs to know who voted: none of {len(self.first)} votes "
                "has an annotator", "Use soft or majority",
            )  # fmt: skip
        if len(self.pairs()) == len(self.first):
            raise UserError(
                "aggregate", aggregate, "compares annotators, and no two voted on the same pair",
                "Use soft or majority",
            )  # fmt: skip


class Aggregator:
    """Observes every merged group, then gives each group's targets: the two passes of an import."""

    name = ""

    def __init__(self, settings: Given) -> None:
        """UserError where ``alpha`` is given: smoothing is the model's."""
        if settings.alpha:
            raise UserError(
                "alpha", settings.alpha, f"has no effect with aggregate {self.name}", "Leave it out"
            )
        self.settings = settings
        self.ballots = Ballots()
        self._found: dict[str, Any] | None = None

    def observe(self, group: PreferenceGroup) -> None:
        """Takes a group's votes."""
        shown = group.meta.get("display_order") is True
        keys = [candidate_key(group.group_id, c) for c in group.candidates]
        for (i, j), cast in self._pairs(group):
            for vote in cast:
                self.ballots.add(keys[i], keys[j], vote, shown)

    def targets(self, group: PreferenceGroup) -> list[PairTarget]:
        """The pairs to train on, see ``preferences.targets``.

        The probabilities are noted in ``group.meta["aggregated"]`` too, so that whoever trains on
        the written group gets the same targets with this ``aggregate``.
        """
        if self._found is None:
            self.ballots.check(self.name)
            self._found = self._fit()
        keys = [candidate_key(group.group_id, c) for c in group.candidates]
        pairs = {
            pair: self._probability(*(keys[i] for i in pair)) for pair, _ in self._pairs(group)
        }
        if not pairs:
            return []
        note_aggregated(group, self.name, pairs)
        given = self.settings
        return targets(
            group,
            aggregate=self.name,
            ties=given.ties,
            margin=True,
            min_annotators=given.min_annotators,
            suspects=given.suspects,
        )

    def report(self) -> dict[str, Any]:
        """What was found about the annotators; empty before the first ``targets``."""
        return {} if self._found is None else {"name": self.name, **self._found}

    def _pairs(self, group: PreferenceGroup) -> Iterator[tuple[tuple[int, int], Sequence[Vote]]]:
        given = self.settings
        for pair, cast in votes(group, ties=given.ties, suspects=given.suspects).items():
            if len(cast) >= given.min_annotators:
                yield pair, cast

    def _fit(self) -> dict[str, Any]:
        raise NotImplementedError

    def _probability(self, one: int, other: int) -> float:
        """P(the candidate with key ``one`` is better than that with key ``other``)."""
        raise NotImplementedError

    def _annotators(self, figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """{annotator: {"votes", figure: value}}, sorted by name."""
        import numpy as np

        ballots = self.ballots
        cast = np.bincount(np.asarray(ballots.worker), minlength=len(ballots.workers))
        return {
            name: {"votes": int(cast[w])} | {k: round(float(v[w]), 4) for k, v in figures.items()}
            for name, w in sorted(ballots.workers.items())
        }


class DawidSkene(Aggregator):
    """Annotators' confusion matrices. figures: skill = mean P(says c | c) over first and second."""

    name = "dawid_skene"

    def _fit(self) -> dict[str, Any]:
        np, pd, crowdkit = need("numpy"), need("pandas"), need("crowdkit.aggregation")
        ballots = self.ballots
        pairs, task = np.unique(ballots.pair_keys(), return_inverse=True)
        value = np.asarray(ballots.value)
        label = np.where(value > 0.5, 0, np.where(value < 0.5, 1, 2))
        labels = 3 if (label == 2).any() else 2
        *more, truth = _invented(len(pairs), len(ballots.workers), labels)
        given = (task, np.asarray(ballots.worker), label)
        columns = [np.concatenate(both) for both in zip(given, more, strict=True)]
        data = pd.DataFrame(dict(zip(("task", "worker", "label"), columns, strict=True)))
        truths = pd.Series(truth, index=range(len(pairs), len(pairs) + len(truth)))
        model = crowdkit.DawidSkene(n_iter=200).fit(data, truths)
        found = model.probas_.loc[range(len(pairs))].reindex(columns=range(3), fill_value=0.0)
        self._pair_keys, self._p = pairs, (found[0] + 0.5 * found[2]).clip(0.0, 1.0).to_numpy()
        skill = [
            np.mean([model.errors_[c].get((w, c), 0.0) for c in (0, 1)])
            for w in range(len(ballots.workers))
        ]
        return {
            "votes": len(label),
            "pairs": len(pairs),
            "iterations": len(model.loss_history_),
            "converged": len(model.loss_history_) < 200,
            "annotators": self._annotators({"skill": skill}),
        }

    def _probability(self, one: int, other: int) -> float:
        import numpy as np

        ends = np.array([min(one, other), max(one, other)], dtype=np.uint64)
        key = _pair_key(ends[:1], ends[1:])[0]  # arrays wrap around without a warning
        p = float(self._p[self._pair_keys.searchsorted(key)])
        return p if one < other else 1.0 - p


class NoisyBradleyTerry(Aggregator):
    """Annotators' skills γ and habits: P(left) of somebody who does not look."""

    name = "noisy_bt"

    def _fit(self) -> dict[str, Any]:
        np = need("numpy")
        need("scipy.optimize")
        ballots = self.ballots
        ends = np.concatenate([np.asarray(ballots.first), np.asarray(ballots.second)])
        self._keys, place = np.unique(ends, return_inverse=True)
        first, second = np.split(place, 2)
        worker, value, side = (np.asarray(a) for a in (ballots.worker, ballots.value, ballots.side))
        sizes = (len(self._keys), len(ballots.workers))
        fit = noisy_bt.fit(first, second, worker, value, side, *sizes)
        self._scores = fit.scores
        return {
            "votes": len(value),
            "pairs": len(ballots.pairs()),
            "converged": fit.converged,
            "annotators": self._annotators({"skill": fit.skills, "left": fit.habits}),
        }

    def _probability(self, one: int, other: int) -> float:
        import numpy as np

        a, b = self._scores[self._keys.searchsorted(np.array([one, other], dtype=np.uint64))]
        return float(1.0 / (1.0 + np.exp(b - a)))


def candidate_key(group_id: str, candidate: Candidate) -> int:
    """64-bit hash of a candidate within its group: the same in whatever order it stands."""
    turns = "\x1e".join(f"{m.role}\x1f{m.content}" for m in candidate.messages)
    data = f"{group_id}\x1d{turns}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def need(module: str) -> Any:
    """A module of the annotations extra; UserError with the install line where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        package = "crowd-kit" if module.startswith("crowdkit") else module.partition(".")[0]
        raise UserError("aggregate", package, "is not installed", INSTALL) from None


def _pair_key(first: Any, second: Any) -> Any:
    import numpy as np

    # The odd multiplier of the 64-bit golden ratio: (a, b) and (b, a) get different keys.
    return first * np.uint64(0x9E3779B97F4A7C15) + second


def _invented(tasks: int, workers: int, labels: int) -> tuple[np.ndarray, ...]:
    """(task, worker, label) of the invented answers, and the truth of each invented task.

    Tasks count on from ``tasks``; every annotator answers each of them.
    """
    import numpy as np

    answers, truths = [], []
    for truth in range(labels):
        given = [truth] * RIGHT_ANSWERS[labels] + [c for c in range(labels) if c != truth]
        answers += given
        truths += [truth] * len(given)
    task = np.repeat(np.arange(tasks, tasks + len(answers)), workers)
    worker = np.tile(np.arange(workers), len(answers))
    return task, worker, np.repeat(answers, workers), np.asarray(truths)
