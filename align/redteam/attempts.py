"""Attempts: every probe under every mutator, group and seed, asked of a model or of a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from align.config_errors import UserError
from align.evaluation.sampling import Decoding, fitting, sample
from align.records import Message, Prompt, RecordError, messages_json
from align.redteam.detectors import Verdict
from align.redteam.mutators import Case, NotApplicable, mutate
from align.redteam.probe_set import Probe


@dataclass
class Attempt:
    """One request that was sent, and what came back.

    case: as mutated. group: index into the probe's groups. completion: None where there is none;
    `error` then says why. verdicts: by detector. scores: numbers of detectors that have them.
    """

    probe: Probe
    mutator: str
    case: Case
    group: int | None = None
    seed: int = 0
    completion: str | None = None
    finished: bool = False
    error: str = ""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The completion, "" where there is none."""
        return self.completion or ""

    @property
    def group_name(self) -> str:
        """The group, "" where the probe has none."""
        return "" if self.group is None else self.probe.groups[self.group]

    @property
    def key(self) -> tuple[str, str, int | None, int]:
        """What tells it apart, the same for every model."""
        return (self.probe.id, self.mutator, self.group, self.seed)

    def to_json(self, model: str, primary: str) -> dict[str, Any]:
        """A row of attempts.jsonl. primary: the detector whose verdict counts."""
        verdict = verdict_of(self, primary)
        row: dict[str, Any] = {
            "model": model,
            "probe": self.probe.id,
            "category": self.probe.category,
            "language": self.probe.language,
            "expected": self.probe.expected,
            "mutator": self.mutator,
            "seed": self.seed,
            "prompt": messages_json(self.case.messages),
            "completion": self.completion,
            "verdict": verdict.value if verdict else "no answer",
            "reason": verdict.reason if verdict else self.error,
            "detectors": {name: v.value for name, v in self.verdicts.items()},
        }
        if self.group is not None:
            row["group"] = self.group_name
        return {**row, **({"scores": self.scores} if self.scores else {})}


def verdict_of(attempt: Attempt, primary: str) -> Verdict | None:
    """The primary detector's verdict; the rules' where it is not made for this probe."""
    return attempt.verdicts.get(primary) or attempt.verdicts.get("rules")


@dataclass
class Skipped:
    """Attempts that were not made: counts by (mutator, language, reason)."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, attempt: Attempt | tuple[str, str], reason: str) -> None:
        """Count one. attempt: or its mutator and language."""
        place = attempt if isinstance(attempt, tuple) else (attempt.mutator, attempt.probe.language)
        self.counts[(*place, reason)] += 1

    def to_json(self) -> list[dict[str, Any]]:
        """Rows for red_team.json."""
        return [
            {"mutator": m, "language": lang, "reason": why, "attempts": n}
            for (m, lang, why), n in sorted(self.counts.items())
        ]


def build(
    probes: Sequence[Probe],
    mutators: Sequence[str],
    seeds: Sequence[int],
    *,
    every: Sequence[Probe] = (),
    mutation_seed: int = 0,
    translate: Callable[[Sequence[str], str], list[str]] | None = None,
) -> tuple[list[Attempt], Skipped]:
    """All attempts, without completions. every: where twins are looked for, default: the probes."""
    twins: dict[str, list[Probe]] = {}
    for probe in [*probes, *every]:
        if probe.pair:
            twins.setdefault(probe.pair, []).append(probe)
    attempts, skipped = [], Skipped()
    for probe in probes:
        others = (p for p in twins.get(probe.pair, []) if p.language != probe.language)
        twin = next(others, None)
        for spec in mutators:
            for group in range(len(probe.groups)) if probe.groups else (None,):
                messages = probe.messages
                if group is not None:
                    messages = probe.for_group(probe.groups[group])
                topic = (messages[-1].content,)
                case = Case(
                    messages, probe.language, probe.forbidden, probe.accept, topic, twin, group
                )
                try:
                    case = mutate(case, spec, mutation_seed, probe.id, translate)
                except NotApplicable as why:
                    for _ in seeds:
                        skipped.add((spec, probe.language), str(why))
                    continue
                attempts += [Attempt(probe, spec, case, group, seed) for seed in seeds]
    return attempts, skipped


def again(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The same attempts without answers, for another model."""
    return [Attempt(a.probe, a.mutator, a.case, a.group, a.seed) for a in attempts]


def ask_model(
    attempts: Sequence[Attempt],
    loaded: tuple[Any, Any],
    seeds: Sequence[int],
    decoding: Decoding,
    skipped: Skipped,
) -> list[Attempt]:
    """Complete the attempts with a loaded (model, tokenizer); those it has an answer for.

    A template without a system turn gets it at the beginning of the user's. What does not fit the
    model, or its template refuses, is counted in `skipped`.
    """
    model, tokenizer = loaded
    by_place: dict[tuple, list[Attempt]] = {}
    for attempt in attempts:
        by_place.setdefault(attempt.key[:3], []).append(attempt)
    prompts: list[Prompt] = []
    for number, group in enumerate(by_place.values()):
        messages = readable(tokenizer, group[0].case.messages)
        if messages is None:
            for attempt in group:
                skipped.add(attempt, "the chat template refuses these turns")
            continue
        prompts.append(Prompt(messages, prompt_id=str(number)))
    if not prompts:
        raise UserError("--model", "", "has a chat template that refuses every probe",
                        "Give --chat_template chatml")  # fmt: skip
    kept, _ = fitting(prompts, [loaded], decoding.max_new_tokens)
    ids = {p.prompt_id for p in kept}
    places = list(by_place.values())
    for prompt in prompts:
        if prompt.prompt_id not in ids:
            for attempt in places[int(prompt.prompt_id)]:
                skipped.add(attempt, "too long for the model")
    outputs = sample(model, tokenizer, kept, seeds, decoding)
    answered: list[Attempt] = []
    for p, prompt in enumerate(kept):
        for attempt in places[int(prompt.prompt_id)]:
            row = p * len(seeds) + list(seeds).index(attempt.seed)
            attempt.completion, attempt.finished = outputs.texts[row], outputs.finished[row]
            answered.append(attempt)
    return answered


def readable(tokenizer: Any, messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The messages as the tokenizer's template takes them; None where it takes them in no form."""
    from align.chat import render_prompt

    for form in (tuple(messages), system_first(messages)):
        try:
            render_prompt(tokenizer, list(form))
        except RecordError:
            continue
        return form
    return None


def system_first(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The system turn at the beginning of the first user turn; tool turns as the user's."""
    turns = [replace(m, role="user") if m.role == "tool" else m for m in messages]
    if turns and turns[0].role == "system" and len(turns) > 1:
        first = turns[1]
        turns = [replace(first, content=f"{turns[0].content}\n\n{first.content}"), *turns[2:]]
    return tuple(turns)


def ask_server(
    attempts: Sequence[Attempt], endpoint: Callable[[int], Any], seeds: Sequence[int]
) -> list[Attempt]:
    """Complete the attempts with a chat server. endpoint: seed → Endpoint. Errors are kept."""
    for seed in seeds:
        rows = [a for a in attempts if a.seed == seed]
        answers = endpoint(seed).ask([list(a.case.messages) for a in rows])
        for attempt, answer in zip(rows, answers, strict=True):
            attempt.completion, attempt.finished = answer.text, answer.text is not None
            attempt.error = answer.error or ""
    return list(attempts)
