"""Probes: what a model is asked to see whether it misbehaves, one JSON object a line.

Ours are in `probes/`, one file a category, Chinese and English. A set of one's own has the same
form (docs/red_team.md) and is checked as strictly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from align.config_errors import UserError, missing_file, nearest
from align.jsonl import RecordError, read_rows, short
from align.records import Message, parse_messages

CATEGORIES = (
    "privilege_escalation", "privacy", "hallucination", "harmful_instruction", "over_refusal",
    "prompt_injection", "bias",
)  # fmt: skip
LANGUAGES = ("zh", "en")
EXPECTED = {
    "refuse": "the model refuses",
    "answer": "the model answers: the request only looks harmful",
    "abstain": "the model says that it cannot know, or corrects the premise",
    "ignore_injection": "none of the forbidden strings is written",
    "no_leak": "none of the forbidden strings, which the conversation holds, is given away",
    "no_stereotype": "no forbidden phrase, and no group is refused what another is given",
}
GROUP = "{group}"
_REQUIRED = ("id", "category", "language", "prompt", "expected")
_OPTIONAL = ("pair", "forbidden", "accept", "groups", "continuations", "meta")


@dataclass(frozen=True)
class Probe:
    """One request and what a well-behaved model does with it.

    messages: the conversation, which ends with a user turn. expected: a key of `EXPECTED`. pair:
    name shared with the same request in another language. forbidden: strings whose presence shows
    that the attack worked. accept: what a correct abstention mentions. groups: values that replace
    `{group}` in the messages, one attempt each. continuations: two answers, favourable and not,
    whose likelihoods are compared between groups.
    """

    id: str
    category: str
    language: str
    messages: tuple[Message, ...]
    expected: str
    pair: str = ""
    forbidden: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    continuations: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, hash=False)

    def for_group(self, group: str) -> tuple[Message, ...]:
        """The messages with `{group}` replaced."""
        return tuple(Message(m.role, m.content.replace(GROUP, group)) for m in self.messages)

    @property
    def question(self) -> str:
        """The text of the last turn."""
        return self.messages[-1].content


def shipped() -> list[Probe]:
    """All of our probes, category after category."""
    folder = resources.files("align.redteam") / "probes"
    found: list[Probe] = []
    for name in CATEGORIES:
        with resources.as_file(folder / f"{name}.jsonl") as path:
            found += load_probes([path])
    return found


def load_probes(paths: Sequence[str | Path], option: str = "--probes") -> list[Probe]:
    """The probes of files; UserError with file and line for a row that does not keep the form."""
    found: dict[str, Probe] = {}
    for path in paths:
        if not Path(path).is_file():
            raise missing_file(option, str(path))
        try:
            for number, row in read_rows(path):
                probe = _probe(row, f"{path}:{number}")
                if probe.id in found:
                    raise UserError(f"{path}:{number}", probe.id, "is the id of two probes",
                                    "Give each its own")  # fmt: skip
                found[probe.id] = probe
        except RecordError as error:
            raise UserError(option, str(path), f"cannot be read: {error}", "Correct it") from error
    if not found:
        raise UserError(option, [str(p) for p in paths], "hold no probe", "Write one a line")
    _check_pairs(found.values())
    return list(found.values())


def select(
    probes: Sequence[Probe],
    categories: Sequence[str] = (),
    languages: Sequence[str] = (),
    limit: int | None = None,
) -> list[Probe]:
    """Probes of the categories and languages (empty: all), the first `limit` of each of both.

    UserError where a name stands for no probe.
    """
    for option, wanted, known in (
        ("--categories", categories, {p.category for p in probes}),
        ("--languages", languages, {p.language for p in probes}),
    ):
        for name in wanted:
            if name not in known:
                close = nearest(name, known)
                fix = (
                    f"Did you mean '{close}'?" if close else f"There are {', '.join(sorted(known))}"
                )
                raise UserError(option, name, "is in no probe", fix)
    kept: list[Probe] = []
    counts: dict[tuple[str, str], int] = {}
    for probe in probes:
        if (categories and probe.category not in categories) or (
            languages and probe.language not in languages
        ):
            continue
        key = (probe.category, probe.language)
        counts[key] = counts.get(key, 0) + 1
        if limit is None or counts[key] <= limit:
            kept.append(probe)
    if not kept:
        known = ", ".join(sorted({p.language for p in probes}))
        raise UserError("--categories", list(categories), "leave no probe in these languages",
                        f"The probes' languages: {known}")  # fmt: skip
    return kept


def _probe(row: Any, where: str) -> Probe:
    """A checked row."""
    if not isinstance(row, dict):
        raise UserError(where, row, "is no object", 'Write {"id": …, "category": …, …}')
    for name in row:
        if name not in (*_REQUIRED, *_OPTIONAL):
            close = nearest(name, (*_REQUIRED, *_OPTIONAL))
            fix = f"Did you mean '{close}'?" if close else "Put notes of your own under meta"
            raise UserError(f"{where} {name}", row[name], "is not a field of a probe", fix)
    for name in _REQUIRED:
        if not row.get(name):
            raise UserError(f"{where} {name}", row.get(name), "is missing", f"Add {name}")
    for name in ("id", "category", "language", "expected", "pair"):
        if not isinstance(row.get(name, ""), str):
            raise UserError(f"{where} {name}", row[name], "is no text", "Write a string")
    if row["expected"] not in EXPECTED:
        raise UserError(f"{where} expected", row["expected"], "is not known",
                        f"One of {', '.join(EXPECTED)}")  # fmt: skip
    lists = {n: _strings(row, n, where) for n in ("forbidden", "accept", "groups", "continuations")}
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise UserError(f"{where} meta", meta, "is no object", "Write {…}")
    try:
        messages = parse_messages(row["prompt"])
    except RecordError as error:
        raise UserError(f"{where} prompt", row["prompt"], str(error), "Correct it") from None
    probe = Probe(row["id"], row["category"], row["language"], messages, row["expected"],
                  row.get("pair", ""), meta=meta, **lists)  # fmt: skip
    _check(probe, where)
    return probe


def _strings(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise UserError(f"{where} {name}", values, "is no list of texts", 'Write ["…"]')
    return tuple(values)


def _check(probe: Probe, where: str) -> None:
    """Raise UserError where the fields of a probe do not go together."""
    text = "\n".join(m.content for m in probe.messages)
    if probe.messages[-1].role != "user" or not probe.question.strip():
        raise UserError(f"{where} prompt", probe.question, "does not end with a user turn",
                        "End with what the user asks")  # fmt: skip
    if probe.expected in ("ignore_injection", "no_leak") and not probe.forbidden:
        raise UserError(f"{where} forbidden", [], f"is needed by expected: {probe.expected}",
                        "Name the strings that must not be written")  # fmt: skip
    if probe.expected in ("ignore_injection", "no_leak"):
        # The first is what the conversation holds; others are further forms of it.
        squeezed = _squeeze(text)
        if _squeeze(probe.forbidden[0]) not in squeezed:
            reason = "does not occur in the prompt"
            raise UserError(f"{where} forbidden", probe.forbidden[0], reason,
                            "A model can only give away what it was given")  # fmt: skip
    if (GROUP in text) != bool(probe.groups):
        reason = "has no groups" if GROUP in text else "stand nowhere: the prompt has no {group}"
        name = "prompt" if GROUP in text else "groups"
        raise UserError(f"{where} {name}", short(text), reason, "Give both or neither")
    if probe.groups and len(set(probe.groups)) < 2:
        raise UserError(
            f"{where} groups", list(probe.groups), "are not two different ones", "Add one"
        )
    if probe.continuations and (len(probe.continuations) != 2 or not probe.groups):
        fix = "Give groups, a favourable and an unfavourable answer"
        reason = "are not two, or without groups"
        raise UserError(f"{where} continuations", list(probe.continuations), reason, fix)


def _squeeze(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def _check_pairs(probes: Iterable[Probe]) -> None:
    """Raise UserError where a pair has two probes in a language, or differs in what it expects."""
    seen: dict[str, dict[str, Probe]] = {}
    for p in probes:
        if not p.pair:
            continue
        twins = seen.setdefault(p.pair, {})
        if p.language in twins:
            both = f"{twins[p.language].id} and {p.id}"
            raise UserError("pair", p.pair, f"has two probes in {p.language}: {both}",
                            "Give one its own pair")  # fmt: skip
        for other in twins.values():
            if (other.category, other.expected) != (p.category, p.expected):
                raise UserError("pair", p.pair, f"joins {other.id} and {p.id}, which differ in "
                                "category or in what is expected", "Correct one")  # fmt: skip
        twins[p.language] = p


def twin(probe: Probe, probes: Iterable[Probe]) -> Probe | None:
    """The probe of the same pair in another language."""
    if not probe.pair:
        return None
    found = (p for p in probes if p.pair == probe.pair and p.language != probe.language)
    return next(found, None)
