"""A rollout of two completions and a step over it, every number worked out by hand.

The models know no context: a token has the same probability wherever it stands, and the critic says
the same everywhere. Tokens are a, b and the end token e.

                    a       b       e     log π/π_ref
    π (samples)    1/2     1/4     1/8      a: ln 2
    π_ref          1/4     1/2     1/8      b: −ln 2
    π' (updated)  .65     .175     1/8      e: 0

Completion 1 is "a b e" with score 1, completion 2 "a e" with score 0. kl_coef = 0.1, γ = 1, λ = ½,
the critic says ½ (and 0.9 when updated). 0.1·ln 2 = 0.06931472.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import ppo_models as tiny

from align.groups import TokenGroup
from align.rollout import Samples

A, B = 300, 301
PENALTY = 0.06931471805599453


def constant(probabilities: dict[int, float]) -> torch.Tensor:
    """Output weights (V, 1) of a model with these probabilities; other tokens share the rest."""
    rest = (1 - sum(probabilities.values())) / (tiny.VOCAB - len(probabilities))
    return torch.tensor([math.log(probabilities.get(i, rest)) for i in range(tiny.VOCAB)])


@pytest.fixture(scope="module")
def end():
    return tiny.tokenizer().eos_token_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory, end):
    """A model whose last hidden state is (1, 0, 0, 0) always, with the probabilities of π."""
    shape = GPT2Config(
        vocab_size=tiny.VOCAB, n_embd=4, n_layer=1, n_head=1, n_positions=128,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.lm_head.weight[:, 0] = constant({A: 1 / 2, B: 1 / 4, end: 1 / 8})
    place = tmp_path_factory.mktemp("constant")
    model.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def made(tmp_path, folder, end):
    def build(**ppo):
        settings = {"kl_coef": 0.1, "gamma": 1.0, "lam": 0.5, "score_clip": None, **ppo}
        trainer = tiny.build(tmp_path, policy={"path": str(folder)}, ppo=settings)
        module = trainer.policy.module
        with torch.no_grad():
            module.reference.lm_head.weight[:, 0] = constant({A: 1 / 4, B: 1 / 2, end: 1 / 8})
            module.critic.score.weight[0, 0] = 0.5
        return trainer

    return build


def collected(trainer, end):
    """The rollout of the two completions, as `Collector.collect` makes it from its samples."""
    completions = [[A, B, end], [A, end]]
    groups = [TokenGroup([7, 8, 9], [completions[0]]), TokenGroup([5], [completions[1]])]
    logps = [[math.log(1 / 2), math.log(1 / 4), math.log(1 / 8)],
             [math.log(1 / 2), math.log(1 / 8)]]  # fmt: skip
    prompts = [g.prompt_ids for g in groups]
    samples = Samples(prompts, completions, logps, [True, True], ["ab", "a"])
    measured = trainer.collector.measure(groups)
    trainer.collector._finish(groups, samples, torch.tensor([1.0, 0.0]), measured)
    return groups


def flat(groups, name):
    return [x for g in groups for row in g.extras[name] for x in row]


# Rewards   −.0693  .0693  1  |  −.0693  0
# δ = r + V' − V with V = ½ and 0 beyond the end: −.0693  .0693  .5  |  −.0693  −.5
# A_t = δ_t + ½·A_{t+1}:
A13 = 0.5
A12 = PENALTY + 0.25  # .31931472
A11 = -PENALTY + 0.159657359  # .09034264
A22 = -0.5
A21 = -PENALTY - 0.25  # −.31931472
# Their mean is .09034264/5 = .01806853. Squares: .00816179 + .10196189 + .25 + .10196189 + .25
# = .71208557; less 5·.01806853² = .00163236; over 4: .17761330, whose root is .42144193.
MEAN, DEVIATION = 0.01806853, 0.42144193
WHITE = [0.17149246, 0.71479893, 1.14353005, -0.80054489, -1.22927655]


def test_item10_item11_item17_item18_the_rollout_by_hand(made, end):
    trainer = made()
    groups = collected(trainer, end)
    log = math.log
    assert flat(groups, "old_logps") == pytest.approx(
        [log(1 / 2), log(1 / 4), log(1 / 8), log(1 / 2), log(1 / 8)], abs=1e-5
    )
    assert flat(groups, "old_values") == pytest.approx([0.5] * 5)
    # R = A + V
    assert flat(groups, "returns") == pytest.approx(
        [0.59034264, 0.81931472, 1.0, 0.18068528, 0.0], abs=1e-5
    )
    assert pytest.approx([(a - MEAN) / DEVIATION for a in (A11, A12, A13, A21, A22)]) == WHITE
    assert flat(groups, "advantages") == pytest.approx(WHITE, abs=1e-5)
    figures = trainer.meter.flush()
    expected = {
        "kl/sum": 0.34657359,  # (ln 2 − ln 2 + 0) and (ln 2 + 0), over two
        "kl/token": 0.13862944,  # ln 2 over five tokens
        "score/mean": 0.5,
        "score/std": 0.5,
        "reward/shaped": (1.0 - PENALTY) / 2,
        "length/mean": 2.5,
        "eos_rate": 1.0,
        "kl_coef": 0.1,
        # The critic says the same everywhere, so R − V varies as R does.
        "explained_variance": 0.0,
        "sampler_gap": 0.0,
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name


def test_item11_after_eos_by_hand(made, end):
    """One more position: r = 1 | 0 there, and the critic says ½ there too.

    δ: −.0693  .0693  0  .5  |  −.0693  0  −.5
    A: −.0693 + ½·.19431472 = .02784264, .06931472 + .125 = .19431472, .25, .5 |
       −.0693 − .125 = −.19431472, −.25, −.5
    """
    trainer = made(score_at="after_eos")
    groups = collected(trainer, end)
    assert flat(groups, "returns") == pytest.approx(
        [0.52784264, 0.69431472, 0.75, 0.30568528, 0.25], abs=1e-5
    )
    assert [x for g in groups for x in g.extras["end_returns"]] == pytest.approx([1.0, 0.0])
    assert [x for g in groups for x in g.extras["old_end_values"]] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("mode", "returns"),
    [
        # The second completion did not finish. −1 instead of its 0: δ = −1.5, so A = −1.5 and
        # −.0693 − .75; one less than 0: the same number here.
        ("set", [-0.31931472, -1.0]),
        ("subtract", [-0.31931472, -1.0]),
    ],
)
def test_item09_missing_eos_by_hand(made, end, mode, returns):
    value = -1.0 if mode == "set" else 1.0
    trainer = made(missing_eos={"mode": mode, "value": value})
    groups = [TokenGroup([7], [[A, B, end]]), TokenGroup([5], [[A, end]])]
    samples = Samples([[7], [5]], [[A, B, end], [A, end]], None, [True, False], ["ab", "a"])
    measured = trainer.collector.measure(groups)
    samples.logps = [[0.0] * 3, [0.0] * 2]
    trainer.collector._finish(groups, samples, torch.tensor([1.0, 0.0]), measured)
    assert groups[1].extras["returns"][0] == pytest.approx(returns, abs=1e-5)


def update(trainer, end):
    """π' and the updated critic."""
    module = trainer.policy.module
    with torch.no_grad():
        module.lm.lm_head.weight[:, 0] = constant({A: 0.65, B: 0.175, end: 1 / 8})
        module.critic.score.weight[0, 0] = 0.9


def test_item19_item20_the_step_by_hand(made, end):
    trainer = made(vf_coef=0.25)
    groups = collected(trainer, end)
    update(trainer, end)
    trainer.meter.flush()
    result = trainer.objective(trainer.policy.module, trainer.policy.collate(groups))
    means = {n: float(total) / float(count) for n, (total, count) in result.stats.items()}
    # Ratios: a 1.3, b 0.7, e 1. The loss of a token is max(−A·r, −A·clip(r, .8, 1.2)):
    policy = [
        -1.2 * WHITE[0],  # A > 0, r above 1.2: clipped
        -0.7 * WHITE[1],  # A > 0, r below 0.8: −.7A is the larger one, not clipped
        -WHITE[2],
        -1.3 * WHITE[3],  # A < 0, r above 1.2: −1.3A is the larger one, not clipped
        -WHITE[4],
    ]
    assert sum(policy) / 5 == pytest.approx(0.08412, abs=1e-4)
    # Value 0.9, clipped to ½ + .2 = .7. The larger of (.9 − R)² and (.7 − R)²:
    value = [
        0.09588767,  # .9 − .59034264 = .30965736 against .10965736
        0.01423600,  # .08068528² = .0065 against .11931472²: clipped
        0.09,  # .01 against .3²: clipped
        0.51741366,  # .71931472²
        0.81,
    ]
    # r − 1 − ln r: .3 − .26236426 (twice), −.3 + .35667494, 0 (twice)
    kl = [0.03763574, 0.05667494, 0.0, 0.03763574, 0.0]
    expected = {
        "policy_loss": sum(policy) / 5,
        "value_loss": 0.5 * sum(value) / 5,  # .15275373
        "approx_kl": sum(kl) / 5,  # .02638928
        "clip_frac": 1 / 5,
        "clip_frac_high": 1 / 5,
        "clip_frac_low": 0.0,
        "value_clip_frac": 2 / 5,
    }
    for name, number in expected.items():
        assert means[name] == pytest.approx(number, abs=1e-4), name
    assert trainer.meter.flush()["ratio/max"] == pytest.approx(1.3, abs=1e-4)
    total = 5 * (expected["policy_loss"] + 0.25 * expected["value_loss"])
    assert float(result.total.detach()) == pytest.approx(total, abs=1e-3)


def test_item21_the_gradient_of_the_critic_by_hand(made, end):
    """d/dw of ½·(w − R)²/5 over five tokens at w = ½ is (½ − mean R)/1 = ½ − .51806853."""
    trainer = made(vf_coef=1.0)
    groups = collected(trainer, end)
    module = trainer.policy.module
    result = trainer.objective(module, trainer.policy.collate(groups))
    (result.total / 5).backward()
    assert module.critic.score.weight.grad[0, 0].item() == pytest.approx(-0.01806853, abs=1e-5)
    # And of the policy's logit weight of token a: −Σ A·∂log π/∂w over its tokens and all others.
    # ∂log π(y)/∂w_a = 1[y = a] − ½; Σ A is 0 (whitened), so only the ones are left.
    grad = module.lm.lm_head.weight.grad[A, 0].item()
    assert grad == pytest.approx(-(WHITE[0] + WHITE[3]) / 5, abs=1e-5)
