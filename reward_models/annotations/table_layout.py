"""Which columns of a plain table are the prompt, the answers and what was thought of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from reward_models.annotations.columns import PROMPTS, plain_name, role_of

IMPLIED = ("chosen", "rejected")
SEVERAL = "two sets of answers"


@dataclass(frozen=True)
class Layout:
    """What the columns are. answers: (suffix, column); ranks, scores, models: column by suffix.

    kind: what tells the preference: rank, winner, score or, with chosen and rejected, implied.
    more: text that goes on with the prompt (Alpaca's input). ignored: columns that look like a
    prompt or a preference and are not used.
    """

    prompt: str
    more: str | None
    system: str | None
    answers: tuple[tuple[str, str], ...]
    kind: str
    ranks: Mapping[str, str]
    scores: Mapping[str, str]
    models: Mapping[str, str]
    winner: str | None
    annotator: str | None
    strength: str | None
    ignored: tuple[str, ...]


@lru_cache(maxsize=256)
def layout_of(columns: tuple[str, ...]) -> Layout | str:
    """The layout of a table with these columns, or why it has none."""
    once: dict[str, list[str]] = {}
    each: dict[str, dict[str, dict[str, str]]] = {}
    for column in columns:
        if role := role_of(column):
            name, suffix, stem = role
            if suffix:
                each.setdefault(name, {}).setdefault(stem, {})[suffix] = column
            else:
                once.setdefault(name, []).append(column)
    prompt = _prompt(once.get("prompt", []))
    if prompt is None:
        return "no prompt column"
    sets = {s: c for s, c in each.get("answer", {}).items() if len(c) > 1}
    named = {stem: found for stem, found in sets.items() if stem}
    sets = named or sets  # bare letters beside answer_1, answer_2 are something else
    if len(sets) > 1:
        found = " or ".join("+".join(columns.values()) for columns in sets.values())
        return f"{SEVERAL}: {found}"
    if sets:
        ((stem, answers),) = sets.items()
        kind, ranks, scores = _told(each, answers, once)
    elif all(name in once for name in IMPLIED):
        stem, answers = "", {name: once[name][0] for name in IMPLIED}
        kind, ranks, scores = "implied", {}, {}
    else:
        return "fewer than two answer columns"
    if not kind:
        return "neither ranks nor scores nor a winner"
    used = {"rank": ranks, "score": scores}.get(kind, {})
    more = "input" if plain_name(prompt) == "instruction" else None
    ignored = [c for c in once["prompt"] if c != prompt and plain_name(c) != more]
    ignored += once.get("winner", []) if kind != "winner" else []
    ignored += [c for name in ("rank", "score") for s in each.get(name, {}).values()
                for c in s.values() if c not in used.values()]  # fmt: skip
    models = _beside(each.get("model", {}), answers)
    first = {name: found[0] for name, found in once.items()}
    return Layout(
        prompt=prompt,
        more=next((c for c in once["prompt"] if plain_name(c) == more), None),
        system=first.get("system"),
        answers=tuple(answers.items()),
        kind=kind,
        ranks=ranks,
        scores=scores,
        models=models,
        winner=first.get("winner"),
        annotator=first.get("annotator"),
        strength=first.get("strength"),
        ignored=tuple(ignored),
    )


def _prompt(columns: list[str]) -> str | None:
    by_name = {plain_name(column): column for column in reversed(columns)}
    return next((by_name[name] for name in PROMPTS if name in by_name), None)


def _told(
    each: dict[str, dict[str, dict[str, str]]], answers: dict[str, str], once: dict[str, list[str]]
) -> tuple[str, dict[str, str], dict[str, str]]:
    """(kind, ranks, scores).

    A row is one vote: a ranking counts before a winner, a winner before scores.
    """
    ranks = _beside(each.get("rank", {}), answers)
    scores = _beside(each.get("score", {}), answers)
    if len(ranks) > 1:
        return "rank", ranks, scores
    if once.get("winner"):
        return "winner", {}, scores
    return ("score" if len(scores) > 1 else ""), {}, scores


def _beside(sets: dict[str, dict[str, str]], answers: dict[str, str]) -> dict[str, str]:
    """The set of columns that has the answers' suffixes; {} where several have."""
    fitting = [found for found in sets.values() if len(found.keys() & answers.keys()) > 1]
    return {s: c for s, c in fitting[0].items() if s in answers} if len(fitting) == 1 else {}
