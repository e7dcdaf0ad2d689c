"""Sampling an update ahead: who samples when, what a checkpoint holds, errors, signals, rewards."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ppo_engines
import ppo_models as tiny

from align.checkpoint_files import COMPLETE
from align.config import StopRequested, UserError, load_config
from align.config_errors import Failed
from align.config_parse import names_of
from align.config_schema import Rollout
from align.report import verdict
from align.report.glossary import GROUPS
from align.train import prefetch
from align.train.prefetch import Drawn
from align.train.resume import settings_of
from align.train.runner import callbacks, run_training

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml")]
# Updates of two steps; seven steps are three updates and the half of a fourth.
PPO = {"ppo_epochs": 2, "num_minibatches": 1, "kl_target": 0.4, "kl_horizon": 50}
TIMING = ("time/", "tokens_per_s", "train_", "runtime", "per_second")


def trained(folder, stop_after=None, more=(), rollout=None, data=None, **train):
    """A run to its end, or to `stop_after`, as the recipe makes it; a checkpoint at every step."""
    settings = tiny.config(
        folder,
        ppo=PPO,
        data=data or {},
        rollout={"async": 1, **(rollout or {})},
        train={"max_steps": 7, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 1.0,
               "resume": "never", **train},
        eval={"temperature": 1.0},
    )  # fmt: skip
    made = tiny.trainer(settings, callbacks=[*callbacks(settings), *more])
    if stop_after:

        class Stop(tiny.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == stop_after
                return control

        made.add_callback(Stop())
    try:
        run_training(made, settings)
    finally:
        made.collector.draws.close()
    return made


def rows(folder):
    text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in r.items() if not any(t in k for t in TIMING)} for r in found]


def same_weights(one, other):
    named = dict(other.policy.module.named_parameters())
    return all(torch.equal(p, named[n]) for n, p in one.policy.module.named_parameters())


# The key


def test_the_key_is_async_everywhere(tmp_path, capsys):
    from align.config_help import help_text

    config = load_config("ppo", [*SMOKE, "--rollout.async", "1"])
    assert config.rollout.async_ == 1
    assert config.to_dict()["rollout"]["async"] == 1
    assert "async_" not in config.to_yaml()
    assert "async" in names_of(Rollout)
    assert settings_of(config)["rollout.async"] == 1
    assert "--rollout.async " in help_text("ppo")
    file = tmp_path / "again.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config("ppo", ["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rollout.asink", "1"], r"rollout\.asink=1 is not .* Did you mean 'rollout\.async'"),
        (["--rollout.async_", "1"], r"rollout\.async_=1 is not .* Did you mean 'rollout\.async'"),
        (["--rollout.async", "2"], r"rollout\.async=2 is above the largest allowed value 1"),
        (["--rollout.async", "true"], r"rollout\.async=true is not a whole number"),
        (["--rollout.importance_cap", "0.5"], r"rollout\.importance_cap=0\.5 is below"),
        (["--rollout.importance", "on"], r"rollout\.importance='on' is not one of the choices"),
        (["--rollout.importance_gap", "-1"], r"rollout\.importance_gap=-1\.0 is below"),
    ],
)  # fmt: skip
def test_wrong_keys_and_values_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        load_config("ppo", [*SMOKE, *words])


def test_an_engine_on_the_same_device_is_not_asked_to_sample_ahead():
    from align.config_checks import _ppo_rules

    config = load_config("ppo", [*SMOKE, "--rollout.async", "1"])
    config.rollout.engine = "vllm_colocate"
    with pytest.raises(UserError, match=r"rollout\.async=1 gains nothing with .*vllm_colocate"):
        _ppo_rules(config)


# The order of things


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the model itself, and what it sampled: (update of the weights, its sampler)."""
    seen = []
    patch = pytest.MonkeyPatch()
    opened = prefetch.HFEngine.sampling

    def noted(self, **overrides):
        weights = torch.cat(
            [p.detach().flatten() for p in self.trainer.policy.module.lm.parameters()]
        )
        seen.append((self.version, self.trainer.state.global_step, weights.double().sum().item()))
        return opened(self, **overrides)

    patch.setattr(prefetch.HFEngine, "sampling", noted)
    folder = tmp_path_factory.mktemp("whole")
    made = trained(folder)
    patch.undo()
    return made, folder, seen


def test_an_update_is_sampled_with_the_weights_that_the_one_before_begins_with(whole):
    _, folder, seen = whole
    # Rollouts 0 and 1 before the first step, 2 and 3 at the start of updates 1 and 2; none for a
    # fifth update.
    assert [(version, step) for version, step, _ in seen] == [(0, 0), (0, 0), (1, 2), (2, 4)]
    assert len({weights for *_, weights in seen}) == 3
    assert [r["staleness"] for r in rows(folder) if "staleness" in r] == [0, 1, 1, 1]


def test_stale_samples_are_weighted_and_fresh_ones_are_not(whole):
    _, folder, _ = whole
    updates = [r for r in rows(folder) if "staleness" in r]
    assert updates[0]["sampler_gap"] < 1e-5
    assert "importance/mean" not in updates[0]
    for row in updates[1:]:
        assert row["sampler_gap"] > 1e-4
        assert 0.5 < row["importance/mean"] < 1.5
        assert row["importance/max"] >= 1
        assert 0 <= row["importance/clipped"] < 0.5
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in ("staleness", "importance/mean", "importance/max", "importance/clipped"):
        assert f"`{name}`" in documented
        assert any(name in section for section in GROUPS.values())


def test_the_reports_verdict_does_not_take_age_for_a_wrong_sampler():
    curves = {"score/mean": [(0.0, 0.0), (1.0, 1.0)], "sampler_gap": [(0.0, 1e-6), (1.0, 0.1)]}
    said = [text for _, text in verdict.judge("ppo", curves).findings]
    assert any("sampler_gap" in text for text in said)
    curves["staleness"] = [(0.0, 0.0), (1.0, 1.0)]
    said = [text for _, text in verdict.judge("ppo", curves).findings]
    assert not any("sampler_gap" in text for text in said)


def test_a_thread_and_the_model_itself_make_the_same_run(whole, tmp_path, monkeypatch):
    made, folder, _ = whole
    engines = ppo_engines.inject(monkeypatch)
    other = trained(tmp_path)
    assert same_weights(made, other)
    assert rows(tmp_path) == rows(folder)
    log = engines[0].log
    assert log[:3] == [
        ("sync", 0, "MainThread"), ("sample", 0, "MainThread"), ("sample", 0, "align-sampling"),
    ]  # fmt: skip
    assert log[3:] == [
        ("sync", 1, "MainThread"), ("sample", 1, "align-sampling"),
        ("sync", 2, "MainThread"), ("sample", 2, "align-sampling"),
    ]  # fmt: skip
    assert engines[0].closed == 1


def test_optimising_goes_on_while_a_thread_samples(tmp_path, monkeypatch):
    """A sample takes half a second at least, and steps of the update take place meanwhile."""
    engines = ppo_engines.inject(monkeypatch, delay=0.5)
    drawing = []

    class Watch(tiny.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            drawing.append(engines[0].drawing.is_set())

    trained(tmp_path, more=[Watch()], save_strategy="no", max_steps=3)
    assert drawing[0]
    assert not drawing[2]  # the last update has no next


# Checkpoints


@pytest.mark.parametrize("at", [3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("threaded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_equal_half_the_steps_and_resume_bit_for_bit(
    whole, tmp_path, monkeypatch, at, threaded
):
    """Stops in the middle of an update, and between two."""
    if threaded:
        ppo_engines.inject(monkeypatch, delay=0.1)
    trained(tmp_path, stop_after=at)
    state = torch.load(tmp_path / "run" / f"checkpoint-{at}" / "ppo_state_0.pt")
    assert state["ahead"]["update"] == 2
    assert state["ahead"]["version"] == 1
    resumed = trained(tmp_path, resume="auto")
    made, folder, _ = whole
    assert same_weights(made, resumed)
    assert rows(tmp_path) == rows(folder)


@pytest.mark.slow
def test_a_changed_setting_is_refused_on_auto_and_taken_from_a_path(tmp_path):
    trained(tmp_path, stop_after=3)
    with pytest.raises(UserError, match=r"rollout\.async"):
        trained(tmp_path, resume="auto", rollout={"async": 0})
    path = str(tmp_path / "run" / "checkpoint-3")
    trained(tmp_path, resume=path, rollout={"async": 0})
    last = [r for r in rows(tmp_path) if r.get("step", 0) > 3 and "sampler_gap" in r]
    # What was drawn ahead is dropped: nothing is stale, and the model itself samples.
    assert last
    assert all(r["sampler_gap"] < 1e-5 and "staleness" not in r for r in last)


def test_a_run_that_begins_to_sample_ahead_at_a_resume_draws_what_it_lacks(tmp_path):
    trained(tmp_path, stop_after=3, rollout={"async": 0})
    state = tmp_path / "run" / "checkpoint-3" / "ppo_state_0.pt"
    found = torch.load(state)
    assert found.pop("ahead") is None
    torch.save(found, state)  # as a version without rollout.async wrote it
    (state.parent / COMPLETE).unlink()  # it holds the file's digest
    trained(tmp_path, resume=str(state.parent))
    stale = [(r["step"], r["staleness"]) for r in rows(tmp_path) if "staleness" in r]
    assert stale == [(5, 0), (7, 1)]


def test_samples_of_another_update_are_not_used(tmp_path):
    made = tiny.build(tmp_path, rollout={"async": 1})
    draws = made.collector.draws
    held = draws.due(3)
    draws.ahead.put(held)
    assert draws.ahead.get(3) is held
    assert draws.ahead.get(4) is None
    assert draws.due(4).update == 4
    assert Drawn.from_state(held.state_dict()) == held


# Evaluation


def test_an_evaluation_does_not_disturb_what_is_being_drawn(tmp_path, monkeypatch):
    engines = ppo_engines.inject(monkeypatch, delay=0.1)
    data = {"validation_fraction": 0.25}
    plain = trained(tmp_path, data=data, max_steps=5, save_strategy="no")
    (tmp_path / "two").mkdir()
    often = trained(tmp_path / "two", data=data, max_steps=5, save_strategy="no", eval_steps=1,
                    eval_strategy="steps", eval_on_start=True)  # fmt: skip
    assert same_weights(plain, often)
    # An evaluation hands over the newest weights: five of a step, and one before the first.
    assert (
        len([x for x in engines[1].log if x[0] == "sync"])
        >= 6
        > len([x for x in engines[0].log if x[0] == "sync"])
    )
    scores = [r["eval_score/mean"] for r in rows(tmp_path / "two") if "eval_score/mean" in r]
    assert len(set(scores)) > 1


# Errors and signals


def test_an_error_in_the_thread_ends_the_run_with_its_state(tmp_path, monkeypatch):
    engines = ppo_engines.inject(monkeypatch)
    build = prefetch.make_engine

    def failing(trainer):
        engine: Any = build(trainer)
        engine.fails_at = 1
        return engine

    monkeypatch.setattr(prefetch, "make_engine", failing)
    with pytest.raises(
        Failed, match=r"the sampler has gone away 采样器已断开.*Saved .*checkpoint-4"
    ):
        trained(tmp_path, save_steps=100)
    assert engines[0].closed == 1
    # The samples of update 2 are missing: the run goes on with fresh ones.
    monkeypatch.setattr(prefetch, "make_engine", build)
    resumed = trained(tmp_path, resume="auto")
    assert resumed.state.global_step == 7
    stale = [(r["step"], r["staleness"]) for r in rows(tmp_path) if "staleness" in r]
    assert stale == [(1, 0), (3, 1), (5, 0), (7, 1)]


def test_a_signal_stops_a_thread_that_would_sample_for_ever(tmp_path, monkeypatch):
    build = ppo_engines.CopyEngine

    def stuck(trainer):
        engine = build(trainer)
        engine.stuck_at = 1
        return engine

    monkeypatch.setattr(prefetch, "make_engine", stuck)
    sent = []

    class Send(tiny.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:  # the next rollout is due, and its thread is stuck
                timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGTERM))
                timer.start()
                sent.append(time.monotonic())

    monkeypatch.setattr("align.train.watch.asked_to_stop", lambda: False)
    with pytest.raises(StopRequested, match=r"SIGTERM; saved .*checkpoint-4"):
        trained(tmp_path, more=[Send()], save_steps=100)
    assert time.monotonic() - sent[0] < 30
    state = torch.load(tmp_path / "run" / "checkpoint-4" / "ppo_state_0.pt")
    assert state["ahead"] is None
    assert state["rollout"]["update"] == 1
    monkeypatch.setattr(prefetch, "make_engine", build)
    assert trained(tmp_path, resume="auto").state.global_step == 7


def test_a_failed_reward_keeps_what_was_drawn_ahead(tmp_path, whole):
    """The samples of the rollout that could not be scored are scored by the resumed run."""
    made, _, _ = whole
    reward = tmp_path / "reward.py"
    reward.write_text(
        "from pathlib import Path\n"
        "def score(prompts, completions):\n"
        "    calls = Path(__file__).with_name('calls')\n"
        "    n = int(calls.read_text() if calls.exists() else 0) + 1\n"
        "    calls.write_text(str(n))\n"
        "    if n == 3:\n"
        "        raise ConnectionError('no answer 没有回答')\n"
        "    return [len(text) / 10 for text in completions]\n",
        encoding="utf-8",
    )
    settings = tiny.config(
        tmp_path, ppo=PPO, rollout={"async": 1}, eval={"temperature": 1.0},
        rewards=[{"kind": "function", "path": f"{reward}:score"}],
        train={"max_steps": 7, "save_strategy": "steps", "save_steps": 100, "max_grad_norm": 1.0,
               "resume": "auto"},
    )  # fmt: skip
    first = tiny.trainer(settings, callbacks=callbacks(settings))
    with pytest.raises(Failed, match="没有回答"):
        run_training(first, settings)
    state = torch.load(tmp_path / "run" / "checkpoint-4" / "ppo_state_0.pt")
    assert state["ahead"]["update"] == 2
    resumed = tiny.trainer(settings, callbacks=callbacks(settings))
    run_training(resumed, settings)
    assert same_weights(made, resumed)


def test_closing_gives_up_what_is_being_drawn(tmp_path, monkeypatch):
    engines = ppo_engines.inject(monkeypatch)
    made = tiny.build(tmp_path, rollout={"async": 1}, train={"max_steps": 9})
    draws = made.collector.draws
    draws.sync(0)
    engines[0].stuck_at = 0
    draws.follow(0)
    assert engines[0].drawing.wait(10)
    draws.close()
    assert not engines[0].drawing.is_set()
    assert engines[0].closed == 1
