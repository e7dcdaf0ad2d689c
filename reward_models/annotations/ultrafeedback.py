"""UltraFeedback: one instruction, up to four completions, each with GPT-4's ratings.

    {"source": "s", "instruction": "Q", "models": ["m"], "completions": [
        {"model": "m", "response": "A", "overall_score": 7.5, "fine-grained_score": 4.25,
         "annotations": {"helpfulness": {"Rating": "4", "Rationale": "…"}, …}}]}

The preference is ``overall_score`` (1 to 10, from the critique) and nothing else: the fine-grained
ratings (1 to 5) have another scale. These are kept for multi-attribute heads in
``meta["attributes"]``, {candidate id: {aspect: rating}}, without those that are "N/A". A rating is
a string in the published files; a list of ratings of one aspect, as the annotation script writes
it, counts as its mean.

The first revision gave 2,628 completions an overall_score of 10, many of which meant 1. The authors
set those with a mean fine-grained rating of at most 2 to 1 and rated those up to 4 again
(OpenBMB/UltraFeedback, fix_overall_score_issue.py). A file does not say which revision it is.
Judgements on a completion with a 10 and such a mean are suspect: ``overall_10_rated_2_or_less`` is
the known fault, ``overall_10_rated_4_or_less`` doubtful. The row's other judgements are not.

Binarized UltraFeedback (prompt, chosen, rejected, score_chosen, score_rejected) is ``pairs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from statistics import fmean
from typing import Any

from align.jsonl import as_object, list_field
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import name_of, number, text_field

SOURCE = "ultrafeedback"
ANNOTATOR = "gpt-4"
LOWEST, HIGHEST = 1.0, 10.0
# Mean fine-grained rating → why an overall_score of 10 beside it is doubted.
DOUBTS = ((2.0, "overall_10_rated_2_or_less"), (4.0, "overall_10_rated_4_or_less"))


def matches(obj: Any) -> str | None:
    """Evidence that a row is UltraFeedback's."""
    if not (isinstance(obj, dict) and "instruction" in obj):
        return None
    completions = obj.get("completions")
    if not (isinstance(completions, list) and completions):
        return None
    if all(isinstance(c, dict) and {"response", "annotations"} <= c.keys() for c in completions):
        return "instruction and completions with annotations"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group with one score judgement, more where a score is doubted.

    Each completion is a vote. One without text is left out; one without a score stays a candidate.
    """
    obj = as_object(obj, "instruction", "completions")
    prompt = prompt_messages(text_field(obj, "instruction"))
    candidates: list[Candidate] = []
    scores: dict[str, float] = {}
    doubts: dict[str, str] = {}
    attributes: dict[str, dict[str, float]] = {}
    for position, completion in enumerate(list_field(obj, "completions"), start=1):
        text = completion.get("response") if isinstance(completion, dict) else None
        if not isinstance(text, str) or not text.strip():
            intake.drop_vote("empty_candidate" if isinstance(text, str) else "not_text")
            continue
        key = str(position)
        candidates.append(Candidate(key, text, name_of(completion.get("model"))))
        rated = _ratings(completion)
        if rated:
            attributes[key] = rated
        score = _number(completion.get("overall_score"))
        if score is None or not LOWEST <= score <= HIGHEST:
            intake.drop_vote("no_score" if score is None else "bad_score")
            continue
        scores[key] = score
        doubt = _doubt(score, _mean(completion, rated))
        if doubt:
            doubts[key] = doubt
        intake.vote()
    if len(candidates) > 1 and len(scores) < 2:
        reason = f"{len(scores)} of {len(candidates)} completions have an overall_score"
        raise RecordError(reason, code="no_score")
    meta: dict[str, Any] = {"source": SOURCE}
    if obj.get("source"):
        meta["subset"] = obj["source"]
    if attributes:
        meta["attributes"] = attributes
    group = make_group(prompt, candidates, _judgements(scores, doubts), meta)
    if intake.seen(SOURCE, group.group_id, scores):
        raise RecordError("the same row stands earlier in the input", code="duplicate_row")
    return group


def votes_in(obj: Any) -> int:
    """How many completions a row holds; each was rated by itself."""
    completions = obj.get("completions") if isinstance(obj, dict) else None
    return len(completions) if isinstance(completions, list) else 0


def _judgements(scores: Mapping[str, float], doubts: Mapping[str, str]) -> list[Judgement]:
    """One judgement on the scores that are not doubted, one on each pair with a doubted one."""
    sure = {key: score for key, score in scores.items() if key not in doubts}
    made = [_judgement(sure)] if len(sure) > 1 else []
    for a, b in combinations(scores, 2):
        doubt = doubts.get(a) or doubts.get(b)
        if doubt:
            made.append(_judgement({a: scores[a], b: scores[b]}, doubt))
    return made


def _judgement(scores: dict[str, float], doubt: str | None = None) -> Judgement:
    return Judgement(ANNOTATOR, "score", scores, source=f"{SOURCE}:overall_score", suspect=doubt)


def _doubt(score: float, mean: float | None) -> str | None:
    if score < HIGHEST or mean is None:
        return None
    return next((reason for limit, reason in DOUBTS if mean <= limit), None)


def _mean(completion: Mapping[str, Any], rated: Mapping[str, float]) -> float | None:
    return fmean(rated.values()) if rated else _number(completion.get("fine-grained_score"))


def _ratings(completion: Mapping[str, Any]) -> dict[str, float]:
    """The aspects that have a rating."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        return {}
    found = {}
    for aspect, said in annotations.items():
        each = said if isinstance(said, list) else [said]
        known = [_number(s.get("Rating")) for s in each if isinstance(s, dict)]
        values = [value for value in known if value is not None]
        if values:
            found[aspect] = fmean(values)
    return found


def _number(value: Any) -> float | None:
    """A number, also as text; None for "N/A" and everything else."""
    if isinstance(value, str):
        try:
            return number(float(value))
        except ValueError:
            return None
    return number(value)


FORMAT = Format(
    SOURCE, "UltraFeedback rows with rated completions", matches, row_by_row(convert, votes_in)
)
