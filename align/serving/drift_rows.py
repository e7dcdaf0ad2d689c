"""What a log's lines say of one day: the numbers behind each line of the drift report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from align.evaluation.refusal import refuses
from reward_models.annotations.feedback import SINGLE_VOTES
from reward_models.language import language


@dataclass
class Day:
    """The lines of one side. answers, votes: rows of the log; skipped: rows that are neither.

    votes holds the last vote of each person on each answer.
    """

    name: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    votes: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    torn: int = 0


@dataclass(frozen=True)
class Figure:
    """How a line is computed. values: a day's numbers; a share's are 0 and 1."""

    name: str
    kind: str
    unit: str
    values: Callable[[Day], list[float]]
    absent: str = "no such figure in the log"


def make_day(name: str, rows: Iterable[dict[str, Any]], torn: int = 0) -> Day:
    """Sort the rows of a log into answers and votes; a thumb that holds its answer is both."""
    day = Day(name, torn=torn)
    last: dict[Any, dict[str, Any]] = {}
    for row in rows:
        completions = row.get("completions")
        vote = row.get("vote")
        if not isinstance(completions, list) or len(completions) != 1:
            day.skipped += 1
            continue
        if row.get("answer") is None:
            day.answers.append(row)
        if vote in SINGLE_VOTES:
            key = (row.get("answer") or row.get("id"), row.get("annotator"))
            last[key] = row
    day.votes = list(last.values())
    return day


def figures() -> list[Figure]:
    """The lines that need no model, in the report's order."""
    return [
        Figure("failures", "share", "of requests", _failures),
        Figure("latency p50", "p50", "s", _numbers(_latency)),
        Figure("latency p95", "p95", "s", _numbers(_latency)),
        Figure("first token p50", "p50", "s", _numbers(lambda r: _request(r).get("first_token_s")),
               "no answer was streamed"),
        Figure("prompt tokens", "mean", "tokens", _numbers(_prompt_tokens), "no usage in the log"),
        Figure("answer tokens", "mean", "tokens", _numbers(lambda r: r.get("tokens")),
               "no usage in the log"),
        Figure("answer length, Chinese", "mean", "characters", _lengths("zh"),
               "no answer in Chinese"),
        Figure("answer length, English", "mean", "characters", _lengths("en"),
               "no answer in English"),
        Figure("answers in Chinese", "share", "of answers", _numbers(_in_chinese)),
        Figure("cut at the limit", "share", "of answers", _numbers(_cut)),
        Figure("refusals", "share", "of answers", _numbers(_refuses)),
        Figure("votes up", "share", "of votes",
               lambda day: [float(row["vote"] == "up") for row in day.votes], "no votes"),
    ]  # fmt: skip


def _request(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("request")
    return found if isinstance(found, dict) else {}


def _answered(day: Day) -> list[dict[str, Any]]:
    return [row for row in day.answers if _request(row).get("failure") is None]


def _failures(day: Day) -> list[float]:
    """1 for each failed request; those that the client gave up are neither."""
    kinds = [_request(row).get("failure") for row in day.answers]
    return [float(kind is not None) for kind in kinds if kind != "disconnected"]


def _numbers(of: Callable[[dict[str, Any]], Any]) -> Callable[[Day], list[float]]:
    """The finite numbers that `of` finds in the rows of whole answers."""

    def values(day: Day) -> list[float]:
        found = [of(row) for row in _answered(day)]
        return [float(v) for v in found if isinstance(v, (int, float)) and math.isfinite(v)]

    return values


def _lengths(wanted: str) -> Callable[[Day], list[float]]:
    return _numbers(lambda row: _chars(row) if _language(row) == wanted else None)


def text_of(row: dict[str, Any]) -> str | None:
    """What was answered; None where it was not kept."""
    text = row["completions"][0].get("text")
    return text if isinstance(text, str) else None


def _figure(row: dict[str, Any], name: str, of: Callable[[str], Any]) -> Any:
    """A figure that the log holds, else computed from the text, else None."""
    if _request(row).get(name) is not None:
        return _request(row)[name]
    text = text_of(row)
    return None if text is None else of(text)


def _chars(row: dict[str, Any]) -> Any:
    return _figure(row, "chars", len)


def _language(row: dict[str, Any]) -> Any:
    return _figure(row, "language", language)


def _refuses(row: dict[str, Any]) -> Any:
    return _figure(row, "refuses", refuses)


def _in_chinese(row: dict[str, Any]) -> Any:
    found = _language(row)
    return None if found is None else found == "zh"


def _cut(row: dict[str, Any]) -> Any:
    reason = _request(row).get("finish_reason")
    return None if reason is None else reason == "length"


def _latency(row: dict[str, Any]) -> Any:
    return row.get("latency_s")


def _prompt_tokens(row: dict[str, Any]) -> Any:
    return _request(row).get("prompt_tokens")
