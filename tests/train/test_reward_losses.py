"""The reward objective on literal scores: by hand, and what must not change it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from align.config_schema import RewardModel
from align.groups import TokenGroup, collate
from align.records import PairTarget
from align.train.reward import RewardTrainer, comparisons, ratings
from align.train.reward_inputs import Scale

LN3 = math.log(3)
THIRD = 1 / 3
# −log ¾ for the sure pair, ¾ of it and ¼ of −log ¼ for the doubtful one, log 2 for the tie.
SURE, DOUBTFUL, TIE = 0.2876820724517809, 0.5623351446188083, 0.6931471805599453
MEAN = 0.5143881325435116


def three() -> TokenGroup:
    """Answers of 2, 1 and 1 tokens; the first beats both, the others are tied."""
    pairs = [
        PairTarget(0, 1, 1.0, THIRD, LN3),
        PairTarget(0, 2, 0.75, THIRD, None),
        PairTarget(1, 2, 0.5, THIRD, None),
    ]
    return TokenGroup([5], [[6, 7], [6], [8]], pairs=pairs)


def two() -> TokenGroup:
    """One pair of full weight, answers of equal length."""
    return TokenGroup([5, 6], [[7, 8], [9, 8]], pairs=[PairTarget(1, 0, 1.0, 1.0, None)])


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def total(outputs, groups, layout="grouped", counted=None, **settings) -> float:
    batch = collate(groups, 0, layout)
    return comparisons(outputs, batch, RewardModel(**settings), counted).item()


def test_soft_targets_and_weights_by_hand():
    expected = (SURE + DOUBTFUL + TIE) / 3
    assert expected == pytest.approx(MEAN, abs=1e-12)
    assert total(column(LN3, 0, 0), [three()]) == pytest.approx(MEAN, abs=1e-7)
    assert total(column(LN3 + 4, 4, 4), [three()]) == pytest.approx(MEAN, abs=1e-7)


def test_a_margin_asks_for_a_lead_and_only_where_it_is_wanted():
    # The sure pair leads by its margin and no more: log 2.
    expected = (TIE + DOUBTFUL + TIE) / 3
    assert total(column(LN3, 0, 0), [three()], margin=True) == pytest.approx(expected, abs=1e-7)
    assert total(column(LN3, 0, 0), [three()]) == pytest.approx(MEAN, abs=1e-7)


def test_centring_adds_the_squared_sum_of_each_pair():
    # Sums ln 3, ln 3 and 0: 0.1 · ⅔ · (ln 3)².
    got = total(column(LN3, 0, 0), [three()], center_coef=0.1)
    assert got == pytest.approx(MEAN + 0.08046326405417213, abs=1e-7)


def test_length_explains_what_it_is_granted():
    # Twice as long and granted ln 3 a doubling: equal scores give the loss of a lead of ln 3.
    assert total(column(0, 0, 0), [three()], length_coef=LN3) == pytest.approx(MEAN, abs=1e-6)
    assert total(column(0, 0, 0), [three()]) == pytest.approx(TIE, abs=1e-7)
    # Equally long answers are granted nothing.
    assert total(column(0, LN3), [two()], length_coef=9.0) == pytest.approx(SURE, abs=1e-6)


def test_centring_does_not_see_the_length():
    without = total(column(0, 0, 0), [three()], length_coef=LN3)
    centred = total(column(0, 0, 0), [three()], length_coef=LN3, center_coef=5.0)
    assert centred == without


def test_heads_are_averaged_and_a_head_counts_what_it_drew():
    outputs = torch.cat([column(LN3, 0, 0), column(0, 0, 0)], dim=1)
    assert total(outputs, [three()]) == pytest.approx((MEAN + TIE) / 2, abs=1e-7)
    counted = torch.tensor([[3.0, 0.0]] * 3)
    assert total(outputs, [three()], counted=counted) == pytest.approx(3 * MEAN / 2, abs=1e-7)


@pytest.mark.parametrize("layout", ["grouped", "plain"])
def test_a_batch_is_the_sum_of_its_groups(layout):
    settings = {"margin": True, "center_coef": 0.3, "length_coef": 0.7}
    drawn = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 2, generator=drawn, dtype=torch.float64)
    counted = torch.tensor([[2.0, 1.0]] * 3 + [[0.0, 3.0]] * 2, dtype=torch.float64)
    together = total(outputs, [three(), two()], layout, counted, **settings)
    apart = total(outputs[:3], [three()], layout, counted[:3], **settings)
    apart += total(outputs[3:], [two()], layout, counted[3:], **settings)
    assert together == pytest.approx(apart, abs=1e-12)
    swapped = total(outputs.roll(2, 0), [two(), three()], layout, counted.roll(2, 0), **settings)
    assert together == pytest.approx(swapped, abs=1e-12)


def test_gradients_of_the_comparisons():
    batch = collate([three(), two()], 0)
    reward = RewardModel(margin=True, center_coef=0.3, length_coef=0.7, heads=2)
    counted = torch.tensor([[2.0, 1.0]] * 5, dtype=torch.float64)
    drawn = torch.Generator().manual_seed(1)
    outputs = torch.randn(5, 2, generator=drawn, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: comparisons(x, batch, reward, counted), outputs)


# Ratings: two attributes, of mean 2 and 1 and deviation 1 and 2.

SCALE = Scale([2.0, 1.0], [1.0, 2.0])


def rated(*rows: tuple[float | None, float | None]) -> TokenGroup:
    extras = {}
    for j in range(2):
        extras[f"rated_{j}"] = [float(row[j] is not None) for row in rows]
        extras[f"rating_{j}"] = [row[j] or 0.0 for row in rows]
    return TokenGroup([5], [[6 + k] for k in range(len(rows))], extras=extras)


def test_ratings_by_hand():
    batch = collate([rated((3.0, None), (2.0, 5.0))], 0)
    # In deviations: 1 and none, 0 and 2. Errors ½², not counted, 0², 1².
    outputs = torch.tensor([[0.5, 9.0], [0.0, 1.0]], dtype=torch.float64)
    assert ratings(outputs, batch, SCALE).item() == pytest.approx(1.25, abs=1e-12)
    # A second member is right about everything.
    outputs = torch.cat([outputs, torch.tensor([[1.0, -7.0], [0.0, 2.0]])], dim=1)
    assert ratings(outputs, batch, SCALE).item() == pytest.approx(0.625, abs=1e-12)
    counted = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert ratings(outputs, batch, SCALE, counted).item() == pytest.approx(1.0, abs=1e-12)


def test_ratings_of_a_batch_are_the_sum_of_its_groups():
    groups = [rated((3.0, None), (2.0, 5.0)), rated((None, 0.0)), rated((1.0, 1.0), (None, 4.0))]
    drawn = torch.Generator().manual_seed(2)
    outputs = torch.randn(5, 4, generator=drawn, dtype=torch.float64)
    whole = ratings(outputs, collate(groups, 0), SCALE)
    parts = [(0, 2), (2, 3), (3, 5)]
    apart = sum(
        ratings(outputs[a:b], collate([g], 0, "plain"), SCALE)
        for g, (a, b) in zip(groups, parts, strict=True)
    )
    assert whole.item() == pytest.approx(apart.item(), abs=1e-12)


def test_gradients_of_the_ratings_are_zero_where_nobody_rated():
    batch = collate([rated((3.0, None), (2.0, 5.0))], 0)
    outputs = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ratings(x, batch, SCALE), outputs)
    ratings(outputs, batch, SCALE).backward()
    assert outputs.grad.tolist() == [[-2.0, 0.0], [0.0, -4.0]]


# Ratings and comparisons together


def mixed(training=True, **settings):
    """A trainer without model: two attributes, the score is the first plus half the second."""
    reward = RewardModel(attributes=["a", "b"], attribute_weights=[1.0, 0.5], **settings)
    made = object.__new__(RewardTrainer)
    made.settings, made.scale = SimpleNamespace(reward=reward), SCALE
    made.attribute_weights, made.pair_coef = reward.attribute_weights, reward.pair_coef
    made.policy = SimpleNamespace(module=SimpleNamespace(training=training))
    return made


def both_kinds(**extras) -> TokenGroup:
    """The first is better, by vote; rated 3 on a, the second 5 on b."""
    group = rated((3.0, None), (None, 5.0))
    group.pairs = [PairTarget(0, 1, 1.0, 1.0, None)]
    group.extras |= extras
    return group


def test_a_prompts_comparisons_count_like_so_many_ratings():
    # Scores 3 + ½ and that less ln 3; errors of the ratings 0 and 2² deviations.
    outputs = torch.tensor([[1.0, 0.0], [1.0 - LN3, 0.0]], dtype=torch.float64)
    for coef, total_, items in ((0.0, 4.0, 2.0), (1.0, 4 + SURE, 3.0), (2.5, 4 + 2.5 * SURE, 4.5)):
        trainer = mixed(pair_coef=coef)
        batch = collate([both_kinds()], 0)
        objective = trainer.objective(lambda batch, want: {"scores": outputs}, batch)
        assert objective.total.item() == pytest.approx(total_, abs=1e-6)
        assert trainer.items([both_kinds()]) == items
        found = {name: (a / b).item() for name, (a, b) in objective.stats.items() if b != 0}
        assert found["accuracy"] == 1.0
        assert found["rewards/margins"] == pytest.approx(LN3, abs=1e-6)
        assert found["mse/a"] == pytest.approx(0.0, abs=1e-9)
        assert found["mse/b"] == pytest.approx(16.0, abs=1e-6)  # 1 in place of 5


def test_a_member_counts_ratings_and_comparisons_as_often_as_it_drew_the_prompt():
    # The second member is right about the ratings and ties the pair.
    right = [[1.0, 0.0, 1.0, 1.0], [1.0 - LN3, 0.0, 0.0, 2.0]]
    outputs = torch.tensor(right, dtype=torch.float64)
    drew = {"counted_0": [3.0, 3.0], "counted_1": [1.0, 1.0]}
    batch = collate([both_kinds(**drew)], 0)
    found = {}
    for training in (True, False):
        trainer = mixed(training, pair_coef=2.0, heads=4)
        objective = trainer.objective(lambda batch, want: {"scores": outputs}, batch)
        found[training] = objective.total.item()
    # Second member: scores 3 + 3/2 and 2 + 5/2, a tie.
    assert found[True] == pytest.approx((3 * (4 + 2 * SURE) + 2 * TIE) / 2, abs=1e-6)
    assert found[False] == pytest.approx((4 + 2 * SURE + 2 * TIE) / 2, abs=1e-6)


def test_the_spread_of_heads_is_that_of_a_pairs_difference(recwarn):
    # Differences 1 and 3 for the one pair: deviation √2. No pair: no figure, no warning.
    trainer = object.__new__(RewardTrainer)
    trainer.settings = SimpleNamespace(reward=RewardModel(heads=2, bootstrap=False))
    trainer.scale, trainer.pair_coef, trainer.attribute_weights = Scale([], []), 1.0, []
    trainer.policy = SimpleNamespace(module=SimpleNamespace(training=True))
    pairs = [PairTarget(0, 1, 1.0, 0.5, None)]
    for some, expected in ((pairs, (0.5 * math.sqrt(2), 0.5)), ([], (0.0, 0.0))):
        batch = collate([TokenGroup([5], [[6], [7]], pairs=some)], 0)
        outputs = torch.tensor([[1.0, 7.0], [0.0, 4.0]], dtype=torch.float64)
        found = trainer.objective(lambda batch, want, x=outputs: {"scores": x}, batch)
        spread = [x.item() for x in found.stats["heads/spread"]]
        assert spread == pytest.approx(expected, abs=1e-9)
    assert not recwarn.list


def test_gradients_of_both_together():
    trainer = mixed(pair_coef=2.0, heads=4, length_coef=0.3, center_coef=0.1)
    drew = {"counted_0": [3.0, 3.0], "counted_1": [1.0, 1.0]}
    batch = collate([both_kinds(**drew)], 0)
    drawn = torch.Generator().manual_seed(4)
    outputs = torch.randn(2, 4, generator=drawn, dtype=torch.float64).requires_grad_(True)

    def total_of(x):
        return trainer.objective(lambda batch, want: {"scores": x}, batch).total

    assert torch.autograd.gradcheck(total_of, outputs)


# What the options are for


def fitted(features, pairs, counted=None, **settings):
    """Weights (features, heads) of linear scores that minimise the comparisons."""
    batch = collate(pairs, 0)
    reward = RewardModel(**settings)
    weights = torch.zeros(features.shape[1], reward.heads, dtype=torch.float64)
    weights.requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = comparisons(features @ weights, batch, reward, counted)
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def test_with_the_datas_own_slope_only_quality_is_learned():
    # Longer answers are better ones too: P(a wins) = σ(Δq + 0.8 · Δlog₂ tokens), exactly.
    quality = [(0.0, 4), (1.0, 8), (2.0, 16), (0.5, 2), (1.5, 16), (1.0, 2)]
    pairs = []
    for (qa, na), (qb, nb) in [(x, y) for i, x in enumerate(quality) for y in quality[:i]]:
        p = 1 / (1 + math.exp(-(qa - qb) - 0.8 * math.log2(na / nb)))
        pairs.append(TokenGroup([5], [[6] * na, [7] * nb], pairs=[PairTarget(0, 1, p)]))
    rows = [
        (q, math.log2(n)) for i, a in enumerate(quality) for b in quality[:i] for q, n in (a, b)
    ]
    features = torch.tensor(rows, dtype=torch.float64)
    plain = fitted(features, pairs)
    assert plain[:, 0].tolist() == pytest.approx([1.0, 0.8], abs=1e-4)
    freed = fitted(features, pairs, length_coef=0.8)
    assert freed[:, 0].tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_only_heads_that_draw_their_own_prompts_disagree_and_more_where_data_are_rare():
    # Two features: the second differs in one pair out of ten.
    drawn = torch.Generator().manual_seed(3)
    n = 120
    gaps = torch.randn(n, 2, generator=drawn, dtype=torch.float64)
    gaps[torch.arange(n) % 10 != 0, 1] = 0.0
    wins = torch.rand(n, generator=drawn, dtype=torch.float64) < torch.sigmoid(gaps.sum(1))
    pairs = [
        TokenGroup([5], [[6], [7]], pairs=[PairTarget(0, 1, float(won))]) for won in wins.tolist()
    ]
    features = torch.stack([gaps / 2, -gaps / 2], dim=1).flatten(0, 1)
    heads = 12
    alike = fitted(features, pairs, heads=heads)
    assert alike.std(1).max() < 1e-4
    from align.train.reward_inputs import drawn as times

    counted = torch.tensor([[times(f"g{i}", h, 1) for h in range(heads)] for i in range(n)])
    apart = fitted(features, pairs, counted.repeat_interleave(2, 0).double(), heads=heads)
    often, rare = apart.std(1).tolist()
    assert 0.1 < often < rare
