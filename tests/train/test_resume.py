"""N steps == N/2 steps + resume, bit for bit; which checkpoint a run goes on from, and when not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.config import load_config
from align.run import run
from align.train.resume import COMPLETE, find_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import small_runs as runs

LORA = ("--policy.lora", "{r: 4}")
METHODS = [
    pytest.param("pretrain", ("--pretrain.dropout", 0.1), id="pretrain-dropout"),
    pytest.param("sft", (), id="sft"),
    pytest.param(
        "sft", (*LORA, "--policy.lora.dropout", 0.1), id="sft-lora-dropout", marks=pytest.mark.slow
    ),
    pytest.param("reward", (), id="reward"),
    pytest.param("dpo", (), id="dpo"),
    pytest.param("dpo", LORA, id="dpo-lora", marks=pytest.mark.slow),
    pytest.param("dpo", ("--policy.reference", "cached"), id="dpo-cached", marks=pytest.mark.slow),
    pytest.param("orpo", (), id="orpo"),
]
# 26 or so examples, 4 a step: step 8 is in the second epoch.
EIGHT = ("--train.per_device_train_batch_size", 2, "--train.gradient_accumulation_steps", 2,
         "--train.resume", "auto", *runs.CONSTANT)  # fmt: skip


def same(a: Path, b: Path) -> None:
    """Two runs ended with the same weights, to the last bit."""
    first, second = runs.weights(a), runs.weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def in_parts(method: str, folder: Path, whole: int, stops: tuple, *extra: object) -> None:
    """A run of `whole` steps beside one that stops in between has the same weights and lines."""
    same_options = (*EIGHT, "--train.eval_steps", 1, "--train.save_steps", 1, *extra)
    runs.train(method, folder / "whole", *same_options, "--train.max_steps", whole)
    for steps in (*stops, whole):
        runs.train(method, folder / "parts", *same_options, "--train.max_steps", steps)
        assert not list(folder.glob("*.old-*"))  # going on sets nothing aside
    same(folder / "whole", folder / "parts")
    both = [runs.figures(folder / part) for part in ("whole", "parts")]
    # Their "epoch" is the share of max_steps, which the parts have less of.
    if method == "ppo" or "--pretrain.streaming" in extra:
        both = [[{k: v for k, v in row.items() if k != "epoch"} for row in x] for x in both]
    assert both[0] == both[1]
    assert [r["step"] for r in runs.figures(folder / "parts") if "loss" in r] == [
        *range(1, whole + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("method", "extra"), METHODS)
def test_half_and_half_is_the_whole(tmp_path, method, extra):
    in_parts(method, tmp_path, 8, (4,), *extra)


def test_many_stops_over_the_end_of_an_epoch(tmp_path):
    # 21 examples, 4 a step: an epoch is 6 steps.
    in_parts("sft", tmp_path, 8, (1, 5, 6, 7))


PPO = [
    pytest.param(
        ("--ppo.kl_target", 0.5, "--ppo.kl_horizon", 100, "--ppo.score_norm", "mean_std",
         "--ppo.critic_warmup_updates", 1),
        id="controller-statistics-warm-up",
    ),
    pytest.param((*LORA, "--ppo.critic", "adapter", "--ppo.target_kl", 1e-4), id="adapter"),
    pytest.param(
        ("--ppo.ptx_coef", 0.3, "--ppo.ema_decay", 0.9, "--ppo.score_at", "after_eos"),
        id="ptx-ema",
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("extra", PPO)
def test_ppo_stops_at_every_kind_of_place(tmp_path, extra):
    # Two passes of two minibatches: after step 1 in a pass, after 2 between passes, after 4
    # between updates.
    places = ("--ppo.ppo_epochs", 2, "--ppo.num_minibatches", 2)
    in_parts("ppo", tmp_path, 5, (1, 2, 4), *places, *extra)
    if "--ppo.ema_decay" in extra:
        averaged = [runs.weights(tmp_path / p, "final-ema") for p in ("whole", "parts")]
        assert all(torch.equal(averaged[0][n], averaged[1][n]) for n in averaged[0])


def test_samples_of_a_lost_part_are_replaced(tmp_path):
    in_parts("ppo", tmp_path, 3, (1,))
    files = [(tmp_path / part / "samples.jsonl").read_text() for part in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_finished_run_that_is_started_again_keeps_its_weights(tmp_path):
    options = (*EIGHT, "--train.max_steps", 2, "--train.save_steps", 2)
    for method in ("dpo", "ppo"):
        folder = runs.train(method, tmp_path / method, *options)
        before = runs.weights(folder)
        runs.train(method, folder, *options)
        after = runs.weights(folder)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert runs.manifest(folder)["finished"]


def test_other_micro_batches_go_on_when_the_step_is_the_same(tmp_path):
    shared = ("--train.resume", "auto", "--train.save_steps", 2, *runs.CONSTANT)
    cut = ("--train.per_device_train_batch_size", 4)
    fine = ("--train.per_device_train_batch_size", 1, "--train.gradient_accumulation_steps", 4,
            "--train.max_tokens_per_batch", 100)  # fmt: skip
    runs.train("sft", tmp_path / "a", *shared, *cut, "--train.max_steps", 4)
    runs.train("sft", tmp_path / "b", *shared, *cut, "--train.max_steps", 2)
    runs.train("sft", tmp_path / "b", *shared, *fine, "--train.max_steps", 4)
    first, second = runs.figures(tmp_path / "a"), runs.figures(tmp_path / "b")
    losses = [[row["loss"] for row in x if "loss" in row] for x in (first, second)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


# Which checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    """A run of two steps with a checkpoint after each; its folder."""
    options = ("--train.save_steps", 1, "--train.max_steps", 2, *runs.CONSTANT)
    return runs.train("sft", tmp_path / "run", *options)


def config_of(folder: Path, *extra: object):
    options = ("--train.resume", "auto", *runs.CONSTANT, *extra)
    return load_config("sft", runs.arguments(folder, *options))


def test_auto_takes_the_newest_complete_checkpoint(checkpoint):
    assert find_checkpoint(config_of(checkpoint)) == str(checkpoint / "checkpoint-2")
    (checkpoint / "checkpoint-2" / COMPLETE).unlink()
    assert find_checkpoint(config_of(checkpoint)) == str(checkpoint / "checkpoint-1")
    (checkpoint / "checkpoint-1" / COMPLETE).unlink()
    assert find_checkpoint(config_of(checkpoint)) is None


def test_numbers_not_names_decide_which_is_newest(checkpoint):
    (checkpoint / "checkpoint-2").rename(checkpoint / "checkpoint-10")
    (checkpoint / "checkpoint-1").rename(checkpoint / "checkpoint-9")
    assert find_checkpoint(config_of(checkpoint)) == str(checkpoint / "checkpoint-10")


def test_never_takes_none(checkpoint):
    assert find_checkpoint(config_of(checkpoint, "--train.resume", "never")) is None


def test_a_path_is_taken_whatever_the_settings(checkpoint):
    first = str(checkpoint / "checkpoint-1")
    config = config_of(checkpoint, "--train.resume", first, "--train.learning_rate", 1e-5)
    assert find_checkpoint(config) == first


def test_a_folder_that_is_no_checkpoint_is_refused(checkpoint, capsys):
    argv = runs.arguments(checkpoint, "--train.resume", checkpoint)
    assert run("sft", argv) == 2
    assert "is no checkpoint: trainer_state.json is missing" in capsys.readouterr().err


def test_an_unfinished_checkpoint_is_removed_and_its_steps_are_repeated(checkpoint, capsys):
    expected = runs.weights(checkpoint)
    unfinished = checkpoint / "checkpoint-2"
    (unfinished / COMPLETE).unlink()
    (unfinished / "optimizer.pt").write_bytes(b"half")
    options = ("--train.resume", "auto", "--train.save_steps", 1, "--train.max_steps", 2)
    runs.train("sft", checkpoint, *options, *runs.CONSTANT)
    assert "checkpoint-2 was not finished: removed" in capsys.readouterr().out
    again = runs.weights(checkpoint)
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    assert (unfinished / COMPLETE).is_file()


def test_the_marker_goes_before_a_checkpoint_is_overwritten(checkpoint, monkeypatch):
    """A run that is killed while it writes over a complete checkpoint leaves no marker there."""
    seen = []
    write = torch.save

    def watch(value, file, *args, **kwargs):
        if "checkpoint-2" in str(file):
            seen.append((checkpoint / "checkpoint-2" / COMPLETE).exists())
        return write(value, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", watch)
    first = checkpoint / "checkpoint-1"
    options = ("--train.save_steps", 1, "--train.max_steps", 2, *runs.CONSTANT)
    runs.train("sft", checkpoint, "--train.resume", first, *options)
    assert seen
    assert not any(seen)
    assert (checkpoint / "checkpoint-2" / COMPLETE).is_file()


# Other settings


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--train.learning_rate", 5e-4, "made with train.learning_rate=0.001, not 0.0005"),
        ("--data.max_length", 100, "made with data.max_length=160, not 100"),
        ("--policy.lora", "{r: 4}", "made with policy.lora.r=None, not 4 and 3 more"),
        ("--train.weight_decay", 0.1, "made with train.weight_decay=0.0, not 0.1"),
        ("--train.adam_beta2", 0.95, "made with train.adam_beta2=0.999, not 0.95"),
        ("--train.seed", 7, "made with train.seed=1, not 7"),
        ("--train.per_device_train_batch_size", 4, "made with 2 examples a step, not 4"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    checkpoint, capsys, option, value, said
):
    before = {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    argv = runs.arguments(checkpoint, *runs.CONSTANT, "--train.resume", "auto", option, value)
    assert run("sft", argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Use --train.resume never" in error or "or use --train.resume never" in error
    assert {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()} == before


def test_data_that_changed_under_its_name_is_refused(tmp_path, capsys):
    data = tmp_path / "sft.jsonl"
    original = (runs.ROOT / "recipes" / "data" / "sft.jsonl").read_text()
    data.write_text(original)
    options = ("--data.sft", data, "--train.resume", "auto", "--train.save_steps", 1)
    runs.train("sft", tmp_path / "run", *options, "--train.max_steps", 1)
    data.write_text(original + original.splitlines()[0] + "\n")
    assert run("sft", runs.arguments(tmp_path / "run", *options)) == 2
    assert f"but data.sft={str(data)!r} has changed" in capsys.readouterr().err
    data.write_text(original)
    runs.train("sft", tmp_path / "run", *options, "--train.max_steps", 2)


def test_a_model_that_changed_under_its_name_is_refused(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(runs.base(), model)
    options = ("--policy.path", model, "--train.resume", "auto", "--train.save_steps", 1,
               "--train.max_steps", 1)  # fmt: skip
    runs.train("dpo", tmp_path / "run", *options)
    shutil.rmtree(model)
    shutil.copytree(runs.sharp(), model)
    assert run("dpo", runs.arguments(tmp_path / "run", *options)) == 2
    assert f"but policy.path={str(model)!r} has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra",
    [
        ("--train.max_steps", 9),
        ("--train.logging_steps", 5, "--train.eval_steps", 1, "--train.save_steps", 3),
        ("--train.report_to", "tensorboard"),
        ("--dpo.beta", 0.5),  # not this method's
        ("--train.adam_beta2", 0.999),  # what it was all along
        ("--train.gradient_checkpointing", "true"),
    ],
)
def test_what_does_not_change_the_course_may_change(checkpoint, extra):
    assert find_checkpoint(config_of(checkpoint, *extra)) is not None


def test_resume_never_sets_the_earlier_run_aside(tmp_path, capsys):
    options = ("--train.max_steps", 1, "--train.save_steps", 1)
    folder = runs.train("sft", tmp_path / "run", *options)
    (folder / "notes.txt").write_text("mine")
    runs.train("sft", folder, *options)
    old = tmp_path / "run.old-1"
    assert f"the earlier run in {folder} is now in {old}" in capsys.readouterr().out
    assert (old / "checkpoint-1" / COMPLETE).is_file()
    assert (old / "metrics.jsonl").is_file()
    assert (folder / "notes.txt").is_file()  # not the run's
    assert [row["step"] for row in runs.figures(folder) if "loss" in row] == [1]


def test_lines_after_the_checkpoint_are_dropped_and_written_again(checkpoint):
    """As after a kill: step 2's lines and half of another are there, its checkpoint is not."""
    (checkpoint / "checkpoint-2" / COMPLETE).unlink()
    with (checkpoint / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss')
    options = ("--train.resume", "auto", "--train.save_steps", 1, "--train.max_steps", 2)
    runs.train("sft", checkpoint, *options, *runs.CONSTANT)
    assert [row["step"] for row in runs.figures(checkpoint) if "loss" in row] == [1, 2]


def test_a_marker_says_what_the_checkpoint_was_made_with(checkpoint):
    marker = json.loads((checkpoint / "checkpoint-2" / COMPLETE).read_text())
    assert marker["step"] == 2
    assert marker["world_size"] == 1
    assert marker["batch"] == 2
    assert marker["settings"]["train.learning_rate"] == 1e-3


# Real signals


LONG = ("--train.resume", "auto", "--train.max_steps", 24, "--train.save_steps", 3,
        "--train.eval_steps", 6, "--ppo.kl_target", 1.0)  # fmt: skip


def start(folder: Path) -> subprocess.Popen:
    """A PPO run of its own process."""
    env = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    words = [sys.executable, "recipes/ppo.py", *runs.arguments(folder, *LONG)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=runs.ROOT, env=env, **pipes)


def wait_for_step(running: subprocess.Popen, folder: Path, step: int) -> None:
    """Wait until a training step has been logged."""
    file, end = folder / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < end:
        found = file.read_text() if file.exists() else ""
        if f'{{"step": {step}, "loss"' in found:
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    raise AssertionError("no step was logged")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return runs.train("ppo", tmp_path_factory.mktemp("ppo") / "run", *LONG)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_with_75_and_the_same_command_goes_on(tmp_path, uninterrupted, number):
    running = start(tmp_path / "run")
    wait_for_step(running, tmp_path / "run", 4)
    running.send_signal(number)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 75
    assert f"stopped: {number.name}; saved" in err
    held = runs.manifest(tmp_path / "run")
    assert (held["finished"], held["stopped"], held["error"]) == (False, True, None)
    saved = Path(err.split("saved ")[1].strip())
    assert (saved / COMPLETE).is_file()
    stopped_at = json.loads((saved / COMPLETE).read_text())["step"]
    assert 4 <= stopped_at < 24
    assert not (tmp_path / "run" / "final").exists()
    again = start(tmp_path / "run")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert f"ppo {stopped_at + 1}/24" in out
    assert f"ppo {stopped_at}/24" not in out
    same(uninterrupted, tmp_path / "run")
    assert runs.figures(uninterrupted) == runs.figures(tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_complete_checkpoint(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    running = start(folder)
    wait_for_step(running, folder, 8)  # two steps after checkpoint-6
    running.kill()
    running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    # As if the kill had come while the next one was being written.
    newest = max(int(p.parent.name[11:]) for p in folder.glob(f"checkpoint-*/{COMPLETE}"))
    shutil.copytree(folder / f"checkpoint-{newest}", folder / f"checkpoint-{newest + 3}")
    (folder / f"checkpoint-{newest + 3}" / COMPLETE).unlink()
    again = start(folder)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert f"checkpoint-{newest + 3} was not finished: removed" in out
    assert f"ppo {newest + 1}/24" in out
    same(uninterrupted, folder)
    assert runs.figures(uninterrupted) == runs.figures(folder)


def test_the_speed_after_a_resume_is_that_of_the_resumed_steps(checkpoint, monkeypatch):
    """The tokens of the steps before it took none of its time."""
    now = iter(range(1000))
    monkeypatch.setattr("align.train.base.time", SimpleNamespace(monotonic=lambda: next(now)))
    options = ("--train.resume", "auto", "--train.max_steps", 3, "--train.logging_steps", 1)
    runs.train("sft", checkpoint, *options, *runs.CONSTANT)
    rows = [json.loads(line) for line in (checkpoint / "metrics.jsonl").open()]
    tokens = {row["step"]: row["tokens"] for row in rows if "loss" in row}
    last = next(row for row in rows if row["step"] == 3 and "loss" in row)
    assert last["tokens_per_s"] == tokens[3] - tokens[2]  # one second between two looks
