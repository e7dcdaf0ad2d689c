"""The whole way from texts to figures, on a tiny model."""

from __future__ import annotations

import pytest
import tiny_rewards as tiny

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.evaluation import evaluate_groups
from reward_models.scorer import Scorer


def group(*judgements, texts, name):
    candidates = tuple(Candidate("abc"[i], text) for i, text in enumerate(texts))
    return PreferenceGroup(name, (Message("user", name),), candidates, judgements)


def win(winner, loser):
    return Judgement(None, "pair", {"winner": winner, "loser": loser})


def test_evaluate_groups_gives_each_candidate_its_own_score():
    scorer = Scorer(loaded=tiny.loaded(), batch_size=2)
    texts = [("很好。", "太差了", "Terrible food"), ("The room was clean", "早餐不错")]
    alone = [[scorer.score([[Message("user", "q")]], [t])[0] for t in some] for some in texts]
    best, worst = [], []
    for some, scores in zip(texts, alone, strict=True):
        order = dict(zip("abc", scores, strict=False))
        high, low = max(order, key=order.__getitem__), min(order, key=order.__getitem__)
        best.append(group(win(high, low), texts=some, name="q"))
        worst.append(group(win(low, high), texts=some, name="q"))
    result = evaluate_groups(scorer, best)
    assert result["eval_accuracy"] == 1.0
    assert result["eval_margin"] == pytest.approx(
        sum(max(scores) - min(scores) for scores in alone) / 2, abs=1e-6
    )
    assert evaluate_groups(scorer, worst)["eval_accuracy"] == 0.0
