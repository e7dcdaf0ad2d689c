"""Prodigy's choice interface, as ``prodigy db-out DATASET`` writes it.

    {"text": "Q", "options": [{"id": "A", "text": "…"}, {"id": "B", "text": "…"}], "accept": ["A"],
     "answer": "accept", "_input_hash": 1, "_task_hash": 2, "_session_id": "d-al",
     "_annotator_id": "d-al", "_view_id": "choice", "_timestamp": 1700000000}

A row is one vote: the accepted option beats every other. ``answer`` is accept, reject or ignore;
only an accepted task says anything, whatever option was marked when a task was rejected. An
accepted task without a marked option, or with several, is ambiguous (Prodigy's own A/B evaluation
leaves them out too). An option that reads "tie", "平局" and the like is a verdict, no answer. Where
the options only name fields of the task ("A", "left"), the answers are those fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.layout import (
    PROMPT_FIELDS,
    Layout,
    answers_of,
    candidate_sets,
    find_layout,
    first_field,
)
from reward_models.annotations.naming import candidate_named, is_both_bad, is_tie

ANSWERS = ("accept", "reject", "ignore")
REFUSED = {"reject": "rejected", "ignore": "ignored"}
# The interface shows "text" or "html" above the options.
PROMPTS = (*PROMPT_FIELDS, "text", "html")
# Keys of the interface, which are no data. So are those that begin with an underscore.
INTERFACE = ("options", "accept", "answer", "config", "meta", "versions", "spans", "tokens")
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|&(?:[a-zA-Z]{2,8}|#[0-9]+);")


@dataclass(frozen=True)
class Task:
    """What was asked. stands_for: option id → candidate id, None for a verdict.

    shown: the candidates stand in the order in which the options were shown.
    """

    prompt: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    stands_for: dict[str, str | None]
    shown: bool


def matches(obj: Any) -> str | None:
    """Evidence that a row is an answered task of the choice interface."""
    if not isinstance(obj, dict) or not isinstance(obj.get("options"), list):
        return None
    if obj.get("answer") in ANSWERS and ("accept" in obj or "_task_hash" in obj):
        return "options and an answer of accept, reject or ignore"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One answered task → one group with one vote."""
    if not isinstance(obj, dict) or not isinstance(obj.get("options"), list):
        raise RecordError("expected an object with options", code="not_a_task")
    options = _options(obj["options"])
    accepted = _accepted(obj, options)
    task = _task(obj, options, intake)
    meta: dict[str, Any] = {"source": "prodigy"}
    if task.shown:
        meta["display_order"] = True
    annotator = _annotator(obj)
    winner, ids = task.stands_for[accepted], [c.id for c in task.candidates]
    if winner is None:
        if len(ids) != 2:
            raise RecordError(f"none of {len(ids)} candidates is preferred", code="other_result")
        values: list[dict[str, Any]] = [{"tie": ids}]
        if is_both_bad(options[accepted]) or is_both_bad(accepted):
            meta["both_bad"] = 1
    else:
        values = [{"winner": winner, "loser": i} for i in ids if i != winner]
    votes = [Judgement(annotator, "pair", value, source="prodigy:choice") for value in values]
    group = make_group(task.prompt, task.candidates, votes, meta)
    # A dataset that was written twice counts once; a task that was annotated again counts again.
    again = (obj.get("_task_hash"), obj.get("_timestamp"), obj.get("accept"))
    if intake.seen("prodigy", group.group_id, annotator, *again):
        raise RecordError("the same answer stands earlier", code="duplicate_annotation")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _options(given: Sequence[Any]) -> dict[str, str]:
    """Option id → what it shows. Ids may be numbers."""
    options: dict[str, str] = {}
    for option in given:
        name = option.get("id") if isinstance(option, dict) else None
        if not isinstance(name, (str, int, float)) or isinstance(name, bool):
            raise RecordError(f"an option without id: {option!r:.80}", code="malformed_option")
        field = first_field(("text", "html", "label"), option)
        if field is None or not isinstance(option[field], str):
            raise RecordError(f"option {name} has no text", code="not_text")
        if str(name) in options:
            raise RecordError(f"two options are called {name}", code="duplicate_candidate_id")
        options[str(name)] = option[field]
    return options


def _accepted(obj: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """The one option that was accepted; RecordError where there is none."""
    answer, accept = obj.get("answer"), obj.get("accept")
    if isinstance(answer, str) and answer in REFUSED:
        raise RecordError(f"the annotator answered {answer}", code=REFUSED[answer])
    if answer != "accept":
        raise RecordError(f"answer {answer!r:.40} is not known", code="unknown_answer")
    if not isinstance(accept, (list, type(None))):
        raise RecordError("accept is not a list", code="malformed_result")
    if not accept:
        raise RecordError("accepted without an option", code="empty_result")
    if len(accept) > 1:
        raise RecordError(f"{len(accept)} options are accepted", code="ambiguous_choice")
    if not isinstance(accept[0], (str, int, float)) or str(accept[0]) not in options:
        raise RecordError(f"accepts {accept[0]!r:.40}, no option", code="unknown_candidate")
    return str(accept[0])


def _task(obj: Mapping[str, Any], options: Mapping[str, str], intake: Intake) -> Task:
    config = intake.options.label_config
    data = {k: v for k, v in obj.items() if k not in INTERFACE and not k.startswith("_")}
    field = config.prompt if config and config.prompt else first_field(PROMPTS, data)
    answers = [name for name in options if not is_tie(options[name]) and not is_tie(name)]
    verdicts = dict.fromkeys(options)
    texts = [options[name] for name in answers]
    if (config and config.candidates) or _name_fields(texts, data, field):
        layout = find_layout(data, config, PROMPTS)
        fields = answers_of(data, layout)
        named = {name: candidate_named(options[name], fields.ids) for name in answers}
        if all(named.values()) and len(set(named.values())) == len(named):
            prompt = prompt_messages(data.get(layout.prompt or ""), data.get("system"))
            return Task(prompt, fields.candidates, {**verdicts, **named}, shown=False)
    if any(MARKUP.search(text) for text in texts):
        intake.warn("options hold HTML, which was kept as it stands")
    prompt = prompt_messages(data.get(field or ""), data.get("system"))
    candidates = tuple(Candidate(name, options[name]) for name in answers)
    return Task(prompt, candidates, {**verdicts, **{n: n for n in answers}}, shown=True)


def _name_fields(texts: Sequence[str], data: Mapping[str, Any], prompt: str | None) -> bool:
    """Whether all texts only name one of the task's own answers."""
    for fields in candidate_sets(data, prompt):
        ids = fields
        if len(fields) == 1:
            try:
                ids = answers_of(data, Layout(prompt, (), fields[0], assumed=False)).ids
            except RecordError:
                continue
        if texts and all(candidate_named(text, ids) for text in texts):
            return True
    return False


def _annotator(obj: Mapping[str, Any]) -> str | None:
    """Who answered; older releases know the session only."""
    given = (obj.get("_annotator_id"), obj.get("_session_id"))
    return next((str(g) for g in given if isinstance(g, (str, int)) and g != ""), None)


FORMAT = Format("prodigy", "Prodigy choice", matches, row_by_row(convert, votes_in))
