r"""Feedback logs: what people said about answers in the arena, on its chat page or at a server.

    {"id": "1f…", "time": "2026-05-01T08:00:00+00:00", "source": "arena", "annotator": "ann",
     "session": null, "item": "…", "prompt": [{"role", "content"}…],
     "completions": [{"model": "x", "text": "A"}, {"model": "y", "text": "B"}], "vote": "left",
     "position": "ba", "latency_s": null, "seconds": 12.5, "tokens": null, "consent": true}

Two completions, in the order in which they stood on the screen, and a vote left, right, tie or
both_bad: one comparison, with candidates called left and right. both_bad is a tie, remembered in
meta ``both_bad``. A row is a group; rows about the same answers are merged by the import.

One completion and a vote up or down: rows with the same prompt are one comparison, wherever they
stand, and an answer's score is the share of its votes that are up. Votes of several people are
counted together, so the judgement has a name only where one person gave them all. An answer that
nobody else's stands beside has nothing to be compared with (``one_candidate``).

A server's log has a row for each answer and one for each vote on it, which holds the texts once
more and names the answer's row in ``answer``: of several votes of one person on one answer the last
counts (``replaced_vote``).

Dropped: rows without consent (``no_consent``) and without a vote (``no_vote``: skipped, or nobody
said anything; ``failed_request``: there was no answer); later rows of the same person about the
same pair (``second_vote``).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from align.jsonl import as_object, list_field, short
from align.records import (
    Candidate,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    messages_json,
)
from reward_models.annotations.base import (
    Format,
    Intake,
    Row,
    key_by_key,
    make_group,
    prompt_messages,
)
from reward_models.annotations.fields import given, name_of
from reward_models.reading_speed import note_lead_time

SOURCE = "feedback"
SIDES = ("left", "right")
PAIR_VOTES = (*SIDES, "tie", "both_bad")
SINGLE_VOTES = ("up", "down")
VOTES = (*PAIR_VOTES, *SINGLE_VOTES)
# What the log's own writer always writes.
FIELDS = ("prompt", "completions", "vote", "consent")


def matches(obj: Any) -> str | None:
    """Evidence that a row is a line of a feedback log."""
    if isinstance(obj, dict) and obj.keys() >= {*FIELDS}:
        return "prompt, completions, vote and consent"
    return None


def key(obj: Any) -> list[Any]:
    """What the rows of one comparison share; RecordError where the row is unusable.

    Of a vote on a pair: prompt, answers as shown, annotator, so that a second vote is seen.
    """
    obj = as_object(obj, *FIELDS)
    if obj["consent"] is not True:
        raise RecordError("the person did not agree to its use", code="no_consent")
    vote = obj["vote"]
    if vote is None:
        failure = obj["request"].get("failure") if isinstance(obj.get("request"), dict) else None
        if failure is not None:
            raise RecordError(f"the request failed: {short(failure)}", code="failed_request")
        raise RecordError("nobody voted, or skipped", code="no_vote")
    if vote not in VOTES:
        raise RecordError(f"vote {short(vote)} is not one of {', '.join(VOTES)}", code="bad_vote")
    texts = [text for text, _ in _completions(obj)]
    if len(texts) != (2 if vote in PAIR_VOTES else 1):
        reason = f"vote {vote} on {len(texts)} completions"
        raise RecordError(reason, code="bad_vote")
    prompt = messages_json(prompt_messages(obj["prompt"]))
    if vote in SINGLE_VOTES:
        return ["single", prompt]
    annotator = name_of(obj.get("annotator")) or name_of(obj.get("session")) or obj.get("id")
    return ["pair", prompt, sorted(texts), annotator]


def convert(rows: list[Row], intake: Intake) -> PreferenceGroup:
    """The rows of a comparison → a group: one vote on a pair, or all votes on single answers."""
    if rows[0].obj["vote"] in SINGLE_VOTES:
        return _singles(rows, intake)
    for row in rows[1:]:
        intake.drop(row, "second_vote", "the same person voted earlier on the same answers", 1)
    group = _pair(rows[0].obj)
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row holds one vote or, where somebody skipped, none."""
    return int(isinstance(obj, dict) and obj.get("vote") is not None)


def _completions(obj: dict[str, Any]) -> list[tuple[str, str | None]]:
    """(text, model) of each completion."""
    found = []
    for item in list_field(obj, "completions"):
        text = as_object(item, "text")["text"]
        if not isinstance(text, str):
            raise RecordError(f"a completion is {short(text)}, not text", code="not_text")
        if not text.strip():
            raise RecordError("a completion is empty", code="empty_candidate")
        found.append((text, name_of(item.get("model"))))
    return found


def _pair(obj: dict[str, Any]) -> PreferenceGroup:
    vote, annotator = obj["vote"], name_of(obj.get("annotator"))
    candidates = [
        Candidate(side, text, model)
        for side, (text, model) in zip(SIDES, _completions(obj), strict=True)
    ]
    other = {"left": "right", "right": "left"}
    value: dict[str, Any] = {"tie": [*SIDES]}
    if vote in SIDES:
        value = {"winner": vote, "loser": other[vote]}
    judgement = Judgement(annotator, "pair", value, source=SOURCE)
    meta: dict[str, Any] = {"source": SOURCE, "display_order": True}
    meta.update(given(obj, ("position", "item", "time")))
    if vote == "both_bad":
        meta["both_bad"] = 1
    note_lead_time(meta, annotator, obj.get("seconds"))
    return make_group(prompt_messages(obj["prompt"]), candidates, (judgement,), meta)


def _singles(rows: list[Row], intake: Intake) -> PreferenceGroup:
    rows = _last_votes(rows, intake)
    prompt: tuple[Message, ...] = tuple(prompt_messages(rows[0].obj["prompt"]))
    models: dict[str, str | None] = {}
    thumbs: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        ((text, model),) = _completions(row.obj)
        models.setdefault(text, model)
        thumbs[text][row.obj["vote"] == "down"] += 1
    candidates = [Candidate(str(i), text, models[text]) for i, text in enumerate(thumbs, 1)]
    scores = {c.id: thumbs[c.text][0] / sum(thumbs[c.text]) for c in candidates}
    names = {name_of(row.obj.get("annotator")) for row in rows}
    judgement = Judgement(
        names.pop() if len(names) == 1 else None, "score", scores, source=f"{SOURCE}:thumbs"
    )
    counts = {c.id: {"up": thumbs[c.text][0], "down": thumbs[c.text][1]} for c in candidates}
    group = make_group(prompt, candidates, (judgement,), {"source": SOURCE, "thumbs": counts})
    for _ in rows:
        intake.vote()
    return group


def _last_votes(rows: list[Row], intake: Intake) -> list[Row]:
    """The rows without those that the same person's later vote on the same answer replaces."""
    last: dict[Any, Row] = {}
    for row in rows:
        obj = row.obj
        said_by = (obj.get("answer"), name_of(obj.get("annotator")) or name_of(obj.get("session")))
        key = said_by if isinstance(said_by[0], str) else id(row)
        replaced = last.pop(key, None)
        last[key] = row
        if replaced is not None:
            reason = "the same person voted later on the same answer"
            intake.drop(replaced, "replaced_vote", reason, 1)
    return list(last.values())


FORMAT = Format(
    SOURCE, "feedback logs of the arena and of servers", matches, key_by_key(key, convert, votes_in)
)
