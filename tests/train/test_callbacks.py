"""metrics.jsonl, progress, signals, early stopping, the best checkpoint."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align.files import write_atomic
from align.run import run
from align.train import runner, sft
from align.train.callbacks import MetricsWriter, Progress, StopOnSignal, plain
from align.train.meter import Meter
from align.train.resume import COMPLETE

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs


def state(step: int = 0, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=10, is_world_process_zero=True, **more)


def not_strict(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


def strict(line: str) -> dict[str, Any]:
    """Parse as a parser does that knows no NaN."""
    return json.loads(line, parse_constant=not_strict)


# metrics.jsonl


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1, 1), (0.5, 0.5), (True, True), ("a", "a"), (None, None), (math.nan, None),
        (math.inf, None), (-math.inf, None), (np.float32(0.5), 0.5), (np.int64(3), 3.0),
        (torch.tensor(0.25), 0.25), (torch.tensor(math.nan), None), ([1], "[1]"),
    ],
)  # fmt: skip
def test_what_a_value_becomes(value, written):
    assert plain(value) == written
    strict(json.dumps(plain(value)))


def test_lines_are_strict_json_with_the_step_first(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.on_log(None, state(3), None, logs={"loss": math.nan, "评分": 1.0})
    line = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert line == '{"step": 3, "loss": null, "评分": 1.0}\n'


def test_other_ranks_write_nothing(tmp_path):
    other = state(3)
    other.is_world_process_zero = False
    writer = MetricsWriter(tmp_path)
    writer.on_log(None, other, None, logs={"loss": 1.0})
    writer.on_train_begin(None, other, None)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_that_starts_anew_drops_the_lines_of_a_lost_one(tmp_path):
    write_atomic(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 9}\n')
    MetricsWriter(tmp_path).on_train_begin(None, state(0), None)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_that_goes_on_keeps_what_came_before_its_checkpoint(tmp_path):
    rows = ['{"step": 0, "eval_loss": 9}', '{"step": 2, "loss": 1}', '{"step": 2, "eval_loss": 1}',
            '{"step": 2, "train_runtime": 3}', '{"step": 3, "loss": 1}',
            '{"step": 4, "lo']  # fmt: skip
    write_atomic(tmp_path / "metrics.jsonl", "\n".join(rows))
    MetricsWriter(tmp_path).on_train_begin(None, state(2), None)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == rows[:3]


def test_a_run_writes_one_line_a_log_step_and_an_evaluation(tmp_path):
    options = ("--train.max_steps", 5, "--train.logging_steps", 2, "--train.eval_steps", 4)
    folder = runs.train("dpo", tmp_path / "run", *options)
    rows = [strict(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    # At step 4 as asked, and at the end, whose weights are those of final/.
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 5]
    assert all(next(iter(row)) == "step" for row in rows)


def test_a_figure_is_the_mean_over_all_steps_since_the_last_line(tmp_path):
    options = ("--train.max_steps", 4, "--train.eval_strategy", "no", *runs.CONSTANT)
    each = runs.train("dpo", tmp_path / "each", *options)
    four = runs.train("dpo", tmp_path / "four", *options, "--train.logging_steps", 4)
    singles = [row for row in runs.figures(each) if "loss" in row]
    [line] = [row for row in runs.figures(four) if "loss" in row]
    for name in ("loss", "rewards/margins", "logps/chosen"):
        assert line[name] == pytest.approx(sum(r[name] for r in singles) / 4, rel=1e-4)
    assert line["tokens"] == singles[-1]["tokens"]


# The meter


def test_the_meter_weighs_by_counts_and_forgets():
    meter = Meter()
    meter.add({"accuracy": (torch.tensor(1.0), 1.0), "empty": (0.0, 0.0)})
    meter.add({"accuracy": (torch.tensor(1.0), 3.0)})
    meter.largest("ratio", 1.5)
    meter.largest("ratio", 1.2)
    assert meter.flush() == {"accuracy": 0.5, "ratio": 1.5}  # 2 of 4; without a count, no figure
    assert meter.flush() == {}


def test_the_meter_sums_in_float64():
    meter = Meter()
    for _ in range(1000):
        meter.add({"x": (torch.tensor(1e8 + 8, dtype=torch.float32), 1.0)})
    assert meter.flush()["x"] == 1e8 + 8


# Progress


def test_without_a_terminal_each_log_is_one_line(tmp_path, capsys):
    folder = runs.train("dpo", tmp_path / "run", "--train.max_steps", 4)
    out = capsys.readouterr().out
    shown = [line for line in out.splitlines() if line.startswith("dpo ")]
    logged = [row for row in runs.lines(folder) if "train_runtime" not in row]
    assert len(shown) == len(logged)
    assert shown[0].startswith("dpo 1/4  loss 0.6931  ")
    assert "\r" not in out
    assert "{'loss'" not in out  # the Trainer's own line


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = Progress("sft")
    bar.on_train_begin(None, state(0), None)
    bar.on_step_end(None, state(1), None)
    bar.on_log(None, state(1), None, logs={"loss": 1.25, "unwatched": 3.0})
    bar.on_log(None, state(1), None, logs={"eval_loss": 2.5})
    assert bar.bar.n == 1
    assert bar.bar.postfix == "loss=1.25"
    bar.on_train_end(None, state(1), None)
    assert bar.bar.disable or bar.bar.fp is not None
    captured = capsys.readouterr()
    assert "eval_loss 2.5" in captured.out + captured.err


def test_the_time_left_counts_from_where_the_run_went_on(capsys, monkeypatch):
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr("align.train.callbacks.time.monotonic", lambda: next(clock))
    bar = Progress("sft")
    bar.on_train_begin(None, state(5), None)
    bar.on_log(None, state(6), None, logs={"loss": 1.0})
    # One step took 10 s and four are left.
    assert capsys.readouterr().out == "sft 6/10  loss 1  (40 s left)\n"


# Signals


def test_a_signal_asks_for_a_checkpoint_and_an_end_and_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    watch, control = StopOnSignal(), SimpleNamespace()
    watch.on_train_begin(None, state(), control)
    watch.on_step_end(None, state(1), control)
    assert not hasattr(control, "should_save")
    signal.raise_signal(signal.SIGTERM)
    watch.on_step_end(None, state(2), control)
    assert (control.should_save, control.should_training_stop, watch.stopped) == (True, True, True)
    assert watch.received == "SIGTERM"
    watch.on_train_end(None, state(2), control)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    watch = StopOnSignal()
    thread = threading.Thread(target=watch.on_train_begin, args=(None, state(), None))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    watch.on_train_end(None, state(), None)


def test_a_stopped_run_logs_what_it_did_and_marks_its_checkpoint(tmp_path, monkeypatch):
    class Stopped(sft.TokenTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(sft, "TokenTrainer", Stopped)
    options = ("--train.max_steps", 9, "--train.save_steps", 9, "--train.logging_steps", 9)
    assert run("sft", runs.arguments(tmp_path / "run", *options)) == 75
    folder = tmp_path / "run"
    assert (folder / "checkpoint-3" / COMPLETE).is_file()
    assert [row["step"] for row in runs.figures(folder) if "loss" in row] == [3]
    assert not (folder / "final").exists()
    assert runs.manifest(folder)["stopped"] is True


# The best checkpoint


class Worsening(sft.TokenTrainer):
    """SFT whose held-out loss follows a script, by step."""

    script = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 5.0}  # noqa: RUF012

    def measure(self):
        return {**super().measure(), "loss": self.script[self.state.global_step]}


BEST = ("--train.max_steps", 10, "--train.eval_steps", 2, "--train.learning_rate", 1e-2,
        "--train.resume", "auto", *runs.CONSTANT)  # fmt: skip


def saved(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint, under the names of final/."""
    found = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
    return {f"model.safetensors:{n.removeprefix('lm.')}": x for n, x in found.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[n], b[n]) for n in a)


def test_early_stopping_ends_the_run_and_final_is_the_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "TokenTrainer", Worsening)
    options = (*BEST, "--train.early_stopping_patience", 2)
    folder = runs.train("sft", tmp_path / "run", *options)
    # Best at 4; worse at 6 and 8: two evaluations without improvement.
    assert [r["step"] for r in runs.figures(folder) if "eval_loss" in r] == [2, 4, 6, 8]
    final = runs.weights(folder)
    assert equal(final, saved(folder, 4))
    assert not equal(final, saved(folder, 8))
    assert runs.manifest(folder)["metrics"]["eval_loss"] == 1.0  # of the weights in final/
    # Started again, it has nothing to do.
    runs.train("sft", folder, *options)
    assert equal(runs.weights(folder), final)
    assert [r["step"] for r in runs.figures(folder) if "loss" in r][-1] == 8
    assert runs.manifest(folder)["metrics"]["eval_loss"] == 1.0


def test_patience_is_counted_over_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "TokenTrainer", Worsening)
    options = (*BEST, "--train.early_stopping_patience", 2)
    runs.train("sft", tmp_path / "run", *options, "--train.max_steps", 6)  # one without improvement
    folder = runs.train("sft", tmp_path / "run", *options)
    assert [r["step"] for r in runs.figures(folder) if "loss" in r][-1] == 8
    assert equal(runs.weights(folder), saved(folder, 4))


def test_the_best_checkpoint_is_loaded_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "TokenTrainer", Worsening)
    options = (*BEST, "--train.save_total_limit", 1, "--train.load_best_model_at_end", "true")
    folder = runs.train("sft", tmp_path / "run", *options)
    assert [r["step"] for r in runs.figures(folder) if "eval_loss" in r] == [2, 4, 6, 8, 10]
    kept = {p.name for p in folder.glob("checkpoint-*")}
    assert kept == {"checkpoint-4", "checkpoint-10"}  # the best, and where the run can go on
    assert equal(runs.weights(folder), saved(folder, 4))


def test_without_it_final_is_the_last_step(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "TokenTrainer", Worsening)
    folder = runs.train("sft", tmp_path / "run", *BEST, "--train.save_steps", 2)
    assert equal(runs.weights(folder), saved(folder, 10))
    assert runs.manifest(folder)["metrics"]["eval_loss"] == 5.0


def test_a_lora_run_saves_the_best_adapter(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "TokenTrainer", Worsening)
    folder = runs.train(
        "sft", tmp_path / "run", *BEST, "--policy.lora", "{r: 4}",
        "--train.load_best_model_at_end", "true",
    )  # fmt: skip
    adapter = load_file(folder / "final" / "adapter" / "adapter_model.safetensors")
    best = load_file(folder / "checkpoint-4" / "model.safetensors")
    plain_names = {n.removeprefix("lm.").replace(".default.", "."): x for n, x in best.items()}
    assert equal(adapter, plain_names)


def test_a_ppo_run_keeps_the_checkpoint_with_the_highest_score(tmp_path, monkeypatch):
    from align.train import ppo

    class Scored(ppo.PpoTrainer):
        def measure(self):
            scores = {0: 9.0, 2: 1.0, 4: 3.0, 6: 2.0, 8: 2.5}
            return {**super().measure(), "score/mean": scores[self.state.global_step]}

    monkeypatch.setattr(ppo, "PpoTrainer", Scored)
    options = ("--train.max_steps", 8, "--train.eval_steps", 2, "--train.learning_rate", 1e-3,
               "--train.early_stopping_patience", 2)  # fmt: skip
    folder = runs.train("ppo", tmp_path / "run", *options)
    best = load_file(folder / "checkpoint-4" / "model.safetensors")
    final = load_file(folder / "final" / "model.safetensors")
    assert equal(final, {n[3:]: x for n, x in best.items() if n.startswith("lm.")})
    assert runs.manifest(folder)["metrics"]["eval_score/mean"] == 3.0


def test_a_reward_model_says_the_accuracy_of_the_weights_it_has(tmp_path, monkeypatch):
    from align.train import reward

    class Scripted(reward.RewardTrainer):
        def measure(self):
            step = self.state.global_step
            return {**super().measure(), "loss": [0.3, 0.1, 0.2][step // 2 - 1],
                    "accuracy": step / 10}  # fmt: skip

    monkeypatch.setattr(reward, "RewardTrainer", Scripted)
    options = ("--train.max_steps", 6, "--train.eval_steps", 2,
               "--train.load_best_model_at_end", "true")  # fmt: skip
    folder = runs.train("reward", tmp_path / "run", *options)
    contract = json.loads((folder / "final" / "contract.json").read_text())
    assert contract["held_out_accuracy"] == 0.4


def test_last_figures_takes_the_newest_of_each():
    history = [{"step": 1, "loss": 3.0, "note": "x"}, {"step": 2, "loss": 2.0}, {"eval_loss": 1.0}]
    trainer: Any = SimpleNamespace(state=SimpleNamespace(log_history=history))
    assert runner.last_figures(trainer) == {"loss": 2.0, "eval_loss": 1.0}
