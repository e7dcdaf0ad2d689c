"""What every importer shares: the format description, row accounting, building a group.

Each input row ends as used or as dropped under a named reason, so rows in == used + Σ dropped.
Votes (annotations inside a row) have a second ledger of the same kind; the votes of a dropped row
are dropped under the row's reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from align.records import (
    Candidate,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    parse_messages,
    prompt_key,
)
from reward_models.annotations.intake import Intake, Options, Row
from reward_models.annotations.spool import Spool, digest
from reward_models.reading_speed import lead_times, note_lead_time

__all__ = [
    "Detection", "Format", "Intake", "Options", "Row", "group_key", "key_by_key", "make_group",
    "merge", "prompt_messages", "row_by_row", "rows_by_key",
]  # fmt: skip


@dataclass(frozen=True)
class Format:
    """An input format.

    matches: one row → evidence text, or None. parse: rows → groups, with every row accounted for;
    ``row_by_row`` and ``key_by_key`` make it. generic: this format's rows are what many tools
    write, so it gives way to any other format that fits.
    """

    name: str
    description: str
    matches: Callable[[Any], str | None]
    parse: Callable[[Iterable[Row], Intake], Iterator[PreferenceGroup]]
    generic: bool = False


@dataclass
class Detection:
    """Which format a file has and why. evidence: one sentence."""

    format: Format
    evidence: str


class row_by_row:
    """The ``parse`` of a format where each row is a group, whatever the other rows are.

    convert: row → group; it counts the row's votes and raises RecordError to drop the row. What it
    wants to know of other rows it asks ``intake.seen``.
    votes_in: how many votes a row holds, whatever becomes of them.
    """

    def __init__(
        self, convert: Callable[[Any, Intake], PreferenceGroup], votes_in: Callable[[Any], int]
    ):
        """See above."""
        self._convert, self._votes_in = convert, votes_in

    def __call__(self, rows: Iterable[Row], intake: Intake) -> Iterator[PreferenceGroup]:
        """The groups of some rows."""
        convert = self._convert
        for row in rows:
            intake.begin(row)
            if row.error is not None:
                intake.drop(row, *row.error)
                continue
            try:
                group = convert(row.obj, intake)
            except RecordError as error:
                intake.drop(row, error.code, error.message, self._votes_in(row.obj))
                continue
            intake.use()
            yield group


def rows_by_key(
    rows: Iterable[Row], intake: Intake, key: Callable[[Any], Any], votes_in: Callable[[Any], int]
) -> Iterator[list[Row]]:
    """The rows of each key together, wherever they stand in the file; keys in order of appearance.

    For formats whose comparison is spread over rows. The rows wait on disk, so memory holds 24
    bytes a row and the rows of one key. Error rows, and those for which ``key`` raises RecordError,
    are dropped here; every row that comes out must be used or dropped by the caller
    (``intake.begin(row)``, then ``intake.use()`` or ``intake.drop(row, …)``).
    key: JSON value of a row → any JSON value. votes_in: how many votes a row holds.
    """
    with closing(Spool(intake.folder)) as spool:
        for row in rows:
            intake.begin(row)
            if row.error is not None:
                intake.drop(row, *row.error)
                continue
            try:
                mark = digest(key(row.obj))
            except RecordError as error:
                intake.drop(row, error.code, error.message, votes_in(row.obj))
                continue
            spool.add(mark, pickle.dumps((row.file, row.line, row.number, row.obj), 5))
        for parts in spool.groups():
            yield [Row(*pickle.loads(part)) for part in parts]


def key_by_key(
    key: Callable[[Any], Any],
    convert: Callable[[list[Row], Intake], PreferenceGroup],
    votes_in: Callable[[Any], int],
) -> Callable[[Iterable[Row], Intake], Iterator[PreferenceGroup]]:
    """The ``parse`` of a format where the rows of one key are a group (see ``rows_by_key``).

    key: as in ``rows_by_key``; RecordError there drops one row, so check single rows in it.
    convert: rows of one key, in file order → their group. RecordError drops all of them; a single
    one is dropped by ``intake.drop(row, code, detail, votes)`` and the others count as used. It
    counts votes with ``intake.vote`` when nothing can fail any more.
    """

    def parse(rows: Iterable[Row], intake: Intake) -> Iterator[PreferenceGroup]:
        for together in rows_by_key(rows, intake, key, votes_in):
            intake.begin(together[0])
            with intake.dropping() as dropped:
                used, total = intake.votes.used, intake.votes.total
                try:
                    group, problem = convert(together, intake), None
                except RecordError as error:
                    group, problem = None, error
                    intake.votes.used = used
            left = [row for row in together if id(row) not in dropped]
            if group is not None:
                for row in left:
                    intake.begin(row)
                    intake.use()
                intake.begin(left[0] if left else together[0])
                yield group
            elif problem is not None:
                # Votes that convert counted under a reason of their own keep it.
                uncounted = sum(votes_in(row.obj) for row in together)
                uncounted -= intake.votes.total - total
                for row in left:
                    votes = max(0, min(uncounted, votes_in(row.obj)))
                    uncounted -= votes
                    intake.drop(row, problem.code, problem.message, votes)

    return parse


def group_key(prompt: Sequence[Message], candidates: Iterable[Candidate]) -> str:
    """Identity of a comparison: the prompt and the set of answers, whatever their order."""
    return _group_key(prompt, [_content_key(c) for c in candidates])


def _group_key(prompt: Sequence[Message], contents: Iterable[str]) -> str:
    hashed = hashlib.sha256(cached_prompt_key(tuple(prompt)).encode("ascii"))
    for content in sorted(contents):
        data = content.encode("utf-8", "surrogatepass")
        hashed.update(b"%d:" % len(data))
        hashed.update(data)
    return hashed.hexdigest()[:32]


@lru_cache(maxsize=256)  # the import asks for it again when the group is made
def cached_prompt_key(prompt: tuple[Message, ...]) -> str:
    """``align.records.prompt_key``, remembered for a moment."""
    return prompt_key(prompt)


def make_group(
    prompt: Sequence[Message],
    candidates: Sequence[Candidate],
    judgements: Sequence[Judgement] = (),
    meta: dict[str, Any] | None = None,
) -> PreferenceGroup:
    """A group with its content key as id.

    RecordError where there is nothing to compare, or something that cannot be written as JSON.
    """
    if not prompt or not any(m.content.strip() for m in prompt):
        raise RecordError("the prompt is empty", code="no_prompt")
    if len(candidates) < 2:
        raise RecordError(f"{len(candidates)} candidate(s); two are needed", code="one_candidate")
    empty = [c.id for c in candidates if not c.text.strip()]
    if empty:
        raise RecordError(f"candidates without text: {empty}", code="empty_candidate")
    contents = [_content_key(c) for c in candidates]
    if contents.count(contents[0]) == len(contents):
        raise RecordError("all candidates are the same text", code="identical_candidates")
    prompt, candidates = tuple(prompt), tuple(candidates)
    passed_on = [meta, *[c.model for c in candidates]]
    passed_on += [(j.value, j.strength, j.source, j.suspect) for j in judgements]
    if not _is_json(passed_on):
        try:
            _encode(passed_on)
        except (TypeError, ValueError) as error:  # NaN in a field that nothing has read
            raise RecordError(f"cannot be written: {error}", code="bad_value") from None
    key = _group_key(prompt, contents)
    return PreferenceGroup(key, prompt, candidates, tuple(judgements), meta or {})


def _is_json(value: Any) -> bool:
    """Whether JSON can certainly hold this; several times faster than to write it."""
    kind = type(value)
    if value is None or kind is str or kind is int or kind is bool:
        return True
    if kind is float:
        return -math.inf < value < math.inf
    if kind is dict:
        return set(map(type, value)) <= {str} and all(map(_is_json, value.values()))
    return (kind is list or kind is tuple) and all(map(_is_json, value))


# Made once: json.dumps makes an encoder at every call.
_encode = json.JSONEncoder(allow_nan=False).encode


def merge(groups: Sequence[PreferenceGroup]) -> PreferenceGroup:
    """One group with all judgements of groups that hold the same prompt and the same answers.

    The first group's ids and order stay; the others' judgements are rewritten by content.
    """
    if len(groups) == 1:
        return groups[0]
    first, judgements = groups[0], list(groups[0].judgements)
    meta: dict[str, Any] = {}
    metas = [first.meta]
    for other in groups[1:]:
        free = list(first.candidates)
        ids = {}
        for candidate in other.candidates:
            same = next(c for c in free if _content_key(c) == _content_key(candidate))
            free.remove(same)
            ids[candidate.id] = same.id
        judgements += [_renamed(j, ids) for j in other.judgements]
        metas.append({**other.meta, "attributes": _attributes(other.meta, ids)})
    rated: dict[str, dict[str, Any]] = {}
    for said in reversed(metas):
        meta.update(said)
        for name, values in _attributes(said, {}).items():
            rated.setdefault(name, {}).update(values)
    meta.pop("attributes", None)
    if rated:
        meta["attributes"] = rated
    meta.pop("aggregated", None)  # of the votes of one part only
    meta["merged"] = sum(_count(g, "merged", 1) for g in groups)
    if any("both_bad" in g.meta for g in groups):
        meta["both_bad"] = sum(_count(g, "both_bad", 0) for g in groups)
    meta.pop("lead_time", None)
    for group in groups:
        for name, seconds in lead_times(group).items():
            note_lead_time(meta, name, seconds)
    orders = {tuple(map(_content_key, g.candidates)) for g in groups}
    if "display_order" in meta and len(orders) > 1:
        meta["display_order"] = False  # the annotators did not all see this order
    return PreferenceGroup(first.group_id, first.prompt, first.candidates, tuple(judgements), meta)


def prompt_messages(value: Any, system: Any = None) -> tuple[Message, ...]:
    """A prompt field (text, message or list) as messages; RecordError no_prompt when absent."""
    if value is None or (isinstance(value, (str, list)) and not value):
        raise RecordError("no prompt", code="no_prompt")
    messages = parse_messages(value)
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return messages


def _renamed(judgement: Judgement, ids: dict[str, str]) -> Judgement:
    value = judgement.value
    if judgement.kind != "pair":
        value = {ids[i]: v for i, v in value.items()}
    elif "tie" in value:
        value = {"tie": [ids[i] for i in value["tie"]]}
    else:
        value = {**value, "winner": ids[value["winner"]], "loser": ids[value["loser"]]}
    return Judgement(
        judgement.annotator,
        judgement.kind,
        value,
        judgement.strength,
        judgement.source,
        judgement.suspect,
    )


def _attributes(meta: dict[str, Any], ids: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The ratings of each candidate (meta's "attributes"), under the ids of another group."""
    rated: Any = meta.get("attributes")
    if not isinstance(rated, dict):
        return {}
    return {ids.get(str(name), str(name)): v for name, v in rated.items() if isinstance(v, dict)}


def _count(group: PreferenceGroup, name: str, otherwise: int) -> int:
    value = group.meta.get(name, otherwise)
    return value if isinstance(value, int) else otherwise


def _content_key(candidate: Candidate) -> str:
    # The exact text, not the normalised one: two answers that differ in a space or in case are
    # still two answers to the reward model.
    content = candidate.content
    if isinstance(content, str):
        return "t" + content
    if len(content) == 1 and content[0].role == "assistant":
        return "t" + content[0].content
    return "m" + json.dumps([[m.role, m.content] for m in content])
