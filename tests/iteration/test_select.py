"""Which of n answers is imitated and which are compared: hand-made cases, and all subsets."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.pairs import parse_group
from align.iteration.select import Rules, Sample, best_example, curve, preference_group
from align.records import Message, Prompt
from reward_models.preferences import targets

PROMPT = Prompt((Message("user", "问"),), meta={"category": "zh"})


def samples(*scores, unfinished=()):
    return [Sample(f"答{i}", float(s), i not in unfinished) for i, s in enumerate(scores)]


def test_the_best_answer_is_imitated():
    example, reason = best_example(PROMPT, samples(0.1, 0.9, 0.9, -1), Rules())
    assert reason == ""
    assert example.to_json() == {
        "messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答1"}],
        "meta": {"category": "zh", "source": "best_of_n", "score": 0.9, "n": 4},
    }


def test_the_best_is_preferred_to_the_worst():
    group, _ = preference_group(PROMPT, samples(0.1, 0.9, -1, 0.9), Rules(), "round-0")
    assert [(c.id, c.text, c.model) for c in group.candidates] == [
        ("s1", "答1", "round-0"), ("s2", "答2", "round-0"),
    ]  # fmt: skip
    (judgement,) = group.judgements
    assert judgement.value == {"winner": "s1", "loser": "s2"}
    assert judgement.strength == pytest.approx(1.9)
    assert group.meta["scores"] == {"s1": 0.9, "s2": -1.0}
    (target,) = targets(parse_group(group.to_json(), "x"), margin=True)
    assert (target.a, target.b, target.target, target.margin) == (0, 1, 1.0, pytest.approx(1.9))


def test_all_pairs_that_are_far_enough_apart():
    group, _ = preference_group(
        PROMPT, samples(0.0, 1.0, 1.2, 1.0), Rules(pairs="all", min_margin=0.5)
    )
    said = [(j.value["winner"], j.value["loser"], round(j.strength, 6)) for j in group.judgements]
    assert said == [("s1", "s0", 1.0), ("s2", "s0", 1.2), ("s3", "s0", 1.0)]
    assert [c.id for c in group.candidates] == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
@pytest.mark.parametrize(
    ("made", "rules", "reason"),
    [
        (samples(1, 1, 1), {}, "equal"),
        ([Sample("x", 1.0), Sample("x", 0.0)], {}, "equal"),  # one text has no other
        (samples(1, 0.8), {"min_margin": 0.3}, "below_min_margin"),
        (samples(1, 0, unfinished=(0, 1)), {}, "unfinished"),
        (samples(1, 0, unfinished=(0,)), {}, "equal"),  # the finished one is the worst
        ([Sample(" ", 3.0), Sample("\n", 2.0)], {}, "empty"),
    ],
)
def test_why_there_is_no_pair(pairs, made, rules, reason):
    assert preference_group(PROMPT, made, Rules(pairs=pairs, **rules)) == (None, reason)


@pytest.mark.parametrize(
    ("made", "rules", "reason"),
    [
        (samples(0.2, 0.4), {"min_score": 0.5}, "below_min_score"),
        (samples(1, 0, unfinished=(0, 1)), {}, "unfinished"),
        ([Sample("", 3.0)], {}, "empty"),
    ],
)
def test_why_there_is_nothing_to_imitate(made, rules, reason):
    assert best_example(PROMPT, made, Rules(**rules)) == (None, reason)


def test_a_cut_off_answer_may_lose_and_with_keep_win():
    made = samples(2.0, 1.0, 0.0, unfinished=(0, 2))
    group, _ = preference_group(PROMPT, made, Rules())
    assert group.judgements[0].value == {"winner": "s1", "loser": "s2"}
    kept, _ = preference_group(PROMPT, made, Rules(unfinished="keep"))
    assert kept.judgements[0].value == {"winner": "s0", "loser": "s2"}
    assert best_example(PROMPT, made, Rules())[0].messages[-1].content == "答1"
    every, _ = preference_group(PROMPT, made, Rules(pairs="all"))
    assert [j.value for j in every.judgements] == [{"winner": "s1", "loser": "s2"}]


@given(
    st.lists(st.tuples(st.sampled_from("甲乙ab "), st.integers(-2, 2), st.booleans()), min_size=2),
    st.sampled_from(["best_worst", "all"]),
    st.sampled_from([0.0, 1.0, 2.5]),
)
def test_every_judgement_follows_the_rewards(rows, pairs, margin):
    made = [Sample(text, float(score), finished) for text, score, finished in rows]
    group, reason = preference_group(PROMPT, made, Rules(pairs=pairs, min_margin=margin))
    if group is None:
        assert reason in ("equal", "below_min_margin", "unfinished", "empty")
        return
    for judgement in group.judgements:
        winner, loser = (made[int(judgement.value[k][1:])] for k in ("winner", "loser"))
        assert winner.score - loser.score == judgement.strength
        assert judgement.strength >= max(margin, 1e-9)
        assert winner.finished
        assert winner.text != loser.text
        assert winner.text.strip()
        assert loser.text.strip()
    parse_group(group.to_json(), "x")  # what the trainers read


def test_the_curve_is_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).normal(size=(5, 6))
    points = {p["n"]: p for p in curve(scores)}
    assert list(points) == [1, 2, 3, 4, 5, 6]
    for n, point in points.items():
        wanted = np.mean([[max(s) for s in combinations(row, n)] for row in scores])
        assert point["value"] == pytest.approx(wanted)
        assert point["low"] <= point["value"] <= point["high"]
        assert point["kl"] == pytest.approx(math.log(n) - (n - 1) / n)


def test_best_of_n_of_uniform_rewards():
    # The largest of n uniform numbers has the mean n / (n + 1).
    scores = np.random.default_rng(1).uniform(size=(4000, 4))
    for point in curve(scores):
        assert point["value"] == pytest.approx(point["n"] / (point["n"] + 1), abs=0.015)
