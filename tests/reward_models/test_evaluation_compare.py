"""Two reward models: agreement by hand, and by other libraries."""

from __future__ import annotations

import numpy as np
import pytest

from align.records import Candidate, Judgement, Message, PreferenceGroup
from reward_models.evaluation_compare import compare_scores, kendall, spearman


def group(*judgements, n=2, name="g", texts=None):
    texts = texts or ["字" * (i + 1) for i in range(n)]
    candidates = tuple(Candidate("abcdef"[i], text) for i, text in enumerate(texts))
    return PreferenceGroup(name, (Message("user", name),), candidates, judgements)


def win(winner, loser):
    return Judgement(None, "pair", {"winner": winner, "loser": loser})


def value(found, name):
    return found[name]["value"]


def test_pairs_in_the_same_order_by_hand():
    groups = [group()] * 4
    a = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]
    b = [[9.0, 1.0], [0.0, 0.1], [-5.0, 0.0], [0.3, 0.2]]
    found = compare_scores(groups, a, b)
    assert (found["groups"], found["pairs"]) == (4, 4)
    assert value(found, "pair_agreement") == 0.75
    assert value(found, "kappa") == pytest.approx(0.5)
    assert found["pair_agreement"]["low"] < 0.75 < found["pair_agreement"]["high"]
    # The second candidate is the longer one.
    assert (value(found, "longer_a"), value(found, "longer_b")) == (0.25, 0.5)
    assert found["votes"] is None
    assert found["spearman"]["groups"] == 0


def test_equal_scores_are_a_third_order():
    # a says first, equal; b says first, first. Half agree strictly; by chance
    # (1 − 1/2) · 1 / 2 = 1/4 would; an equal score of one model alone is half an agreement.
    found = compare_scores([group()] * 2, [[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
    assert value(found, "pair_agreement") == 0.75
    assert value(found, "kappa") == pytest.approx((1 / 2 - 1 / 4) / (3 / 4))


def test_the_order_of_candidates_does_not_matter():
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 3, (20, 3)).astype(float).tolist() for _ in range(2))
    groups = [group(n=3)] * 20
    first = compare_scores(groups, a, b)
    turned = [group(texts=["字" * 3, "字", "字字"])] * 20
    rows = [[[row[2], row[0], row[1]] for row in rows] for rows in (a, b)]
    second = compare_scores(turned, *rows)
    for name in ("pair_agreement", "kappa", "spearman", "kendall", "longer_a"):
        assert value(first, name) == pytest.approx(value(second, name))


def test_a_group_counts_once_however_many_pairs_it_has():
    # Three pairs of which one differs, and a single pair that differs.
    found = compare_scores(
        [group(n=3), group()], [[3.0, 2.0, 1.0], [1.0, 0.0]], [[3.0, 1.0, 2.0], [0.0, 1.0]]
    )
    assert value(found, "pair_agreement") == pytest.approx((2 / 3 + 0) / 2)


def test_ranks_by_hand():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    assert kendall(x, y) == pytest.approx((2 - 1) / 3)
    assert spearman(x, y) == pytest.approx(1 - 6 * 2 / (3 * 8))
    found = compare_scores(
        [group(n=3)] * 3, [x.tolist()] * 3, [y.tolist(), x.tolist(), [1.0, 1.0, 1.0]]
    )
    assert value(found, "kendall") == pytest.approx((1 / 3 + 1) / 2)
    assert value(found, "spearman") == pytest.approx((1 / 2 + 1) / 2)
    assert (found["kendall"]["groups"], found["kendall"]["left_out"]) == (2, 1)


def test_ranks_as_in_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    for _ in range(30):
        x, y = (generator.integers(0, 4, 7).astype(float) for _ in range(2))
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_kappa_as_in_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    a, b = (generator.integers(0, 3, (60, 2)).astype(float) for _ in range(2))
    found = compare_scores([group()] * 60, a.tolist(), b.tolist(), resamples=2)
    orders = [np.sign(s[:, 0] - s[:, 1]).astype(int) for s in (a, b)]
    both = [np.concatenate([o, -o]) for o in orders]  # each pair both ways round
    assert value(found, "kappa") == pytest.approx(metrics.cohen_kappa_score(*both))


def test_accuracy_and_error_consistency_by_hand():
    groups = [group(win("a", "b"))] * 4
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    found = compare_scores(groups, [right, right, right, wrong], [right, right, wrong, right])
    votes = found["votes"]
    assert votes["pairs"] == 4
    assert (value(votes, "accuracy_a"), value(votes, "accuracy_b")) == (0.75, 0.75)
    assert value(votes, "difference") == 0.0
    # Alike in two of four; independent ones would be in 9/16 + 1/16.
    assert value(votes, "error_consistency") == pytest.approx((1 / 2 - 5 / 8) / (3 / 8))
    better = compare_scores(groups, [right, wrong, wrong, wrong], [right] * 4)["votes"]
    assert value(better, "difference") == 0.75
    assert value(better, "error_consistency") == pytest.approx(0.0)
    assert compare_scores(groups, [right] * 4, [right] * 4)["votes"]["error_consistency"] == {
        "value": None, "low": None, "high": None,
    }  # fmt: skip


def test_a_model_agrees_with_itself():
    generator = np.random.default_rng(3)
    scores = generator.normal(size=(10, 4)).tolist()
    found = compare_scores([group(n=4)] * 10, scores, scores)
    for name in ("pair_agreement", "kappa", "spearman", "kendall"):
        assert value(found, name) == pytest.approx(1.0)
    assert found["disagreements"] == []
    opposite = [[-s for s in row] for row in scores]
    found = compare_scores([group(n=4)] * 10, scores, opposite)
    assert value(found, "pair_agreement") == 0.0
    assert value(found, "kendall") == pytest.approx(-1.0)
    assert len(found["disagreements"]) == 20


def test_surest_disagreements_come_first_in_each_models_own_scale():
    # b's scores are a hundred times larger. Root mean squares: a √(14/3), b 100 · √(14/3).
    groups = [group(name=name) for name in ("甲", "乙", "丙")]
    a = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]
    b = [[0.0, 300.0], [200.0, 0.0], [100.0, 0.0]]
    found = compare_scores(groups, a, b)["disagreements"]
    assert [row["group_id"] for row in found] == ["乙", "甲"]  # 丙 is no disagreement
    assert (found[0]["a_prefers"], found[0]["b_prefers"]) == ("字字", "字")
    assert (found[0]["scores_a"], found[0]["scores_b"]) == ([2.0, 0.0], [0.0, 200.0])
    assert found[0]["surety"] == pytest.approx(2 / np.sqrt(14 / 3))
    assert found[1]["surety"] == pytest.approx(1 / np.sqrt(14 / 3))


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        compare_scores([group()], [[1.0, float("inf")]], [[1.0, 0.0]])
