"""Merging keeps each candidate's ratings with its text."""

from __future__ import annotations

from format_rows import run

from reward_models.annotations import helpsteer2, helpsteer2_preference
from reward_models.annotations.base import merge


def ratings(response, helpfulness):
    return {"prompt": "Q", "response": response, "helpfulness": helpfulness, "correctness": 1,
            "coherence": 1, "complexity": 1, "verbosity": 1}  # fmt: skip


def test_ratings_follow_their_answer_when_groups_are_merged():
    (rated,), _ = run(helpsteer2.FORMAT, ratings("B", 4), ratings("A", 0))
    (compared,), _ = run(
        helpsteer2_preference.FORMAT,
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": 2},
    )
    for groups in ([compared, rated], [rated, compared]):
        merged = merge(groups)
        text = {c.id: c.content for c in merged.candidates}
        found = {text[i]: v["helpfulness"] for i, v in merged.meta["attributes"].items()}
        assert found == {"A": 0.0, "B": 4.0}
        assert len(merged.judgements) == 2
    assert "attributes" not in merge([compared, compared]).meta
