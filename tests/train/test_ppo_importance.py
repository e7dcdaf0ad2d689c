"""Samples of another model than the one that is optimised: what ratios start from, and weights."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ppo_engines
import ppo_models as tiny

from align.config_schema import Rollout
from align.train.importance import correct

# Three tokens: the sampler's log-probs differ from the trainer's by 0, 1 and −1 nats.
TRAINER, SAMPLER = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0])
NEAR = TRAINER + torch.tensor([0.006, 0.0, -0.006])  # a mean of 0.004
WEIGHTS = [1.0, 2.0, math.exp(-1)]  # e is cut to the cap of 2


def decided(sampled, mode="auto", staleness=0, elsewhere=True, reduce=lambda x: x, **options):
    given: Any = {"importance": mode, **options}
    settings = Rollout(**given)
    return correct(
        settings, TRAINER, sampled, staleness=staleness, elsewhere=elsewhere, reduce=reduce
    )


@pytest.mark.parametrize(
    ("sampled", "mode", "staleness", "elsewhere", "starts_from", "weighted"),
    [
        (SAMPLER, "auto", 0, False, "trainer", False),  # the model itself
        (NEAR, "auto", 0, True, "sampler", False),
        (SAMPLER, "auto", 0, True, "trainer", True),
        (NEAR, "auto", 1, True, "trainer", True),
        (SAMPLER, "off", 0, True, "trainer", False),
        (NEAR, "off", 0, True, "sampler", False),
        (SAMPLER, "off", 1, True, "trainer", False),
        (NEAR, "truncated", 0, True, "trainer", True),
        (SAMPLER, "truncated", 0, False, "trainer", True),
    ],
)
def test_what_ratios_start_from(sampled, mode, staleness, elsewhere, starts_from, weighted):
    found = decided(sampled, mode, staleness, elsewhere)
    assert torch.equal(found.old_logps, TRAINER if starts_from == "trainer" else sampled)
    assert (found.weights is not None) == weighted
    assert ("importance/mean" in found.figures) == weighted
    if elsewhere:
        assert found.figures["staleness"] == (staleness, 1.0)
    elif mode == "auto":
        assert found.figures == {}


def test_weights_and_figures_by_hand():
    found = decided(SAMPLER)
    assert found.weights is not None
    assert found.weights.tolist() == pytest.approx(WEIGHTS)
    total, count = found.figures["importance/mean"]
    assert (float(total), count) == (pytest.approx(sum(WEIGHTS)), 3.0)
    total, count = found.figures["importance/clipped"]
    assert (float(total), count) == (1.0, 3.0)
    assert found.largest == pytest.approx(math.e)


def test_the_threshold_is_a_mean_over_tokens():
    # 0.012 nats over three tokens: 0.004 each.
    assert decided(NEAR, importance_gap=0.0041).weights is None
    assert decided(NEAR, importance_gap=0.0039).weights is not None


def test_all_ranks_decide_together():
    """The other rank: one token, 1 nat apart; or a hundred that agree."""
    far = decided(NEAR, reduce=lambda x: x + torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert far.weights is not None
    many = torch.tensor([0.0, 300.0], dtype=torch.float64)
    assert decided(SAMPLER, reduce=lambda x: x + many).weights is None  # 2 nats over 303


def test_a_gap_that_is_no_number_is_large():
    assert decided(torch.tensor([-1.0, float("nan"), -2.0])).weights is not None


# In a trainer


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """A trainer with its first rollout, sampled by an engine that holds weights of its own."""

    def make(engine=None, **sections):
        engines = ppo_engines.inject(monkeypatch, **(engine or {}))
        made = tiny.build(tmp_path, **sections)
        rollout = made.collector.collect(0)
        return made, rollout, made.meter.flush(), engines[0]

    return make


def test_a_sampler_that_agrees_gives_the_old_log_probs_itself(collected):
    made, rollout, figures, engine = collected()
    samples = made.collector.draws.due(0).samples
    assert (
        tiny.flat(rollout, "old_logps").tolist()
        == torch.tensor([x for row in samples.logps for x in row]).tolist()
    )
    assert "importance" not in rollout.groups[0].extras
    assert figures["staleness"] == 0
    assert figures["sampler_gap"] < 1e-5
    assert not [name for name in figures if name.startswith("importance/")]
    assert [what for what, *_ in engine.log] == ["sync", "sample", "sample"]


def test_a_sampler_that_differs_is_weighted(collected):
    made, rollout, figures, engine = collected({"noise": 0.5})
    trainer, sampler = [], []
    for prompt, ids in tiny.completions(rollout):
        trainer += tiny.plain_logps(made.policy.module.lm, prompt, ids)
        sampler += tiny.plain_logps(engine.model, prompt, ids)
    assert tiny.flat(rollout, "old_logps").tolist() == pytest.approx(trainer, abs=1e-4)
    expected = [min(math.exp(a - b), 2.0) for a, b in zip(trainer, sampler, strict=True)]
    assert tiny.flat(rollout, "importance").tolist() == pytest.approx(expected, rel=1e-3)
    assert 0.05 < figures["sampler_gap"] < 1
    assert figures["importance/mean"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert figures["importance/max"] > figures["importance/mean"]
    assert 0 < figures["importance/clipped"] < 0.5
    # The reward's KL is of the policy, which has not moved, and not of the sampler.
    assert figures["kl/sum"] == pytest.approx(0, abs=1e-4)


def test_the_first_step_has_ratio_one_and_is_weighted(tmp_path, monkeypatch):
    ppo_engines.inject(monkeypatch, noise=0.2)
    weighted, made = tiny.gradient(tmp_path)
    row = made.state.log_history[0]
    assert row["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert row["approx_kl"] == pytest.approx(0, abs=1e-9)
    plain, _ = tiny.gradient(tmp_path, rollout={"importance": "off"})
    changed = {n for n in weighted if not torch.allclose(weighted[n], plain[n])}
    assert changed
    assert all(n.startswith("lm.") for n in changed)  # the critic's loss has no weights


@pytest.mark.parametrize(
    "cut",
    [
        {"train": {"per_device_train_batch_size": 3}},
        pytest.param({"policy": {"layout": "plain"}}, marks=pytest.mark.slow),
    ],
)
def test_item21_weights_do_not_depend_on_how_a_step_is_cut(tmp_path, monkeypatch, cut):
    ppo_engines.inject(monkeypatch, noise=0.2)
    whole, _ = tiny.gradient(tmp_path)
    parts, _ = tiny.gradient(tmp_path, **cut)
    size = torch.sqrt(sum((g.square().sum() for g in whole.values()), torch.zeros(())))
    for name, gradient in whole.items():
        assert ((parts[name] - gradient).abs().max() / size).item() < 1e-5, name
