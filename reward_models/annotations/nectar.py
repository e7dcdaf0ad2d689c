r"""Nectar: a conversation and seven answers that GPT-4 ranked.

    {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [
        {"answer": "A", "model": "gpt-4", "rank": 1.0}], "good_natured": true}

Rank 1 is best. Answers are compared by rank, all 21 pairs of 7: choosing one from the upper ranks
as chosen and one from the rest as rejected inverts pairs where the list is not in order of rank.
Equal ranks are a tie, and an answer with a null rank is compared with none. The prompt has the
markers of HH-RLHF.
"""

from __future__ import annotations

from typing import Any

from align.jsonl import as_object, list_field, short
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, row_by_row
from reward_models.annotations.fields import given, name_of, number, text_field
from reward_models.annotations.hh_rlhf import parse_transcript

SOURCE = "nectar"
ANNOTATOR = "gpt-4"


def matches(obj: Any) -> str | None:
    """Evidence that a row is Nectar's."""
    answers = obj.get("answers") if isinstance(obj, dict) and "prompt" in obj else None
    if not (isinstance(answers, list) and answers):
        return None
    if all(isinstance(a, dict) and {"answer", "rank"} <= a.keys() for a in answers):
        return "prompt and answers with rank"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one rank judgement; answers without text are left out."""
    obj = as_object(obj, "prompt", "answers")
    prompt = _prompt(text_field(obj, "prompt"))
    candidates: list[Candidate] = []
    ranks: dict[str, float | None] = {}
    for position, answer in enumerate(list_field(obj, "answers"), start=1):
        answer = as_object(answer, "answer", "rank")
        text, rank = text_field(answer, "answer"), number(answer["rank"])
        if rank is None and answer["rank"] is not None:
            reason = f"rank {short(answer['rank'])} of answer {position} is not a number"
            raise RecordError(reason, code="bad_rank")
        if not text.strip():
            intake.warn("nectar: an answer without text was left out of its ranking")
            continue
        candidates.append(Candidate(str(position), text, name_of(answer.get("model"))))
        ranks[str(position)] = rank
    if len(candidates) > 1 and sum(rank is not None for rank in ranks.values()) < 2:
        raise RecordError("fewer than two answers have a rank", code="no_rank")
    judgement = [Judgement(ANNOTATOR, "rank", ranks, source=SOURCE)] if ranks else []
    meta = {"source": SOURCE, **given(obj, ("good_natured",))}
    if obj.get("source"):
        meta["subset"] = obj["source"]
    group = make_group(prompt, candidates, judgement, meta)
    if intake.seen(SOURCE, group.group_id, ranks):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one ranking."""
    return int(isinstance(obj, dict))


def _prompt(text: str) -> tuple[Message, ...]:
    """The turns before the open one of the assistant."""
    turns = parse_transcript(text)
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    if not turns or turns[-1].role != "user":
        raise RecordError("the prompt must end with the user's turn", code="bad_role")
    return turns


FORMAT = Format(SOURCE, "Nectar rankings", matches, row_by_row(convert, votes_in))
