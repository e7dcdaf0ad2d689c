"""What every importer shares: the format description, row accounting, building a group.

Each input row ends as used or as dropped under a named reason, so rows in == used + Σ dropped.
Votes (annotations inside a row) have a second ledger of the same kind; the votes of a dropped row
are dropped under the row's reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from align.jsonl import short
from align.records import (
    Candidate,
    Counts,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    parse_messages,
    prompt_key,
)


@dataclass(frozen=True)
class Row:
    """One input row. line: where it begins in the file, from 1. number: its position, from 1.

    obj: the JSON value. error: why there is no value, as (code, detail). ends: the file cannot be
    read beyond this row.
    """

    file: str
    line: int
    number: int
    obj: Any = None
    error: tuple[str, str] | None = None
    ends: bool = False


@dataclass(frozen=True)
class Options:
    """What the user told about the input.

    label_config: a ``reward_models.annotations.label_config.LabelConfig`` or None.
    bucket_order: Label Studio bucket names from best to worst; empty: buckets are no preference.
    """

    label_config: Any = None
    bucket_order: tuple[str, ...] = ()


class Intake:
    """The books of one import: rows, votes, rejects and warnings of all files together.

    row: the row that is being read.
    """

    def __init__(
        self,
        options: Options | None = None,
        on_reject: Callable[[dict[str, Any]], None] | None = None,
    ):
        """on_reject: takes one rejects.jsonl record at a time."""
        self.options = options or Options()
        self.rows = Counts()
        self.votes = Counts()
        self.warnings: Counter[str] = Counter()
        self.row: Row | None = None
        self._on_reject = on_reject or (lambda _: None)
        self._seen: set[bytes] = set()
        self._votes_before = (0, 0)

    def begin(self, row: Row) -> None:
        """Say which row the next votes belong to."""
        self.row, self._votes_before = row, (self.votes.used, self.votes.total)

    def use(self) -> None:
        """Count a used row."""
        self.rows.use()

    def drop(self, row: Row, code: str, detail: str, votes: int = 0) -> None:
        """Count a dropped row and write it to the rejects.

        votes: how many votes the row holds; those without a reason of their own get the row's.
        """
        if self.row is not row:
            self.begin(row)
        self.rows.drop(code, where=f"{row.file}:{row.line}")
        used, total = self._votes_before
        self.votes.used = used
        if votes > self.votes.total - total:
            self.drop_vote(code, votes - (self.votes.total - total))
        if row.ends:
            self.warn(f"{row.file} could be read up to line {row.line} only: {detail}")
        record = {
            "file": row.file,
            "line": row.line,
            "row": row.number,
            "reason": code,
            "detail": detail,
            "record": short(row.obj, 500),
        }
        self._on_reject(record)

    def vote(self) -> None:
        """Count a vote."""
        self.votes.use()

    def drop_vote(self, reason: str, n: int = 1) -> None:
        """Count something that looks like a vote and is none."""
        where = f"{self.row.file}:{self.row.line}" if self.row else None
        self.votes.drop(reason, where=where, n=n)

    def warn(self, message: str) -> None:
        """Remember a warning and how often it occurred."""
        self.warnings[message] += 1

    def seen(self, *parts: Any) -> bool:
        """Whether these parts were passed before; they are remembered as a 16-byte digest."""
        digest = hashlib.blake2b(_stable(parts), digest_size=16).digest()
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


@dataclass(frozen=True)
class Format:
    """An input format.

    matches: one row → evidence text, or None. parse: rows → groups, with every row accounted for.
    """

    name: str
    description: str
    matches: Callable[[Any], str | None]
    parse: Callable[[Iterable[Row], Intake], Iterator[PreferenceGroup]]


@dataclass
class Detection:
    """Which format a file has and why. evidence: one sentence."""

    format: Format
    evidence: str


def row_by_row(
    convert: Callable[[Any, Intake], PreferenceGroup], votes_in: Callable[[Any], int]
) -> Callable[[Iterable[Row], Intake], Iterator[PreferenceGroup]]:
    """The ``parse`` of a format where each row is a group.

    convert: row → group; it counts the row's votes and raises RecordError to drop the row.
    votes_in: how many votes a row holds, whatever becomes of them.
    """

    def parse(rows: Iterable[Row], intake: Intake) -> Iterator[PreferenceGroup]:
        for row in rows:
            intake.begin(row)
            if row.error is not None:
                intake.drop(row, *row.error)
                continue
            try:
                group = convert(row.obj, intake)
            except RecordError as error:
                intake.drop(row, error.code, error.message, votes_in(row.obj))
                continue
            intake.use()
            yield group

    return parse


def group_key(prompt: Sequence[Message], candidates: Iterable[Candidate]) -> str:
    """Identity of a comparison: the prompt and the set of answers, whatever their order."""
    contents = sorted(_content_key(c) for c in candidates)
    text = json.dumps([prompt_key(prompt), contents]).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:32]


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
    if len({_content_key(c) for c in candidates}) == 1:
        raise RecordError("all candidates are the same text", code="identical_candidates")
    prompt, candidates = tuple(prompt), tuple(candidates)
    passed_on = [meta, [c.model for c in candidates]]
    passed_on += [(j.value, j.strength, j.source, j.suspect) for j in judgements]
    try:
        json.dumps(passed_on, allow_nan=False)
    except (TypeError, ValueError) as error:  # NaN in a field that nothing has read
        raise RecordError(f"cannot be written: {error}", code="bad_value") from None
    return PreferenceGroup(
        group_key(prompt, candidates), prompt, candidates, tuple(judgements), meta or {}
    )


def merge(groups: Sequence[PreferenceGroup]) -> PreferenceGroup:
    """One group with all judgements of groups that hold the same prompt and the same answers.

    The first group's ids and order stay; the others' judgements are rewritten by content.
    """
    if len(groups) == 1:
        return groups[0]
    first, judgements = groups[0], list(groups[0].judgements)
    meta: dict[str, Any] = {}
    for other in groups[1:]:
        free = list(first.candidates)
        ids = {}
        for candidate in other.candidates:
            same = next(c for c in free if _content_key(c) == _content_key(candidate))
            free.remove(same)
            ids[candidate.id] = same.id
        judgements += [_renamed(j, ids) for j in other.judgements]
    for group in reversed(groups):
        meta.update(group.meta)
    meta["merged"] = sum(_count(g, "merged", 1) for g in groups)
    if any("both_bad" in g.meta for g in groups):
        meta["both_bad"] = sum(_count(g, "both_bad", 0) for g in groups)
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
        value = {"winner": ids[value["winner"]], "loser": ids[value["loser"]]}
    return Judgement(
        judgement.annotator,
        judgement.kind,
        value,
        judgement.strength,
        judgement.source,
        judgement.suspect,
    )


def _count(group: PreferenceGroup, name: str, otherwise: int) -> int:
    value = group.meta.get(name, otherwise)
    return value if isinstance(value, int) else otherwise


def _content_key(candidate: Candidate) -> str:
    # The exact text, not the normalised one: two answers that differ in a space or in case are
    # still two answers to the reward model.
    return json.dumps([[m.role, m.content] for m in candidate.messages])


def _stable(parts: Any) -> bytes:
    return json.dumps(parts, sort_keys=True, default=str).encode("ascii", "backslashreplace")
