"""People as a judge: votes between named runs, as the arena and the import write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config_errors import UserError
from align.records import Message, PreferenceGroup, RecordError, prompt_key, read_jsonl


@dataclass(frozen=True)
class Comparison:
    """One comparison of two named runs on a prompt.

    outcome: 1 a is better, 0 b is, 0.5 a tie, or a mean of those. length_a, length_b: characters.
    """

    prompt_id: str
    a: str
    b: str
    outcome: float
    length_a: int = 0
    length_b: int = 0


class VotesJudge:
    """Votes of people on the candidates of preference groups, by the model that wrote each.

    Every judgement that is not suspect becomes one comparison a pair of candidates of different
    models. `between` finds comparisons by names, whatever the prompts were; `prefer` finds them by
    prompt and texts, and knows nothing (0.5) of pairs that nobody voted on.
    """

    def __init__(self, groups: Iterable[PreferenceGroup], name: str = "votes") -> None:
        from reward_models.preferences import votes

        self.name = name
        self.comparisons: list[Comparison] = []
        self.counts: Counter[str] = Counter()
        self._by_text: dict[tuple[str, str, str], list[float]] = {}
        for group in groups:
            try:
                found = votes(group, suspects="drop")
            except RecordError:
                self.counts["unusable"] += 1
                continue
            for (i, j), cast in found.items():
                self._add(group, i, j, [vote.value for vote in cast])

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> VotesJudge:
        """From a JSONL file of preference groups; UserError where it holds no usable vote."""
        try:
            groups = [PreferenceGroup.from_json(row) for _, row in read_jsonl(path)]
        except (OSError, RecordError) as error:
            reason = f"is not a file of preference groups ({error})"
            raise UserError("judge", str(path), reason, _FIX) from error
        judge = cls(groups, name or f"votes:{Path(path).stem}")
        if not judge.comparisons:
            reason = "holds no vote between candidates of two named models"
            raise UserError("judge", str(path), reason, _FIX)
        return judge

    @property
    def models(self) -> list[str]:
        """Names that were voted on, sorted."""
        return sorted({n for c in self.comparisons for n in (c.a, c.b)})

    def between(self, aliases: dict[str, str]) -> list[Comparison]:
        """Comparisons among runs. aliases: {name in the file: name of the run}."""
        found = []
        for c in self.comparisons:
            a, b = aliases.get(c.a), aliases.get(c.b)
            if a is None or b is None or a == b:
                continue
            found.append(Comparison(c.prompt_id, a, b, c.outcome, c.length_a, c.length_b))
        return found

    def prefer(
        self, prompts: Sequence[Sequence[Message]], a: Sequence[str], b: Sequence[str]
    ) -> list[float]:
        """Mean vote on exactly these two texts for this prompt; 0.5 where there is none."""
        out = []
        for prompt, x, y in zip(prompts, a, b, strict=True):
            cast = self._by_text.get((prompt_key(prompt), x, y))
            self.counts["known" if cast else "unknown"] += 1
            out.append(sum(cast) / len(cast) if cast else 0.5)
        return out

    def report(self) -> dict[str, Any]:
        """How many votes there are, and on which models."""
        return {"kind": "votes", "votes": len(self.comparisons), "models": self.models}

    def _add(self, group: PreferenceGroup, i: int, j: int, values: list[float]) -> None:
        first, second = group.candidates[i], group.candidates[j]
        key = prompt_key(group.prompt)
        for x, y, flip in ((first, second, False), (second, first, True)):
            cast = self._by_text.setdefault((key, x.text, y.text), [])
            cast += [1 - v if flip else v for v in values]
        if first.model is None or second.model is None or first.model == second.model:
            self.counts["unnamed"] += len(values)
            return
        sizes = (len(first.text), len(second.text))
        self.comparisons += [
            Comparison(key, first.model, second.model, v, *sizes) for v in values
        ]  # fmt: skip


_FIX = "Give what the arena or import_annotations wrote, with candidates that name their model"
