"""Figures of given scores, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.config_errors import UserError
from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.evaluation import evaluate_scores
from reward_models.evaluation_calibration import ece, fit_temperature, loss, reliability, wilson
from reward_models.evaluation_pairs import bootstrap

LOG3, LOG4, LOG9 = math.log(3), math.log(4), math.log(9)


def group(*judgements, texts=("aa", "bb"), name="g"):
    candidates = tuple(Candidate("abcdef"[i], text) for i, text in enumerate(texts))
    return PreferenceGroup(name, (Message("user", name),), candidates, judgements)


def win(winner, loser, **more):
    return Judgement(None, "pair", {"winner": winner, "loser": loser}, **more)


A, B = win("a", "b"), win("b", "a")
TIE = Judgement(None, "pair", {"tie": ["a", "b"]})


def shares(result, name):
    """{part: (accuracy, pairs)} of a breakdown."""
    return {k: (v["accuracy"], v["pairs"]) for k, v in result["by"][name].items()}


def array(*values):
    return np.array(values, dtype=np.float64)


def test_accuracy_counts_equal_scores_half_and_leaves_ties_out():
    groups = [group(A), group(A), group(B), group(A), group(TIE)]
    scores = [[2.0, 1.0], [1.0, 2.0], [0.0, 3.0], [1.0, 1.0], [5.0, 0.0]]
    result = evaluate_scores(groups, scores)
    assert result["eval_accuracy"] == 2.5 / 4  # right, wrong, right, equal
    assert (result["eval_pairs"], result["eval_ties"], result["eval_groups"]) == (4, 1, 5)
    assert result["eval_margin"] == (1.0 - 1.0 + 3.0 + 0.0) / 4
    assert evaluate_scores(groups, scores, ties="drop")["eval_ties"] == 0


def test_every_group_counts_once_however_many_pairs_it_has():
    ranked = group(Judgement(None, "rank", {"a": 1, "b": 2, "c": 3}), texts=("x", "y", "z"))
    # a > b and a > c hold, b > c does not: 2/3 of one group; the other group is wrong.
    result = evaluate_scores([ranked, group(A)], [[3.0, 1.0, 2.0], [0.0, 1.0]])
    assert result["eval_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert result["eval_pairs"] == 4


def test_split_votes_are_decided_by_the_majority():
    result = evaluate_scores([group(A, A, B)], [[1.0, 0.0]])
    assert result["eval_accuracy"] == 1.0
    assert shares(result, "agreement") == {"split": (1.0, 1)}


def test_loss_by_hand():
    # σ(log 3) = 3/4.
    assert loss(array(LOG3), array(1.0), array(1.0)) == pytest.approx(-math.log(0.75))
    assert loss(array(LOG3), array(0.5), array(1.0)) == pytest.approx(
        -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    )
    assert loss(array(0.0, 0.0), array(1.0, 0.5), array(1.0, 7.0)) == pytest.approx(math.log(2))
    assert loss(array(-1e4), array(1.0), array(1.0)) == pytest.approx(1e4)
    # Weights 1 and 3.
    assert loss(array(LOG3, -LOG3), array(1.0, 1.0), array(1.0, 3.0)) == pytest.approx(
        -(math.log(0.75) + 3 * math.log(0.25)) / 4
    )


def test_calibration_error_by_hand():
    # Confidence 3/4 in four pairs of which three are right: no error.
    assert ece(array(LOG3, LOG3, LOG3, -LOG3), array(1, 1, 1, 1), np.ones(4)) == pytest.approx(0.0)
    # Two of four right at 3/4: off by 1/4.
    assert ece(array(LOG3, LOG3, -LOG3, -LOG3), array(1, 1, 1, 1), np.ones(4)) == pytest.approx(
        0.25
    )
    # A second bin, confidence 9/10, both right (off by 1/10), as heavy as the first.
    delta = array(LOG3, LOG3, -LOG3, -LOG3, LOG9, LOG9)
    assert ece(delta, np.ones(6), array(1, 1, 1, 1, 2, 2)) == pytest.approx((0.25 + 0.10) / 2)
    # A soft target of 3/4 at confidence 3/4 is calibrated, and so is a tie at equal scores.
    assert ece(array(LOG3), array(0.75), np.ones(1)) == pytest.approx(0.0)
    assert ece(array(0.0), array(1.0), np.ones(1)) == pytest.approx(0.0)


def test_temperature_by_hand():
    # Three right of four at |Δ| = 2 log 3: the best σ(Δ/T) is 3/4, so T = 2.
    delta = 2 * array(LOG3, LOG3, LOG3, -LOG3)
    assert fit_temperature(delta, np.ones(4), np.ones(4)) == pytest.approx(2.0, rel=1e-6)
    # Four right of five at log 4 / 3: overconfident by 1/3.
    delta = array(LOG4, LOG4, LOG4, LOG4, -LOG4) / 3
    assert fit_temperature(delta, np.ones(5), np.ones(5)) == pytest.approx(1 / 3, rel=1e-6)
    assert fit_temperature(array(1.0, 2.0), np.ones(2), np.ones(2)) == pytest.approx(1e-3, rel=1e-3)
    assert fit_temperature(array(0.0, 0.0), np.ones(2), np.ones(2)) == 1.0


def test_temperature_makes_an_overconfident_model_calibrated():
    groups = [group(A)] * 3 + [group(B)]
    result = evaluate_scores(groups, [[LOG9, 0.0]] * 4)  # σ = 9/10, right in 3 of 4
    assert result["eval_ece"] == pytest.approx(0.15)
    assert result["eval_temperature"] == pytest.approx(2.0, rel=1e-6)  # (9)^(1/2) = 3 → 3/4
    assert result["eval_ece_calibrated"] == pytest.approx(0.0, abs=1e-6)
    assert result["eval_loss"] == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)


def test_length_alone_as_a_baseline():
    groups = [group(A, texts=("long", "s")), group(B, texts=("long", "s")), group(A)]
    result = evaluate_scores(groups, [[1.0, 0.0]] * 3)
    assert result["eval_length_baseline"] == (1 + 0 + 0.5) / 3
    assert shares(result, "length") == {
        "longer wins": (1.0, 1), "shorter wins": (0.0, 1), "equal": (1.0, 1),
    }  # fmt: skip
    baselines = [part["length_baseline"] for part in result["by"]["length"].values()]
    assert baselines == [1.0, 0.0, 0.5]


def test_slices_by_margin_are_terciles():
    groups = [group(win("a", "b", strength=s)) for s in (1.0, 2.0, 3.0)]
    result = evaluate_scores(groups, [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert [s["accuracy"] for s in result["by"]["margin"].values()] == [0.0, 1.0, 1.0]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits, runs, size = 0, 200, 80
    for seed in range(runs):
        values = (generator.random(size) < 0.7).astype(float)
        low, high = bootstrap(values, np.ones(size), np.arange(size), seed, 200)
        assert low <= values.mean() <= high
        hits += low <= 0.7 <= high
    # 95 % nominal; the percentile interval of 80 draws is a little narrow.
    assert 0.88 <= hits / runs <= 0.99


def test_bootstrap_draws_groups_not_pairs():
    # 8 groups of 10 equal pairs: the interval must be that of 8 draws, not of 80.
    values = np.repeat([1.0, 0.0], 40)
    of_groups = bootstrap(values, np.ones(80), np.repeat(np.arange(8), 10), 0, 500)
    of_pairs = bootstrap(values, np.ones(80), np.arange(80), 0, 500)
    assert of_groups[1] - of_groups[0] > 2 * (of_pairs[1] - of_pairs[0])
    assert bootstrap(values, np.ones(80), np.repeat(np.arange(8), 10), 0, 500) == of_groups


def test_only_ties_have_no_accuracy():
    result = evaluate_scores([group(TIE)], [[1.0, 0.0]])
    assert result == {
        "eval_groups": 1, "eval_pairs": 0, "eval_ties": 1, "eval_accuracy": None, "best_of_n": [],
    }  # fmt: skip


def test_adding_a_constant_to_all_scores_changes_nothing():
    groups = [group(A), group(B), group(A, A, B)]
    first = evaluate_scores(groups, [[1.0, 0.5], [2.0, 0.0], [0.0, 1.0]])
    second = evaluate_scores(groups, [[9.0, 8.5], [-2.0, -4.0], [3.0, 4.0]])
    for name in ("eval_accuracy", "eval_loss", "eval_ece", "eval_temperature", "eval_margin"):
        assert first[name] == pytest.approx(second[name])


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        evaluate_scores([group(A)], [[float("nan"), 0.0]])
    with pytest.raises(UserError, match="aggregate"):
        evaluate_scores([group(A)], [[1.0, 0.0]], aggregate="mean")


def test_parts_by_agreement_language_and_source():
    one = group(win("a", "b", source="argilla"), texts=("房间很干净", "太差了"), name="评论")
    panel = group(
        win("a", "b", source="arena"), win("a", "b", source="argilla"), texts=("clean", "bad")
    )
    split = group(A, A, B, texts=("yes", "no"))
    result = evaluate_scores([one, panel, split], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert shares(result, "agreement") == {
        "one vote": (1.0, 1), "unanimous": (0.0, 1), "split": (1.0, 1),
    }  # fmt: skip
    assert shares(result, "language") == {"en": (0.5, 2), "zh": (1.0, 1)}
    assert shares(result, "source") == {
        "arena+argilla": (0.0, 1), "argilla": (1.0, 1), "unknown": (1.0, 1),
    }  # fmt: skip


def test_many_sources_are_shown_by_size_and_the_rest_together():
    groups = [group(win("a", "b", source=f"s{i:02}")) for i in range(25)]
    groups.append(group(win("a", "b", source="s24")))
    result = evaluate_scores(groups, [[1.0, 0.0]] * 26, resamples=2)
    names = list(result["by"]["source"])
    assert (len(names), names[0], names[-1]) == (20, "s24", "(others)")
    assert sum(n for _, n in shares(result, "source").values()) == 26


def test_parts_by_answer_length_are_thirds_of_the_mean():
    texts = [("a" * n, "b" * n) for n in (1, 5, 9)]
    groups = [group(A, texts=t) for t in texts]
    result = evaluate_scores(groups, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert [a for a, _ in shares(result, "answer_length").values()] == [1.0, 0.0, 1.0]


def test_an_ensembles_uncertainty_is_the_spread_of_its_differences():
    groups = [group(A)] * 3
    # Differences by member: (1, 1), (2, -2), (9, 3); standard deviations 0, √8, √18. A level that
    # a member adds to both answers does not count.
    heads = [[[8.0, 1.0], [7.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]], [[9.0, 3.0], [0.0, 0.0]]]
    scores = [[4.5, 3.5], [1.0, 1.0], [6.0, 0.0]]
    result = evaluate_scores(groups, scores, heads=heads)
    assert [a for a, _ in shares(result, "uncertainty").values()] == [1.0, 0.5, 1.0]
    assert "uncertainty" not in evaluate_scores(groups, scores)["by"]


def test_a_parts_interval_is_that_of_its_own_pairs():
    groups = [group(A, texts=("long", "s"))] * 6 + [group(B, texts=("long", "s"))] * 6
    scores = [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3 + [[0.0, 1.0]] * 6
    parts = evaluate_scores(groups, scores)["by"]["length"]
    assert (parts["shorter wins"]["low"], parts["shorter wins"]["high"]) == (1.0, 1.0)
    assert parts["longer wins"]["low"] < 0.5 < parts["longer wins"]["high"]
    assert parts["longer wins"]["groups"] == 6


def test_reliability_by_hand():
    # Three of four right at 3/4, in the bin [0.75, 0.8); one right at 9/10, in [0.9, 0.95).
    delta = array(LOG3 + 1e-9, LOG3 + 1e-9, LOG3 + 1e-9, -LOG3 - 1e-9, LOG9 + 1e-9)
    first, second = reliability(delta, np.ones(5), np.ones(5))
    assert (first["from"], first["to"], first["pairs"], first["share"]) == (0.75, 0.8, 4, 0.8)
    assert first["confidence"] == pytest.approx(0.75)
    assert first["outcome"] == 0.75
    assert (second["from"], second["pairs"], second["outcome"]) == (0.9, 1, 1.0)
    assert second["confidence"] == pytest.approx(0.9)
    assert first["low"] < 0.75 < first["high"]


def test_wilson_intervals_of_tables():
    assert wilson(0.5, 2) == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))
    assert wilson(1.0, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert wilson(0.0, 10) == (pytest.approx(0.0), pytest.approx(0.2775, abs=1e-4))


def test_surest_mistakes_come_first():
    groups = [group(A, name=f"问{i}") for i in range(30)]
    scores = [[0.0, float(i)] for i in range(30)]  # wrong by i
    found = evaluate_scores(groups, scores, resamples=2)["mistakes"]
    assert [m["delta"] for m in found] == [-float(i) for i in range(29, 9, -1)]
    assert found[0] == {
        "group_id": "问29", "prompt": "问29", "preferred": "aa", "other": "bb", "target": 1.0,
        "scores": [0.0, 29.0], "delta": -29.0,
    }  # fmt: skip
    assert evaluate_scores([group(A)], [[1.0, 0.0]], resamples=2)["mistakes"] == []


def test_long_texts_are_shortened_in_mistakes():
    found = evaluate_scores([group(A, texts=("长" * 301, "b" * 300))], [[0.0, 1.0]], resamples=2)
    (row,) = found["mistakes"]
    assert row["preferred"] == "长" * 299 + "…"
    assert row["other"] == "b" * 300
