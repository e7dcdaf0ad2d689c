"""Plain tables: a prompt, two or more answers, and ranks, scores or a winner in columns of a row.

    prompt, response_1, response_2, …, rank_1, rank_2, …     1 is the best rank; equal ranks tie
    prompt, response_a, response_b, score_a, score_b         higher is better; equal scores tie
    prompt, response_a, response_b, winner                   a column's name, a letter, "tie", …

Any of the names in ``columns`` will do, or ``--mapping`` says what is what. One row is one
annotator's vote (``annotator``); rows about the same answers are merged by their text. An answer
that is empty in a row takes no part in it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from align.config_errors import UserError
from align.jsonl import short
from align.records import Candidate, Judgement, Message, PreferenceGroup, RecordError
from reward_models.annotations import pairs
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import number as finite
from reward_models.annotations.naming import LABELS, is_both_bad, is_tie, read_words
from reward_models.annotations.table_layout import SEVERAL, Layout, layout_of


def matches(obj: Any) -> str | None:
    """Evidence that a row is one of a plain table."""
    if not isinstance(obj, dict) or not all(isinstance(k, str) for k in obj):
        return None
    found = layout_of(tuple(obj))
    if not isinstance(found, Layout) or (found.kind == "implied" and pairs.matches(obj)):
        return None
    if any(isinstance(obj[column], (dict, list)) for _, column in found.answers):
        return None
    told = {
        "rank": tuple(found.ranks.values()),
        "score": tuple(found.scores.values()),
        "winner": (found.winner,),
        "implied": (),
    }[found.kind]
    if any(isinstance(obj[column], (dict, list)) for column in told if column):
        return None
    names = [found.prompt, *(c for _, c in found.answers), *told]
    return "columns " + ", ".join(str(name) for name in names)


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one vote."""
    if not isinstance(obj, dict):
        raise RecordError("expected an object", code="not_an_object")
    layout = layout_of(tuple(map(str, obj)))
    if not isinstance(layout, Layout):
        if layout.startswith(SEVERAL):
            raise UserError("input", sorted(obj), f"has {layout}", "Choose with --mapping")
        raise RecordError(layout, code="missing_field")
    texts = {s: _text(obj.get(column)) for s, column in layout.answers}
    ids = {s: c for s, c in layout.answers if isinstance(texts[s], str) and texts[s].strip()}
    models = {s: _text(obj.get(layout.models.get(s, ""))) for s in ids}
    candidates = [
        Candidate(i, texts[s], m if isinstance(m := models[s], str) else None)
        for s, i in ids.items()
    ]
    prompt = _prompt(obj, layout)
    values, both_bad = _values(obj, layout, ids, models)
    meta: dict[str, Any] = {"source": "table"} | ({"both_bad": 1} if both_bad else {})
    annotator = _text(obj.get(layout.annotator or ""))
    annotator = annotator.strip() or None if isinstance(annotator, str) else None
    judgements = [
        Judgement(annotator, *value, strength=_strength(obj, layout), source=f"table:{layout.kind}")
        for value in values
    ]
    group = make_group(prompt, candidates, judgements, meta)
    # The group's id stands for the texts: which of them is meant is told by its place among them.
    ranked = sorted({texts[s] for s in ids})
    place = {i: ranked.index(texts[s]) for s, i in ids.items()}
    said = [_by_place(v, place) for _, v in values]
    if intake.seen("table", group.group_id, repr(annotator), repr(said)):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    for column in layout.ignored:
        intake.warn(f"column {column!r} was left out")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _prompt(obj: dict[str, Any], layout: Layout) -> tuple[Message, ...]:
    value = _text(obj.get(layout.prompt))
    extra = _text(obj.get(layout.more or ""))
    if isinstance(value, str) and isinstance(extra, str) and extra.strip():
        value = f"{value}\n{extra}"
    return prompt_messages(value, _text(obj.get(layout.system or "")))


def _values(
    obj: dict[str, Any], layout: Layout, ids: dict[str, str], models: dict[str, Any]
) -> tuple[list[tuple[Any, dict[str, Any]]], bool]:
    """(kind and value of each judgement, whether it is a tie of two bad answers)."""
    if layout.kind == "implied":
        if len(ids) < 2:
            raise RecordError("chosen or rejected is empty", code="empty_candidate")
        return [("pair", {"winner": ids["chosen"], "loser": ids["rejected"]})], False
    if layout.kind == "winner":
        word = _word(obj.get(layout.winner or ""))
        return _won(word, layout, ids, models), is_both_bad(word) and len(ids) == 2
    columns = layout.ranks if layout.kind == "rank" else layout.scores
    numbers = {s: _number(obj.get(column), column) for s, column in columns.items()}
    lost = [columns[s] for s, n in numbers.items() if n is not None and s not in ids]
    if lost:
        reason = f"{', '.join(lost)} is about an answer that is empty"
        raise RecordError(reason, code="unknown_candidate")
    value = {ids[s]: numbers.get(s) for s in ids}
    given = {i: n for i, n in value.items() if n is not None}
    if len(given) < 2:
        raise RecordError(f"fewer than two {layout.kind}s", code="nothing_ranked")
    return [(layout.kind, value if layout.kind == "rank" else given)], False


def _won(
    word: str, layout: Layout, ids: dict[str, str], models: dict[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """The pairs that a word makes, looked up among all answer columns, empty ones too.

    Were it looked up among the others only, "2" could mean the second of those that are left.
    """
    if is_tie(word) and len(ids) == 2:
        return [("pair", {"tie": list(ids.values())})]
    suffixes = [suffix for suffix, _ in layout.answers]
    label = LABELS.match(word)
    same_kind = [s for s in suffixes if label and _kind(s) == _kind(label.group(1))]
    if label and same_kind and label.group(1).lower() not in same_kind:
        raise RecordError(f"winner {word!r} is none of {suffixes}", code="unknown_winner")
    names = {f"model_{s}": column for s, column in layout.answers}
    known = [m.strip().lower() for m in models.values() if isinstance(m, str)]
    names |= {
        model.strip().lower(): ids[s]
        for s, model in models.items()
        if isinstance(model, str) and known.count(model.strip().lower()) == 1
    }
    try:
        values = read_words(word, [column for _, column in layout.answers], names)
    except RecordError as error:
        code = "unknown_winner" if error.code == "other_result" else error.code
        raise RecordError(error.message, code=code) from None
    present = set(ids.values())
    if not {value.get("winner") for value in values} <= present:
        raise RecordError(f"winner {word!r} is an empty answer", code="unknown_winner")
    return [("pair", value) for value in values if value["loser"] in present]


def _kind(suffix: str) -> str:
    return "number" if suffix.isdigit() else "letter" if len(suffix) == 1 else "word"


def _word(value: Any) -> str:
    text = _text(value)
    if text is None or (isinstance(text, str) and not text.strip()):
        raise RecordError("no winner is given", code="no_judgements")
    if not isinstance(text, str):
        raise RecordError(f"winner {short(value)} is no word", code="unknown_winner")
    return text.strip()


def _strength(obj: dict[str, Any], layout: Layout) -> float | None:
    """How sure the vote is; ranks and scores say that themselves."""
    if layout.strength is None or layout.kind not in ("winner", "implied"):
        return None
    number = _number(obj.get(layout.strength), layout.strength)
    if number is not None and number < 0:
        raise RecordError(f"{layout.strength} {number} is below 0", code="bad_value")
    return number


def _number(value: Any, column: str) -> float | None:
    """A cell as a number; None where it is empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"{column} {short(value)} is no number", code="bad_number")
    number = finite(value)
    if number is None:
        raise RecordError(f"{column} is {short(value)}", code="not_finite")
    return number


def _text(value: Any) -> Any:
    """A cell as text: a spreadsheet makes numbers of answers such as 42."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (int, float)) else value


def _by_place(value: dict[str, Any], place: dict[str, int]) -> list[Any]:
    """What a judgement says, with the answers' places instead of their columns."""
    if "tie" in value:
        return sorted(place[i] for i in value["tie"])
    if "winner" in value:
        return ["winner", place[value["winner"]], place[value["loser"]]]
    return sorted((place[i], n is None, n or 0) for i, n in value.items())


FORMAT = Format(
    "table", "rows with answers, ranks or a winner", matches, row_by_row(convert, votes_in), True
)
