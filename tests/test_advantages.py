"""GAE, whitening, KL estimators and controllers against hand-worked numbers and invariances."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.advantages import (
    KL_ESTIMATORS,
    AdaptiveKL,
    FixedKL,
    RunningMoments,
    explained_variance,
    gae,
    gae_loop,
    kl_k1,
    kl_k2,
    kl_k3,
    token_rewards,
    whiten,
)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, *expected: float, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, f64(*expected), atol=atol, rtol=0)


class Ranks:
    """Runs a function on several ranks in turn, feeding every reduce the sum over all of them."""

    def __init__(self, shards: list[torch.Tensor]) -> None:
        self.shards = shards

    def run(self, function):
        """Replays: call k of `reduce` returns the recorded sum, once all ranks have made it."""
        sums: list[torch.Tensor] = []
        while True:
            seen: list[list[torch.Tensor]] = []
            results = []
            for shard in self.shards:
                calls: list[torch.Tensor] = []

                def reduce(x: torch.Tensor, calls: list[torch.Tensor] = calls) -> torch.Tensor:
                    calls.append(x.clone())
                    return sums[len(calls) - 1] if len(calls) <= len(sums) else x

                results.append(function(shard, reduce))
                seen.append(calls)
            assert len({len(c) for c in seen}) == 1, "ranks made different numbers of calls"
            if len(sums) == len(seen[0]):
                return results
            sums.append(sum(c[len(sums)] for c in seen))


# ---------------------------------------------------------------- GAE


def test_item_17_gae_by_hand() -> None:
    # γ = ½, λ = ½, so γλ = ¼. Segment one: r = 1, 2; V = 4, 8. Segment two: r = 3; V = 1.
    # δ = 1 + ½·8 − 4 = 1,  2 + 0 − 8 = −6,  3 − 1 = 2
    # A = 1 + ¼·(−6) = −½,  −6,  2;   R = A + V = 3.5, 2, 3
    for function in (gae, gae_loop):
        advantages, returns = function(
            f64(1, 2, 3), f64(4, 8, 1), torch.tensor([0, 2, 3]), gamma=0.5, lam=0.5
        )
        close(advantages, -0.5, -6.0, 2.0)
        close(returns, 3.5, 2.0, 3.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_item_17_gae_scan_equals_loop(
    sizes: list[int], gamma: float, lam: float, extra: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    tokens = int(offsets[-1])
    rewards = torch.randn(tokens + len(sizes) * extra, generator=g, dtype=torch.float64)
    values = torch.randn(tokens, generator=g, dtype=torch.float64)
    for scan, loop in zip(
        gae(rewards, values, offsets, gamma, lam),
        gae_loop(rewards, values, offsets, gamma, lam),
        strict=True,
    ):
        torch.testing.assert_close(scan, loop, atol=1e-11, rtol=1e-11)


def test_item_17_gae_lambda_one_is_monte_carlo() -> None:
    # γ = 1, λ = 1: the return is what is still to come, whatever the critic says.
    rewards = f64(1, 2, 4, 8, 16)
    offsets = torch.tensor([0, 3, 5])
    for values in (f64(0, 0, 0, 0, 0), f64(9, -3, 2, 7, 1)):
        advantages, returns = gae(rewards, values, offsets, gamma=1.0, lam=1.0)
        close(returns, 7, 6, 4, 24, 16)
        torch.testing.assert_close(advantages, returns - values)


def test_item_17_lambda_zero_is_one_step_and_the_value_beyond_the_end_is_zero() -> None:
    advantages, _ = gae(f64(1, 1, 1), f64(5, 7, 9), torch.tensor([0, 2, 3]), gamma=1.0, lam=0.0)
    close(advantages, 1 + 7 - 5, 1 - 7, 1 - 9)  # the neighbour's 9 is not a next value


def test_item_17_a_segment_does_not_see_its_neighbours() -> None:
    g = torch.Generator().manual_seed(0)
    r, v = torch.randn(23, generator=g), torch.randn(23, generator=g)
    together, _ = gae(r, v, torch.tensor([0, 5, 5, 21, 23]))
    for a, b in ((0, 5), (5, 21), (21, 23)):
        alone, _ = gae(r[a:b], v[a:b], torch.tensor([0, b - a]))
        assert torch.equal(together[a:b], alone)


def test_item_17_rewards_to_come_raise_earlier_advantages() -> None:
    offsets = torch.tensor([0, 100])
    base, _ = gae(torch.zeros(100), torch.zeros(100), offsets, 1.0, 0.95)
    assert (base == 0).all()
    rewards = torch.zeros(100)
    rewards[-1] = 1.0
    advantages, _ = gae(rewards, torch.zeros(100), offsets, 1.0, 0.95)
    # 0.95^99 = 0.006232
    assert advantages[0].item() == pytest.approx(0.0062321, abs=1e-6)
    assert (advantages.diff() > 0).all()


def test_gae_takes_no_gradient_and_checks_lengths() -> None:
    r, v = torch.ones(3).requires_grad_(), torch.ones(3).requires_grad_()
    advantages, returns = gae(r, v, torch.tensor([0, 3]))
    assert not advantages.requires_grad
    assert not returns.requires_grad
    for rewards, values in ((torch.ones(5), torch.ones(3)), (torch.ones(2), torch.ones(2))):
        with pytest.raises(ValueError, match="one more per segment"):
            gae(rewards, values, torch.tensor([0, 1, 3][:: 1 if len(rewards) == 2 else 2]))
    empty, _ = gae(torch.ones(0), torch.ones(0), torch.tensor([0]))
    assert empty.numel() == 0


# ---------------------------------------------------------------- token rewards


def test_item_10_token_rewards_by_hand() -> None:
    # −0.5·kl everywhere; completions of 2 and 1 tokens
    rewards = token_rewards(f64(2, -4, 6), f64(10, 20), torch.tensor([0, 2, 3]), kl_coef=0.5)
    close(rewards, -1.0, 2.0 + 10.0, -3.0 + 20.0)


def test_item_11_score_at_eos_or_after() -> None:
    kl, scores, offsets = f64(2, -4, 6), f64(10, 20), torch.tensor([0, 2, 3])
    after = token_rewards(kl, scores, offsets, kl_coef=0.5, score_at="after_eos")
    close(after, -1.0, 2.0, 10.0, -3.0, 20.0)
    at = token_rewards(kl, scores, offsets, kl_coef=0.5, score_at="eos")
    values = f64(1, 2, 3)
    # Undiscounted, one position later is the same thing;
    for one, two in zip(gae(after, values, offsets), gae(at, values, offsets), strict=True):
        torch.testing.assert_close(one, two)
    # discounted, the score is worth γ of itself: −3 + ½·20 − 3 = 4.
    advantages, _ = gae(after, values, offsets, gamma=0.5, lam=0.3)
    assert advantages[-1].item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="'eos' or 'after_eos'"):
        token_rewards(kl, scores, offsets, kl_coef=0.5, score_at="end")


def test_item_11_a_critic_may_read_the_position_after_the_end() -> None:
    # One token and the position after it: V = 3, 5; r = −1, 10; γ = 1, λ = ½.
    # δ = −1 + 5 − 3 = 1,  10 − 5 = 5;  A = 1 + ½·5 = 3.5, 5;  R = 6.5, 10
    advantages, returns = gae(f64(-1, 10), f64(3, 5), torch.tensor([0, 2]), 1.0, 0.5)
    close(advantages, 3.5, 5.0)
    close(returns, 6.5, 10.0)


def test_an_empty_completion_moves_no_neighbour() -> None:
    offsets = torch.tensor([0, 1, 1, 2])
    close(token_rewards(f64(0, 0), f64(1, 2, 3), offsets, kl_coef=1.0), 1, 3)
    after = token_rewards(f64(0, 0), f64(1, 2, 3), offsets, kl_coef=1.0, score_at="after_eos")
    close(after, 0, 1, 2, 0, 3)
    close(gae(after, f64(0, 0), offsets)[1], 1, 3)


# ---------------------------------------------------------------- whitening


def test_item_18_whitening_by_hand() -> None:
    # mean 4, unbiased variance (9 + 1 + 1 + 9)/3 = 20/3; 3/√(20/3) = 1.161895
    x = f64(1, 3, 5, 7)
    close(whiten(x), -1.161895004, -0.387298335, 0.387298335, 1.161895004, atol=1e-8)
    close(
        whiten(x, shift_mean=False), 2.838104996, 3.612701665, 4.387298335, 5.161895004, atol=1e-8
    )


def test_item_18_whitening_spans_all_ranks() -> None:
    x = torch.randn(30, generator=torch.Generator().manual_seed(3)) * 5 + 100
    for shift in (True, False):
        whole = whiten(x, shift_mean=shift)
        parts = Ranks([x[:7], x[7:7], x[7:]]).run(
            lambda shard, reduce, shift=shift: whiten(shard, shift_mean=shift, reduce=reduce)
        )
        torch.testing.assert_close(torch.cat(parts), whole)
        assert whole.mean().item() == pytest.approx(0 if shift else x.mean().item(), abs=1e-4)
        assert whole.std().item() == pytest.approx(1, abs=1e-5)


def test_item_18_whitening_survives_big_means_and_no_spread() -> None:
    x = torch.tensor([1e6 + 1, 1e6 + 2, 1e6 + 3])
    assert whiten(x).tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    assert whiten(torch.full((5,), 3.0)).tolist() == [0.0] * 5
    assert whiten(torch.full((5,), 3.0), shift_mean=False).tolist() == [3.0] * 5
    assert whiten(torch.tensor([2.0])).tolist() == [0.0]
    assert whiten(torch.ones(0)).tolist() == []
    assert whiten(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20), st.floats(-50, 50))
def test_item_18_whitening_ignores_shift_and_keeps_order(values: list[float], by: float) -> None:
    x = f64(*values)
    if x.std() < 1e-2:
        return
    torch.testing.assert_close(whiten(x + by), whiten(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whiten(3 * x), whiten(x), atol=1e-4, rtol=1e-4)
    order = x.argsort()
    assert (whiten(x)[order].diff() >= 0).all()


def test_explained_variance_by_hand() -> None:
    returns = f64(1, 3, 5, 7)
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns, returns + 9) == pytest.approx(1.0)  # a bias is no variance
    assert explained_variance(returns, f64(0, 0, 0, 0)) == pytest.approx(0.0)
    # residuals 1, 3, 5, 7 minus twice that: variance equal to the returns'
    assert explained_variance(returns, 2 * returns) == pytest.approx(0.0)
    assert explained_variance(returns, -returns) == pytest.approx(-3.0)  # residual 2R: 1 − 4
    assert explained_variance(f64(2, 2), f64(0, 1)) == 0.0
    values = f64(1, 2, 6, 6)
    pair = torch.stack([returns, values], dim=1)
    whole = explained_variance(returns, values)
    parts = Ranks([pair[:1], pair[1:]]).run(
        lambda s, reduce: explained_variance(s[:, 0], s[:, 1], reduce=reduce)
    )
    assert parts == [pytest.approx(whole)] * 2


# ---------------------------------------------------------------- KL


def test_item_15_estimators_by_hand() -> None:
    # π twice as likely as the reference: log-ratio ln 2 = .69314718
    new, ref = f64(math.log(0.5)), f64(math.log(0.25))
    close(kl_k1(new, ref), 0.69314718, atol=1e-8)
    close(kl_k2(new, ref), 0.24022651, atol=1e-8)  # ½·(ln 2)²
    close(kl_k3(new, ref), 0.19314718, atol=1e-8)  # ½ − 1 + ln 2


def test_item_15_estimators_agree_with_the_exact_kl() -> None:
    # Expectation over a two-word vocabulary: p = (.6, .4), q = (.5, .5).
    p, q = f64(0.6, 0.4), f64(0.5, 0.5)
    exact = 0.6 * math.log(1.2) + 0.4 * math.log(0.8)
    for name, exactly in (("k1", True), ("k3", True), ("k2", False)):
        expected = (p * KL_ESTIMATORS[name](p.log(), q.log())).sum().item()
        assert expected == pytest.approx(exact, abs=1e-12 if exactly else 1e-3), name


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_item_15_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    new, ref = torch.tensor([a]), torch.tensor([b])
    for estimate in (kl_k2(new, ref), kl_k3(new, ref)):
        assert (estimate >= 0).all()
        assert torch.isfinite(estimate).all()
    assert kl_k3(new, new).item() == 0.0


def test_item_15_adaptive_controller_by_hand() -> None:
    kl = AdaptiveKL(0.2, target=6.0, horizon=1000)
    kl.update(6.6, n=100)  # error .1: ×(1 + .1·.1)
    assert kl.value == pytest.approx(0.202)
    kl.update(60.0, n=100)  # error 9, clipped to .2: ×1.02
    assert kl.value == pytest.approx(0.20604)
    kl.update(0.0, n=500)  # error −1, clipped to −.2: ×(1 − .2·.5)
    assert kl.value == pytest.approx(0.185436)
    kl.update(float("inf"), n=100)
    assert kl.value == pytest.approx(0.185436 * 1.02)
    with pytest.raises(ValueError, match="NaN"):
        kl.update(float("nan"), n=1)
    with pytest.raises(ValueError, match="target=0"):
        AdaptiveKL(0.2, target=0, horizon=1)


def test_item_15_controller_state_survives_a_checkpoint() -> None:
    first = AdaptiveKL(0.2, target=6.0, horizon=1000)
    first.update(9.0, 64)
    second = AdaptiveKL(0.2, target=6.0, horizon=1000)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for controller in (first, second):
        controller.update(7.0, 64)
    assert first.value == second.value
    fixed = FixedKL(0.05)
    fixed.update(1e9, 64)
    assert fixed.value == 0.05
    fixed.load_state_dict({"value": 0.1})
    assert fixed.value == 0.1


# ---------------------------------------------------------------- running moments


def test_item_12_running_moments_by_hand() -> None:
    moments = RunningMoments()
    assert (moments.mean, moments.std, moments.count) == (0.0, 1.0, 0.0)
    moments.update(f64(1, 3))
    assert (moments.mean, moments.std) == (2.0, pytest.approx(math.sqrt(2)))
    moments.update(f64(5, 7))  # all four: mean 4, variance 20/3
    assert (moments.mean, moments.count) == (4.0, 4.0)
    assert moments.std == pytest.approx(2.5819888975)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=5),
    st.floats(-1e6, 1e6),
)
def test_item_12_batches_add_up_to_one_pass(batches: list[list[float]], shift: float) -> None:
    moments = RunningMoments()
    for b in batches:
        moments.update(f64(*b) + shift)
    everything = f64(*[x for b in batches for x in b]) + shift
    assert moments.count == everything.numel()
    if everything.numel() > 1 and everything.std() > 1e-3:
        assert moments.mean == pytest.approx(everything.mean().item(), rel=1e-9, abs=1e-7)
        assert moments.std == pytest.approx(everything.std().item(), rel=1e-5)


def test_item_12_running_moments_span_all_ranks_and_checkpoints() -> None:
    data = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 3 + 2
    single = RunningMoments()
    single.update(data)

    def one_rank(shard: torch.Tensor, reduce) -> dict[str, float]:
        moments = RunningMoments()
        moments.update(shard, reduce=reduce)
        return moments.state_dict()

    for state in Ranks([data[:3], data[3:3], data[3:]]).run(one_rank):
        restored = RunningMoments()
        restored.load_state_dict(json.loads(json.dumps(state)))
        assert restored.state_dict() == pytest.approx(single.state_dict())


def test_item_12_running_moments_refuse_poison_and_divide_safely() -> None:
    moments = RunningMoments()
    moments.update(f64(4, 4, 4))
    assert moments.std == 1.0
    with pytest.raises(ValueError, match="not finite"):
        moments.update(f64(1, float("nan")))
    assert moments.mean == 4.0
