"""Stanford Human Preferences (SHP, SHP-2): two comments on one Reddit post, one with more votes.

    {"post_id": "i", "domain": "askbaking_train", "history": "Q", "human_ref_A": "A",
     "human_ref_B": "B", "labels": 1, "score_A": 40, "score_B": 10, "score_ratio": 4.0}

labels: 1 means that A is preferred, 0 that B is; the data set's card says so. The preference is
that of all readers together, so a row is one vote without an annotator.

Strength is the logarithm of the winner's score over the loser's (here log 4 = 1.39); with
``score_ratio`` alone its logarithm; None where a score is not above 0. Where the scores contradict
the label the judgement is suspect (``rejected_scores_higher``) and has no strength.

Each row is a group of its own: the pairs of one post share the prompt, hence the split, and a post
with dozens of pairs weighs as many groups.
"""

from __future__ import annotations

import math
from typing import Any

from align.jsonl import as_object, short
from align.records import Candidate, Judgement, PreferenceGroup, RecordError
from reward_models.annotations.base import Format, Intake, make_group, prompt_messages, row_by_row
from reward_models.annotations.fields import given, number, text_field

FIELDS = ("history", "human_ref_A", "human_ref_B", "labels")
META = ("post_id", "domain", "c_root_id_A", "c_root_id_B", "score_A", "score_B")


def matches(obj: Any) -> str | None:
    """Evidence that a row is a pair of comments."""
    if isinstance(obj, dict) and obj.keys() >= {*FIELDS}:
        return "history, human_ref_A, human_ref_B and labels"
    return None


def convert(obj: Any, intake: Intake) -> PreferenceGroup:
    """One row → one group of two comments and one vote."""
    obj = as_object(obj, *FIELDS)
    label = obj["labels"]
    if isinstance(label, bool) or label not in (0, 1):
        raise RecordError(f"labels {short(label)} is not 0 or 1", code="unknown_winner")
    winner, loser = ("A", "B") if label == 1 else ("B", "A")
    strength, suspect = _strength(obj, winner, loser)
    candidates = [Candidate(side, text_field(obj, f"human_ref_{side}")) for side in ("A", "B")]
    verdict = {"winner": winner, "loser": loser}
    judgement = Judgement(None, "pair", verdict, strength, "shp", suspect)
    prompt = prompt_messages(text_field(obj, "history"))
    group = make_group(prompt, candidates, (judgement,), {"source": "shp", **given(obj, META)})
    if intake.seen("shp", group.group_id, obj[f"human_ref_{winner}"]):
        raise RecordError("the same pair stands earlier in the input", code="duplicate_row")
    intake.vote()
    return group


def votes_in(obj: Any) -> int:
    """A row is one vote."""
    return int(isinstance(obj, dict))


def _strength(obj: dict[str, Any], winner: str, loser: str) -> tuple[float | None, str | None]:
    """(log of how many times higher the winner scored, why the label is doubted)."""
    high, low = number(obj.get(f"score_{winner}")), number(obj.get(f"score_{loser}"))
    if high is not None and low is not None:
        if low > high:
            return None, "rejected_scores_higher"
        return (math.log(high / low), None) if low > 0 else (None, None)
    ratio = number(obj.get("score_ratio"))
    return (math.log(ratio), None) if ratio is not None and ratio >= 1 else (None, None)


FORMAT = Format("shp", "Stanford Human Preferences", matches, row_by_row(convert, votes_in))
