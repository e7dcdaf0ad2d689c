"""The objectives against hand-worked numbers, gradients and invariances.

Most numbers come from one pair with β·Δ = ln 3, for σ(ln 3) = 3/4: −ln(3/4) = 0.28768207 and
−ln(1/4) = 1.38629436.
"""

from __future__ import annotations

import decimal
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align import losses
from align.losses import (
    LOSS_TYPES,
    REFERENCE_FREE,
    bradley_terry,
    center,
    dpo,
    log1mexp,
    orpo_odds,
    ppo_policy,
    ppo_value,
    sft,
)
from align.losses_dpo import BATCH_COUPLED, LABEL_SMOOTHED

LN3 = 1.0986122886681098
WIN, LOSE, EVEN = 0.2876820724517809, 1.3862943611198906, 0.6931471805599453


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, *expected: float, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, f64(*expected), atol=atol, rtol=0)


# The log-ratios are ln 3 and −ln 3, with β = ½.
PAIR = (f64(-4 + LN3), f64(-9 - LN3), f64(-4.0), f64(-9.0))


def smoothing_for(name: str) -> float:
    return 1e-2 if name == "exo" else 0.0


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sigmoid", {}, WIN),
        ("sigmoid", {"label_smoothing": 0.1}, 0.39754330),  # .9·.28768207 + .1·1.38629436
        ("sigmoid", {"target": 0.25}, 1.11164129),  # .25·.28768207 + .75·1.38629436
        # p = .25·.9 + .75·.1 = .3:  .3·.28768207 + .7·1.38629436
        ("sigmoid", {"target": 0.25, "label_smoothing": 0.1}, 1.05671067),
        ("hinge", {}, 0.0),  # 1 − ln 3 < 0
        ("hinge", {"target": 0.0}, 2.09861229),  # 1 + ln 3
        # means over 2 and 4 tokens: ln3/2 + ln3/4 = .82395922; minus 1/(2β) = 1; squared
        ("ipo", {}, 0.03099036),
        ("robust", {"label_smoothing": 0.1}, 0.15035554),  # (.9·.28768207 − .1·1.38629436)/.8
        ("exo", {"label_smoothing": 0.1}, 0.09233152),  # .75·ln(.75/.9) + .25·ln(.25/.1)
        # p = .5·.9 + .5·.1 = .5:  .75·ln 1.5 + .25·ln .5 = .30409883 − .17328680
        ("exo", {"label_smoothing": 0.1, "target": 0.5}, 0.13081204),
        ("apo_zero", {}, 0.73205081),  # 2·σ(−½·ln3) = 2/(1 + √3) = √3 − 1
        ("apo_down", {}, 0.88397460),  # σ(½·ln3) + 1 − ¾ = .63397460 + .25
        ("sppo", {}, 0.01944877),  # 2·(ln 3 − 1)², for ½/β = 1
        ("sppo", {"target": 0.5}, 2.41389792),  # 2·(ln 3)²: a tie asks for no change at all
        ("discopop", {"discopop_tau": 1.0}, 0.32192052),  # ¼·.28768207 + ¾·e^(−ln 3)
    ],
)
def test_dpo_by_hand(name: str, options: dict, expected: float) -> None:
    if "target" in options:
        options = {**options, "target": f64(options["target"])}
    loss = dpo(
        *PAIR,
        beta=0.5,
        loss_type=name,
        lengths_chosen=torch.tensor([2]),
        lengths_rejected=torch.tensor([4]),
        **options,
    )
    close(loss, expected, atol=1e-8)


def test_simpo_by_hand() -> None:
    # means −2/2 = −1 and −8/4 = −2, β·1 − γ = 2 − (2 − ln 3) = ln 3
    loss = dpo(
        f64(-2.0),
        f64(-8.0),
        None,
        None,
        beta=2.0,
        loss_type="simpo",
        gamma=2 - LN3,
        lengths_chosen=torch.tensor([2]),
        lengths_rejected=torch.tensor([4]),
    )
    close(loss, WIN)


def test_cpo_by_hand() -> None:
    # β·(−2 + 8) = ln 3; NLL of the chosen side 2/2 = 1, weighed by 0.5
    args = (f64(-2.0), f64(-8.0), None, None)
    loss = dpo(
        *args,
        beta=LN3 / 6,
        loss_type="cpo",
        cpo_alpha=0.5,
        lengths_chosen=torch.tensor([2]),
        lengths_rejected=torch.tensor([4]),
    )
    close(loss, WIN + 0.5)
    close(dpo(*args, beta=LN3 / 6, loss_type="cpo", cpo_alpha=0.0), WIN)
    with pytest.raises(ValueError, match="needs lengths_chosen"):
        dpo(*args, beta=1.0, loss_type="cpo")


def test_aot_sorts_over_the_batch() -> None:
    # Policy gaps (ln 3, 0) against reference gaps (0, ln 3): row by row ±ln 3, sorted 0 and 0.
    zero = f64(0.0, 0.0)
    args = (f64(LN3, 0.0), zero, f64(0.0, LN3), zero)
    close(dpo(*args, beta=1.0, loss_type="sigmoid"), WIN, LOSE)
    close(dpo(*args, beta=1.0, loss_type="aot"), EVEN, EVEN)
    # Rewards: chosen (ln 3, 0), rejected (−ln 3, 0). Rows 2·ln 3 and 0; sorted ln 3 and ln 3.
    args = (f64(LN3, 0.0), f64(-LN3, 0.0), zero, zero)
    close(dpo(*args, beta=1.0, loss_type="aot_unpaired"), WIN, WIN)
    halves = [
        dpo(*(x[i : i + 1] for x in args), beta=1.0, loss_type="aot_unpaired") for i in (0, 1)
    ]
    assert abs(torch.cat(halves).mean().item() - WIN) > 0.1, "split batches differ, as documented"


def batch(rows: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(-5 * torch.rand(rows, dtype=torch.float64, generator=g) - 1 for _ in range(4))


def lengths(rows: int = 5) -> dict[str, torch.Tensor]:
    return {
        "lengths_chosen": torch.arange(1, rows + 1),
        "lengths_rejected": torch.arange(rows, 0, -1) + 2,
    }


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_gradients_equal_finite_differences(name: str) -> None:
    chosen, rejected, *reference = batch()
    options = {} if name in BATCH_COUPLED else {"target": f64(1.0, 0.9, 0.5, 0.2, 0.0)}

    def loss(c: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return dpo(
            c,
            r,
            *reference,
            beta=0.7,
            loss_type=name,
            label_smoothing=0.1 if name in LABEL_SMOOTHED else 0.0,
            **lengths(),
            **options,
        )

    inputs = (chosen.requires_grad_(), rejected.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    assert loss(*inputs).shape == (5,)


@pytest.mark.parametrize("name", [n for n in LOSS_TYPES if n not in BATCH_COUPLED])
def test_swapping_sides_and_target_changes_nothing(name: str) -> None:
    c, r, rc, rr = batch()
    n = lengths()
    target = f64(1.0, 0.8, 0.5, 0.3, 0.0)
    options = {"beta": 0.3, "loss_type": name, "label_smoothing": smoothing_for(name)}
    forward = dpo(c, r, rc, rr, target=target, **n, **options)
    swapped = dpo(
        r,
        c,
        rr,
        rc,
        target=1 - target,
        lengths_chosen=n["lengths_rejected"],
        lengths_rejected=n["lengths_chosen"],
        **options,
    )
    torch.testing.assert_close(forward, swapped)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_row_order_and_shift_invariance(name: str) -> None:
    c, r, rc, rr = batch()
    options = {"beta": 0.3, "loss_type": name, "label_smoothing": smoothing_for(name)}
    loss = dpo(c, r, rc, rr, **lengths(), **options)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = dpo(
        *(x[order] for x in (c, r, rc, rr)),
        **{k: v[order] for k, v in lengths().items()},
        **options,
    )
    if name in BATCH_COUPLED:
        torch.testing.assert_close(moved.mean(), loss.mean())
    else:
        torch.testing.assert_close(moved, loss[order])
    if name not in REFERENCE_FREE:  # what policy and reference have in common cancels
        shifted = dpo(c + 3, r + 3, rc + 3, rr + 3, **lengths(), **options)
        torch.testing.assert_close(shifted, loss)


@pytest.mark.parametrize("name", LOSS_TYPES)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_float32_stays_finite_at_any_size(name: str, size: float, sign: float) -> None:
    c = torch.tensor([sign * size, -1.0]).requires_grad_()
    r = torch.tensor([-sign * size, -1.0]).requires_grad_()
    zero = torch.zeros(2)
    one = torch.ones(2)
    loss = dpo(
        c,
        r,
        zero,
        zero,
        beta=0.5,
        loss_type=name,
        label_smoothing=smoothing_for(name),
        lengths_chosen=one,
        lengths_rejected=one,
    )
    loss.sum().backward()
    for x in (loss, c.grad, r.grad):
        assert torch.isfinite(x).all(), x


@pytest.mark.parametrize("name", [n for n in LOSS_TYPES if n not in {"ipo", "sppo", "discopop"}])
def test_a_wider_gap_never_costs_more(name: str) -> None:
    gaps = torch.linspace(-8, 8, 33, dtype=torch.float64)
    one = torch.ones(33)
    zero = torch.zeros_like(gaps)
    loss = dpo(
        gaps,
        -gaps,
        zero,
        zero,
        beta=0.1,
        loss_type=name,
        label_smoothing=smoothing_for(name),
        lengths_chosen=one,
        lengths_rejected=one,
    )
    assert (loss.diff() <= 1e-12).all()


def test_aliases_name_the_same_loss() -> None:
    for alias, name in losses.ALIASES.items():
        options = {"beta": 0.3, "label_smoothing": smoothing_for(name), **lengths()}
        torch.testing.assert_close(
            dpo(*batch(), loss_type=alias, **options), dpo(*batch(), loss_type=name, **options)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmoidal"}, "unknown loss_type 'sigmoidal'; known: .*sigmoid"),
        ({"beta": 0.0}, "beta=0.0 must be > 0"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "no effect on loss_type='hinge'"),
        ({"label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
        ({"loss_type": "exo"}, "needs label_smoothing > 0"),
        ({"loss_type": "ipo"}, "needs lengths_chosen and lengths_rejected"),
        ({"loss_type": "aot", "target": f64(0.5)}, "cannot take soft targets"),
        ({"ref_chosen": None}, "needs reference log-probs"),
    ],
)
def test_dpo_refuses_what_it_could_not_use(options: dict, message: str) -> None:
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    arguments = {**dict(zip(names, PAIR, strict=True)), "beta": 0.5, "loss_type": "sigmoid"}
    with pytest.raises(ValueError, match=message):
        dpo(**{**arguments, **options})


def test_sft_by_hand() -> None:
    close(sft(f64(-1.0, -2.0)), 1.0, 2.0)
    close(sft(f64(-1.0, -2.0), f64(0.5, 0.0)), 0.5, 0.0)


def test_bradley_terry_by_hand() -> None:
    close(bradley_terry(f64(2 + LN3), f64(2.0)), WIN)
    close(bradley_terry(f64(2 + LN3), f64(2.0), margin=f64(LN3)), EVEN)
    # ½·.28768207 + ½·1.38629436
    close(bradley_terry(f64(LN3), f64(0.0), target=f64(0.5)), 0.8369882167858358)
    # Whoever wins has to lead by ln 3, and nobody leads: −ln σ(−ln 3) = −ln ¼ either way.
    close(bradley_terry(f64(1.0), f64(1.0), target=f64(0.3), margin=LN3), LOSE)


def test_bradley_terry_swap_shift_and_gradient() -> None:
    c, r, *_ = batch()
    t, m = f64(1.0, 0.7, 0.5, 0.1, 0.0), f64(0.0, 0.5, 1.0, 2.0, 3.0)
    loss = bradley_terry(c, r, target=t, margin=m)
    torch.testing.assert_close(loss, bradley_terry(r, c, target=1 - t, margin=m))
    torch.testing.assert_close(loss, bradley_terry(c + 7, r + 7, target=t, margin=m))
    inputs = (c.requires_grad_(), r.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: bradley_terry(a, b, target=t, margin=m), inputs)
    extreme = bradley_terry(torch.tensor([-1e5, 1e5]), torch.tensor([1e5, -1e5]))
    assert extreme.tolist() == [2e5, 0.0]


def test_center_by_hand() -> None:
    close(center(f64(-3.0, 0.5)), 9.0, 0.25)
    assert torch.autograd.gradcheck(center, (f64(-3.0, 0.5).requires_grad_(),))


def test_orpo_odds_by_hand() -> None:
    # p = ½ and ¼: odds 1 and ⅓, log ratio ln 3
    loss, log_odds = orpo_odds(f64(math.log(0.5)), f64(math.log(0.25)))
    close(log_odds, LN3)
    close(loss, WIN)
    assert torch.autograd.gradcheck(
        lambda a, b: orpo_odds(a, b)[0],
        (f64(-0.01, -0.6, -3.0).requires_grad_(), f64(-2.0, -0.8, -0.1).requires_grad_()),
    )


@pytest.mark.parametrize("p", [0.0, -1e-45, -1e-9, -5e-8, -0.693147, -0.6931472, -80.0, -1e4])
@pytest.mark.parametrize("q", [0.0, -1e-9, -1.0, -1e4])
def test_orpo_is_finite_up_to_certainty(p: float, q: float) -> None:
    chosen, rejected = torch.tensor([p]).requires_grad_(), torch.tensor([q]).requires_grad_()
    loss, log_odds = orpo_odds(chosen, rejected)
    loss.sum().backward()
    for x in (loss, log_odds, chosen.grad, rejected.grad):
        assert torch.isfinite(x).all(), (p, q, x)


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -1e-3, -0.6931, -0.6932, -1.0, -20.0, -200.0])
def test_log1mexp_equals_fifty_digits(x: float) -> None:
    with decimal.localcontext(prec=120):
        exact = float((1 - decimal.Decimal(x).exp()).ln())
    torch.testing.assert_close(log1mexp(f64(x)), f64(exact), rtol=1e-13, atol=0)


# ratio 1.5 or 0.5; A = ±2
RATIOS = f64(math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5))
SIGNS = f64(2.0, -2.0, 2.0, -2.0)


def test_item_20_policy_loss_by_hand() -> None:
    loss, stats = ppo_policy(RATIOS, f64(0.0, 0.0, 0.0, 0.0), SIGNS, clip_range=0.2)
    # max(−3, −2.4), max(3, 2.4), max(−1, −1.6), max(1, 1.6)
    close(loss, -2.4, 3.0, -1.0, 1.6)
    close(stats["clip_frac_high"], 1, 0, 0, 0)
    close(stats["clip_frac_low"], 0, 0, 0, 1)
    close(stats["clip_frac"], 1, 0, 0, 1)
    close(stats["ratio"], 1.5, 1.5, 0.5, 0.5)
    # 0.5 − ln 1.5 and −0.5 + ln 2
    close(stats["approx_kl"], 0.0945348919, 0.0945348919, 0.1931471806, 0.1931471806, atol=1e-9)
    assert not any(s.requires_grad for s in stats.values())


def test_item_20_asymmetric_range_by_hand() -> None:
    loss, stats = ppo_policy(
        RATIOS, torch.zeros(4).double(), SIGNS, clip_range=0.2, clip_range_high=0.6
    )
    close(loss, -3.0, 3.0, -1.0, 1.6)  # 1.5 < 1.6 is no longer clipped
    close(stats["clip_frac_high"], 0, 0, 0, 0)


def test_item_20_dual_clip_by_hand() -> None:
    loss, stats = ppo_policy(RATIOS, torch.zeros(4).double(), SIGNS, clip_range=0.2, dual_clip=1.25)
    close(loss, -2.4, 2.5, -1.0, 1.6)  # the second is capped at 1.25·2
    close(stats["clip_frac_dual"], 0, 1, 0, 0)


def test_item_20_log_ratio_is_clamped() -> None:
    logps = torch.tensor([500.0, -500.0]).requires_grad_()
    loss, stats = ppo_policy(logps, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip_range=0.2)
    loss.sum().backward()
    # e^20 = 485165195.4, e^−20 = 2.06e-9
    torch.testing.assert_close(stats["ratio"], torch.tensor([485165195.4, 2.0611537e-9]))
    assert torch.isfinite(loss).all()
    assert logps.grad.tolist() == [0.0, 0.0]


def test_item_7_first_minibatch_has_ratio_one() -> None:
    logps = torch.randn(50).requires_grad_()
    advantages = torch.randn(50)
    loss, stats = ppo_policy(logps, logps.detach().clone(), advantages, clip_range=0.2)
    assert (stats["ratio"] == 1).all()
    for name in ("approx_kl", "clip_frac", "clip_frac_low", "clip_frac_high"):
        assert (stats[name] == 0).all()
    loss.sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)  # the plain policy gradient


def test_item_21_losses_are_per_token() -> None:
    g = torch.Generator().manual_seed(1)
    new, old, adv = (torch.randn(10, generator=g) for _ in range(3))
    whole, _ = ppo_policy(new, old, adv, clip_range=0.2)
    halves = (slice(3), slice(3, 10))
    parts = [ppo_policy(new[s], old[s], adv[s], clip_range=0.2)[0] for s in halves]
    assert torch.equal(whole, torch.cat(parts))


def test_ppo_gradients_equal_finite_differences() -> None:
    old, adv, returns = batch(6)[0], f64(1, -1, 2, -2, 0.5, -0.5), batch(6)[1]
    new = (old + f64(0.1, -0.1, 0.6, 0.7, -0.6, -0.7)).requires_grad_()
    options = {"clip_range": 0.2, "clip_range_high": 0.3, "dual_clip": 1.5}
    assert torch.autograd.gradcheck(lambda x: ppo_policy(x, old, adv, **options)[0], (new,))
    assert torch.autograd.gradcheck(lambda x: ppo_value(x, old, returns, clip=0.2)[0], (new,))


def test_item_19_value_loss_by_hand() -> None:
    # v_old 1 and v 3, so clip(v) = 1.2. R 2: max(1, .64)/2. R 4: max(1, 7.84)/2.
    args = (f64(3.0, 3.0), f64(1.0, 1.0), f64(2.0, 4.0))
    loss, stats = ppo_value(*args, clip=0.2)
    close(loss, 0.5, 3.92)
    close(stats["value_clip_frac"], 0.0, 1.0)
    loss, stats = ppo_value(*args, clip=None)
    close(loss, 0.5, 0.5)
    close(stats["value_clip_frac"], 0.0, 0.0)


def test_gradients_reach_only_the_trained_side() -> None:
    new, old, adv = (torch.randn(3).requires_grad_() for _ in range(3))
    policy, _ = ppo_policy(new, old, adv, clip_range=0.2)
    value, _ = ppo_value(new, old, adv, clip=1.0)
    (policy + value).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert adv.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"clip_range": 1.0}, "clip_range=1.0"),
        ({"clip_range": 0.2, "clip_range_high": 0.0}, "clip_range_high=0.0"),
        ({"clip_range": 0.2, "dual_clip": 1.0}, "dual_clip=1.0"),
    ],
)
def test_ppo_policy_refuses_bad_ranges(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ppo_policy(f64(0.0), f64(0.0), f64(1.0), **options)
    with pytest.raises(ValueError, match="clip=0"):
        ppo_value(f64(0.0), f64(0.0), f64(1.0), clip=0.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(-30, 30), st.floats(-5, 5), st.floats(0.01, 0.9), st.floats(0.01, 2.0))
def test_clipping_only_ever_makes_the_loss_larger(
    log_ratio: float, advantage: float, low: float, high: float
) -> None:
    loss, stats = ppo_policy(
        f64(log_ratio), f64(0.0), f64(advantage), clip_range=low, clip_range_high=high
    )
    unclipped = -advantage * stats["ratio"]
    assert (loss >= unclipped).all()
    assert (stats["clip_frac"] == (loss > unclipped)).all() or abs(advantage) < 1e-300
