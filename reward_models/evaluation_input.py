"""What an evaluation reads: groups of any known format, sampled completions, RewardBench rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from align.config_errors import UserError
from align.records import Candidate, Counts, PreferenceGroup, RecordError, parse_messages, short
from reward_models.annotations.base import Intake, Row, group_key, merge
from reward_models.annotations.detect import SAMPLE, detect
from reward_models.annotations.reading import read

PROTOCOLS = ("rewardbench", "rewardbench2")
GOLD = ("gold", "scores")


def read_groups(path: str, intake: Intake) -> list[PreferenceGroup]:
    """The groups of a file, rows about the same answers merged; UserError where there is none.

    A file in any format that the import reads, or rows {"prompt", "completions", "gold" or
    "scores"?} of sampled answers, whose gold scores go to ``meta["gold"]``.
    """
    found: dict[str, list[PreferenceGroup]] = {}
    parse = _samples if _is_sampled(path) else detect(path).format.parse
    for group in parse(read(path), intake):
        found.setdefault(group.group_id, []).append(group)
    if not found:
        reasons = dict(intake.rows.dropped)
        raise UserError(
            "input", path, f"has no usable row: {reasons}", "Give test.jsonl of an import"
        )
    return [merge(parts) for parts in found.values()]


def _is_sampled(path: str) -> bool:
    rows = [row.obj for row in islice(read(path), SAMPLE) if row.error is None]
    fit = [isinstance(r, dict) and "prompt" in r and _is_list(r, "completions") for r in rows]
    return bool(fit) and 2 * sum(fit) >= len(fit)


def _is_list(row: dict[str, Any], name: str) -> bool:
    return isinstance(row.get(name), list)


def _samples(rows: Iterable[Row], intake: Intake) -> Iterable[PreferenceGroup]:
    for row in rows:
        intake.begin(row)
        try:
            group = _sampled(row)
            if intake.seen("samples", group.group_id):
                raise RecordError("the same answers stand earlier", code="duplicate_row")
        except RecordError as error:
            intake.drop(row, error.code, error.message)
            continue
        intake.use()
        yield group


def _sampled(row: Row) -> PreferenceGroup:
    obj = _object(row)
    answers = obj.get("completions")
    if not isinstance(answers, list):
        raise RecordError("no list of completions", code="no_completion")
    candidates = tuple(Candidate(str(i), _answer(a)) for i, a in enumerate(answers))
    if len(candidates) < 2:
        raise RecordError("two completions are needed", code="one_candidate")
    meta: dict[str, Any] = {"source": "completions"}
    name = next((n for n in GOLD if obj.get(n) is not None), None)
    if name:
        gold = obj[name]
        if not isinstance(gold, list) or len(gold) != len(candidates) or not all(map(_ok, gold)):
            reason = f"{name} must be a number or null for each completion, got {short(gold)}"
            raise RecordError(reason, code="bad_value")
        meta["gold"] = gold
    prompt = _prompt(obj)
    return PreferenceGroup(group_key(prompt, candidates), prompt, candidates, (), meta)


def _ok(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value))


def read_items(path: str, protocol: str) -> tuple[list[Any], Counts]:
    """(``rewardbench.Item`` of each usable row, what became of all rows).

    UserError where no row is usable.
    """
    items, counts, seen = [], Counts(path), set()
    for row in read(path):
        try:
            item = _item(row, protocol)
            if item.subset == "Ties" and protocol == "rewardbench2":
                if item.name in seen:
                    raise RecordError(f"id {item.name!r} repeats", code="duplicate_id")
                seen.add(item.name)
        except RecordError as error:
            counts.drop(error.code, f"{path}:{row.line}: {error.message}")
            continue
        counts.use()
        items.append(item)
    if not items:
        said = "; ".join(
            f"{n} {code} ({counts.examples[code]})" for code, n in counts.dropped.most_common(3)
        )
        raise UserError(
            "input", path, f"has no {protocol} row: {said}", "See docs/reward_models.md"
        )
    return items, counts


def _item(row: Row, protocol: str) -> Any:
    from reward_models.rewardbench import TIES, Item

    obj = _object(row)
    missing = [name for name in ("chosen", "rejected", "subset") if obj.get(name) is None]
    if missing:
        raise RecordError(f"missing {', '.join(missing)}", code="missing_field")
    subset, prompt = str(obj["subset"]), _prompt(obj)
    if protocol == "rewardbench":
        lists = [n for n in ("chosen", "rejected") if _is_list(obj, n) and not _turns(obj[n])]
        if lists:
            raise RecordError(f"{lists[0]} is a list of answers", code="several_answers")
        return Item(subset, prompt, (_answer(obj["chosen"]),), (_answer(obj["rejected"]),))
    for name in ("chosen", "rejected"):
        if not _is_list(obj, name) or not obj[name]:
            raise RecordError(f"{name} must be a list of answers", code="not_a_list")
    chosen, rejected = (tuple(map(_answer, obj[n])) for n in ("chosen", "rejected"))
    name = str(obj.get("id", ""))
    if subset.lower() == TIES.lower():
        kind, _, number = name.partition(":")
        if kind not in ("ref", "tied") or not number:
            raise RecordError(f"id {name!r} is neither ref:N nor tied:N", code="bad_id")
        return Item(TIES, prompt, chosen, rejected, name)
    if len(chosen) > 1:
        raise RecordError(f"{len(chosen)} chosen answers outside Ties", code="several_chosen")
    return Item(subset, prompt, chosen, rejected, name)


def _turns(value: list[Any]) -> bool:
    return all(isinstance(v, dict) for v in value)


def _object(row: Row) -> dict[str, Any]:
    if row.error is not None:
        raise RecordError(row.error[1], code=row.error[0])
    if not isinstance(row.obj, dict):
        raise RecordError("expected an object", code="not_an_object")
    return row.obj


def _prompt(obj: dict[str, Any]) -> Any:
    messages = parse_messages(obj["prompt"]) if obj.get("prompt") else ()
    if not messages:
        raise RecordError("no prompt", code="no_prompt")
    return messages


def _answer(value: Any) -> Any:
    if isinstance(value, str):
        return value
    messages = parse_messages(value, role="assistant")
    if not messages or any(m.role != "assistant" for m in (messages[0], messages[-1])):
        raise RecordError("an answer begins and ends with the assistant", code="no_assistant")
    return messages
