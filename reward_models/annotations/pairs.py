"""Preference pairs: {"prompt", "chosen", "rejected"}, text or messages, one or many turns.

Also read: ShareGPT rows ({"conversations", "chosen": {"from", "value"}, "rejected"}), Alpaca rows
({"instruction", "input", "chosen", "rejected"}) and rows without a prompt whose chosen and rejected
are conversations with a common beginning. A row may carry ``annotator``, ``margin`` or
``score_chosen``/``score_rejected``, and ``target``, the probability that chosen is better, as the
derived ``pairs.jsonl`` does: 1 is a vote and 0.5 a tie; a share between is no single vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.data.pairs import common_prompt
from align.records import (
    Candidate,
    Judgement,
    Message,
    PreferenceGroup,
    RecordError,
    parse_messages,
)
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import number

PROMPT_FIELDS = ("prompt", "conversations", "instruction", "question", "messages", "context")


def matches(obj: Any) -> str | None:
    """Evidence that a row is a pair."""
    if not (isinstance(obj, dict) and {"chosen", "rejected"} <= obj.keys()):
        return None
    for name in PROMPT_FIELDS:
        if name in obj:
            return f"{name}, chosen and rejected"
    if isinstance(obj["chosen"], list) and isinstance(obj["rejected"], list):
        return "chosen and rejected are conversations"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group whose first candidate won."""
    if not isinstance(obj, dict):
        raise RecordError("expected an object", code="not_an_object")
    missing = [name for name in ("chosen", "rejected") if name not in obj]
    if missing:
        raise RecordError(f"missing {', '.join(missing)}", code="missing_field")
    chosen = parse_messages(obj["chosen"], role="assistant")
    rejected = parse_messages(obj["rejected"], role="assistant")
    prompt, chosen, rejected = split_turns(_prompt(obj), chosen, rejected)
    candidates = (
        Candidate("chosen", _content(chosen), _model(obj, "chosen")),
        Candidate("rejected", _content(rejected), _model(obj, "rejected")),
    )
    annotator = obj.get("annotator")
    strength = _strength(obj)
    negative = strength is not None and strength < 0
    judgement = Judgement(
        None if annotator is None else str(annotator),
        "pair",
        _verdict(obj),
        strength=None if negative else strength,
        source="pairs",
        suspect="rejected_scores_higher" if negative else None,
    )
    group = make_group(prompt, candidates, (judgement,), {"source": "pairs"})
    key = (group.group_id, candidates[0].to_json()["content"])
    named = () if annotator is None else (judgement.annotator,)
    if intake.seen("pairs", *key, *named):
        raise RecordError("the same pair stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A pair is one vote."""
    return int(isinstance(obj, dict))


def split_turns(
    prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Prompt and the two answers, with the turns that both share moved to the prompt.

    chosen and rejected may repeat the prompt at their beginning (trl's implicit prompts do).
    """
    prompt, chosen, rejected = tuple(prompt), tuple(chosen), tuple(rejected)
    if len(chosen) == len(rejected) == 1 and _are_answers(prompt, chosen[0], rejected[0]):
        return prompt, chosen, rejected
    n = len(prompt)
    if n and chosen[:n] == prompt and rejected[:n] == prompt:
        chosen, rejected = chosen[n:], rejected[n:]
    if chosen and chosen == rejected:
        raise RecordError("chosen and rejected are the same", code="identical_candidates")
    shared, chosen, rejected = common_prompt(chosen, rejected)
    prompt += shared
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer:
            raise RecordError(f"{name} adds nothing to the prompt", code="empty_candidate")
        if answer[0].role != "assistant" or answer[-1].role != "assistant":
            reason = f"{name} must begin and end with the assistant after the shared turns"
            raise RecordError(reason, code="bad_role")
    if not any(m.role != "system" for m in prompt):
        raise RecordError("no prompt before chosen and rejected", code="no_prompt")
    return prompt, chosen, rejected


def _are_answers(prompt: tuple[Message, ...], one: Message, other: Message) -> bool:
    """Whether there is nothing to move: most rows are a question and two different answers."""
    roles = bool(prompt) and prompt[-1].role == "user" and one.role == other.role == "assistant"
    return roles and one.content != other.content


def _prompt(obj: dict[str, Any]) -> tuple[Message, ...]:
    name = next((n for n in PROMPT_FIELDS if obj.get(n)), None)
    if name is None:
        if isinstance(obj["chosen"], list):
            return ()
        raise RecordError("no prompt", code="no_prompt")
    value = obj[name]
    extra = obj.get("input")
    if name == "instruction" and isinstance(value, str) and isinstance(extra, str) and extra:
        value = f"{value}\n{extra}"
    return prompt_messages(value, obj.get("system"))


def _content(answer: tuple[Message, ...]) -> str | tuple[Message, ...]:
    return answer[0].content if len(answer) == 1 else answer


def _model(obj: dict[str, Any], side: str) -> str | None:
    value = obj.get(f"{side}_model", obj.get(f"{side}-model"))
    return value if isinstance(value, str) else None


def _strength(obj: dict[str, Any]) -> float | None:
    margin = number(obj.get("margin"))
    if margin is not None:
        return margin
    high, low = number(obj.get("score_chosen")), number(obj.get("score_rejected"))
    return None if high is None or low is None else high - low


def _verdict(obj: dict[str, Any]) -> dict[str, Any]:
    given = obj.get("target")
    target = 1.0 if given is None else number(given)
    if target == 1.0:
        return {"winner": "chosen", "loser": "rejected"}
    if target == 0.5:
        return {"tie": ["chosen", "rejected"]}
    reason = f"target {given!r} is no single vote: import preferences.jsonl instead"
    raise RecordError(reason, code="soft_target")


# What other formats' rows look like at first: a transcript may stand in ``prompt``.
FORMAT = Format(
    "pairs", "prompt/chosen/rejected rows", matches, row_by_row(convert, votes_in), generic=True
)
