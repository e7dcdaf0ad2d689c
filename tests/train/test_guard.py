"""A bad step is stopped before it spoils the weights, or left out and counted."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from align.config import load_config
from align.run import run
from align.train import sft
from align.train.guard import Guard, TrainingDiverged

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

STEPS = ("--train.max_steps", 14, "--train.save_steps", 3, "--train.eval_strategy", "no",
         "--train.logging_steps", 1, "--train.resume", "never", *runs.CONSTANT)  # fmt: skip


# The rule


def fed(*losses: float, factor: float = 5.0, go_on: bool = True) -> Guard:
    guard = Guard(go_on, factor)
    for loss in losses:
        guard.loss(loss, 1, None)
    return guard


@pytest.mark.parametrize(
    ("loss", "refused"), [(2.0, False), (10.0, False), (10.1, True), (math.nan, True)]
)
def test_a_spike_is_a_loss_above_five_times_the_median(loss, refused):
    guard = fed(*[2.0] * 10)
    guard.loss(loss, 11, None)
    assert guard.skip_next is refused


def test_the_median_of_few_steps_judges_nobody():
    guard = fed(*[2.0] * 9, 1000.0)
    assert not guard.skip_next


def test_small_losses_may_double():
    # Five times 0.01 is less than a nat above it: no spike.
    guard = fed(*[0.01] * 10, 0.9)
    assert not guard.skip_next
    guard.loss(1.1, 12, None)
    assert guard.skip_next


def test_a_refused_loss_does_not_move_the_median():
    guard = fed(*[2.0] * 10, 100.0, 100.0)
    assert set(guard.recent) == {2.0}


def test_only_the_last_fifty_steps_count():
    guard = fed(*[100.0] * 50, *[2.0] * 50)
    guard.loss(11.0, 101, None)
    assert guard.skip_next


def test_a_negative_or_zero_level_knows_no_spike():
    assert not fed(*[-1.0] * 10, 50.0).skip_next


def test_where_a_step_cannot_be_left_out_it_stops_and_does_not_offer_it():
    guard = fed(*[2.0] * 10)
    guard.can_skip = False
    with pytest.raises(TrainingDiverged, match=r"the loss is nan\. No checkpoint yet\.") as error:
        guard.loss(math.nan, 11, None)
    assert "continue" not in str(error.value)


def test_a_guard_comes_back_from_its_state():
    guard = fed(*[2.0] * 60)
    guard.skipped = 3
    again = Guard(True, 5.0)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert (list(again.recent), again.skipped) == ([2.0] * 50, 3)
    again.loss(11.0, 61, None)
    assert again.skip_next


# Whole runs: a batch that is bad at one step


class Spoiled(sft.TokenTrainer):
    """SFT whose loss is multiplied by `factor` at step `at`; `gradient` spoils only that."""

    at, factor, gradient = 12, math.nan, False

    def objective(self, model, batch):
        result = super().objective(model, batch)
        if self.state.global_step + 1 != self.at or not model.training:
            return result
        if not self.gradient:
            return result._replace(total=result.total * self.factor)
        result.total.register_hook(lambda grad: grad * self.factor)
        return result


def spoil(monkeypatch, **how):
    kind = type("Spoiled", (Spoiled,), how)
    monkeypatch.setattr(sft, "TokenTrainer", kind)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"factor": math.nan}, "the loss is nan"),
        ({"factor": 1e3}, "the loss jumped to 6"),
        ({"factor": math.nan, "gradient": True}, "the gradient is not finite"),
        ({"factor": math.inf, "gradient": True}, "the gradient is not finite"),
    ],
)
def test_a_bad_step_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys, how, what
):
    spoil(monkeypatch, **how)
    assert run("sft", runs.arguments(tmp_path / "run", *STEPS)) == 1
    error = capsys.readouterr().err
    assert f"step 12: {what}" in error
    good = tmp_path / "run" / "checkpoint-9"
    assert f"The last good checkpoint is {good}" in error
    assert "Lower train.learning_rate" in error
    assert not (tmp_path / "run" / "final").exists()
    manifest = runs.manifest(tmp_path / "run")
    assert manifest["finished"] is False
    assert what in manifest["error"]
    # The bad step was not taken: the weights of the step before are all that was logged.
    assert [r["step"] for r in runs.figures(tmp_path / "run")][-1] == 11


def not_a_number(how):
    return not math.isfinite(how["factor"]) and "gradient" not in how


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{"factor": math.nan}, {"factor": 1e3}, {"factor": math.nan, "gradient": True}],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_continue_leaves_the_step_out_and_counts_it(tmp_path, monkeypatch, how, accumulation):
    class Watch(Spoiled):
        seen: dict = {}  # noqa: RUF012

        def log(self, logs, start_time=None):
            if "loss" in logs:
                self.seen[self.state.global_step] = {
                    n: p.detach().clone() for n, p in self.policy.module.named_parameters()
                }
            super().log(logs, start_time)

    monkeypatch.setattr(sft, "TokenTrainer", type("Spoiled", (Watch,), how))
    folder = runs.train(
        "sft", tmp_path / "run", *STEPS, "--train.loss_spike", "{action: continue}",
        "--train.gradient_accumulation_steps", accumulation,
    )  # fmt: skip
    rows = {row["step"]: row for row in runs.figures(folder) if "loss" in row}
    assert "skipped_steps" not in rows[11]
    assert [rows[n]["skipped_steps"] for n in (12, 13, 14)] == [1, 1, 1]
    # Null where it is not a number, and a number again at the next line.
    assert [rows[n]["loss"] is None for n in (11, 12, 13)] == [False, not_a_number(how), False]
    assert ("perplexity" in rows[12]) is (rows[12]["loss"] is not None and rows[12]["loss"] < 50)
    before, after, later = (Watch.seen[n] for n in (11, 12, 13))
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not all(torch.equal(before[n], later[n]) for n in before)
    assert all(torch.isfinite(x).all() for x in runs.weights(folder).values())


def test_a_resumed_run_judges_by_the_losses_from_before(tmp_path, monkeypatch, capsys):
    options = (*STEPS, "--train.resume", "auto", "--train.max_steps")
    runs.train("sft", tmp_path / "run", *options, 11)
    spoil(monkeypatch, factor=1e3)
    assert run("sft", runs.arguments(tmp_path / "run", *options, 14)) == 1
    assert "step 12: the loss jumped" in capsys.readouterr().err


def test_deepspeed_cannot_leave_a_step_out(monkeypatch, tmp_path):
    """It takes the step inside its backward pass; the refusal comes before a model is loaded."""
    from align.config_errors import UserError
    from align.train.runner import training_arguments

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    options = ("--train.loss_spike", "{action: continue}")
    config = load_config("sft", runs.arguments(tmp_path, *options))
    with pytest.raises(UserError, match=r"train\.loss_spike\.action='continue' cannot be used"):
        training_arguments(config)


# PPO


def test_ppo_leaves_out_a_step_that_is_not_finite(tmp_path, monkeypatch):
    from align.train import ppo

    class Bad(ppo.PpoTrainer):
        seen: dict = {}  # noqa: RUF012

        def objective(self, model, batch):
            result = super().objective(model, batch)
            if self.state.global_step == 1:
                return result._replace(total=result.total * math.nan)
            return result

        def log(self, logs, start_time=None):
            if "loss" in logs:
                self.seen[self.state.global_step] = {
                    n: p.detach().clone() for n, p in self.policy.module.named_parameters()
                }
            super().log(logs, start_time)

    monkeypatch.setattr(ppo, "PpoTrainer", Bad)
    folder = runs.train("ppo", tmp_path / "run", "--train.max_steps", 3)
    rows = [row for row in runs.figures(folder) if "loss" in row]
    assert [row.get("skipped_steps") for row in rows] == [None, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False]
    assert all(torch.equal(Bad.seen[1][n], Bad.seen[2][n]) for n in Bad.seen[1])
    assert not all(torch.equal(Bad.seen[2][n], Bad.seen[3][n]) for n in Bad.seen[2])
    assert all(torch.isfinite(x).all() for x in runs.weights(folder).values())


def test_ppo_has_no_spikes(tmp_path, monkeypatch):
    """Its loss has no level: any finite loss is taken."""
    from align.train import ppo

    class Jump(ppo.PpoTrainer):
        def objective(self, model, batch):
            result = super().objective(model, batch)
            return result._replace(total=result.total + 1e3 * (self.state.global_step == 11))

    monkeypatch.setattr(ppo, "PpoTrainer", Jump)
    folder = runs.train("ppo", tmp_path / "run", "--train.max_steps", 13, "--train.eval_steps", 13)
    rows = [row for row in runs.figures(folder) if "loss" in row]
    assert rows[11]["loss"] > 1.0
    assert not any("skipped_steps" in row for row in rows)


def test_the_loss_scaler_may_leave_out_some_steps_but_not_all():
    from types import SimpleNamespace

    from align.train.guard import SCALER_STEPS, GuardCallback

    model = torch.nn.Linear(1, 1)
    model.weight.grad = torch.full((1, 1), math.inf)
    trainer = SimpleNamespace(
        guard=Guard(False, 5.0), model=model, is_deepspeed_enabled=False,
        accelerator=SimpleNamespace(scaler=object()), _last_checkpoint=lambda: None,
    )  # fmt: skip
    callback, state = GuardCallback(trainer), SimpleNamespace(global_step=0)
    args = SimpleNamespace(output_dir="no-run")
    for _ in range(SCALER_STEPS):
        callback.on_pre_optimizer_step(args, state, None)
    with pytest.raises(TrainingDiverged, match="the gradient is not finite"):
        callback.on_pre_optimizer_step(args, state, None)
    trainer.accelerator.scaler = None  # without one the first is one too many
    with pytest.raises(TrainingDiverged):
        GuardCallback(trainer).on_pre_optimizer_step(args, state, None)
