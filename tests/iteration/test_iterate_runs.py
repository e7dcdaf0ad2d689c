"""Rounds as a user runs them: they learn, they stop, they go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import iterate_runs as it
import small_runs

from align.files import fingerprint


@pytest.mark.slow
def test_on_policy_dpo_raises_the_held_out_reward_in_two_rounds(tmp_path):
    folder = it.prepare(tmp_path, prompts=160, held_out=24)
    output = tmp_path / "run"
    it.run(it.words(
        folder, small_runs.sharp(), output, "--iterate.rounds", 2, "--iterate.n", 16,
        "--eval.seeds", "[0, 1, 2, 3]", "--train.max_steps", 40, "--train.warmup_steps", 5,
        "--train.per_device_train_batch_size", 16, "--train.learning_rate", 3e-3,
        "--train.save_steps", 100,
    ))  # fmt: skip
    rows = it.rounds(output)
    gain = rows[2]["reward"]["value"] - rows[0]["reward"]["value"]
    print(f"reward {[round(r['reward']['value'], 3) for r in rows]}, "
          f"KL {[round(r['kl']['value'], 2) for r in rows]}")  # fmt: skip
    # Measured: 0.318, 0.370, 0.405; the standard error of 96 samples is 0.012.
    assert gain > 0.05
    assert rows[0]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl"]["value"] > rows[1]["kl"]["value"] > 0.1
    assert [r["records"] for r in rows[1:]] == [160, 160]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["best_round"] == 2
    assert fingerprint(output / "final") == fingerprint(output / "round-2" / "train" / "final")


@pytest.mark.slow
def test_a_gold_judge_that_falls_ends_the_rounds_and_the_best_is_kept(tmp_path):
    folder = it.prepare(tmp_path)
    (folder / "script.json").write_text(json.dumps([0.5, 0.7, 0.6, 0.9]))
    output = tmp_path / "run"
    argv = it.words(
        folder, small_runs.sharp(), output, "--iterate.rounds", 3, "--iterate.method", "sft",
        "--iterate.prompts_per_round", 16, judge="scripted",
    )  # fmt: skip
    said = it.run(argv)
    assert "The judge fell in round 2: -0.100 [-0.100, -0.100] against round 1." in said
    rows = it.rounds(output)
    assert [r["round"] for r in rows] == [0, 1, 2]
    assert [r["judge"]["value"] for r in rows] == pytest.approx(
        [rows[0]["judge"]["value"] + gap for gap in (0, 0.2, 0.1)]
    )
    assert fingerprint(output / "final") == fingerprint(output / "round-1" / "train" / "final")
    page = (output / "report.html").read_text("utf-8")
    assert "Round 1 is kept" in page
    # Each round had other prompts: 26 of them, 16 a round.
    asked = [(output / f"round-{k}" / "prompts.jsonl").read_text("utf-8") for k in (1, 2)]
    assert len({line for text in asked for line in text.splitlines()}) == 26
    # Nothing is done again, the judge is not asked again, and the answer is the same.
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")}
    assert it.run(argv).count("is there") == 7
    assert json.loads((folder / "script.json").read_text()) == [0.9]
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*.safetensors")} == before


def kill_when(argv: list[str], ready) -> None:
    """Start a run in a process group of its own and kill it with SIGKILL when `ready` says so."""
    process = subprocess.Popen(
        it.command(argv), cwd=it.ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(6000):
        if ready():
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_figures(tmp_path):
    folder = it.prepare(tmp_path)
    extra = ("--iterate.rounds", 2, "--iterate.reference", "first", "--policy.lora.r", 4,
             "--iterate.stop.patience", 5, "--train.max_steps", 9, "--train.save_steps", 3,
             "--train.learning_rate", 1e-4, "--iterate.pairs", "all")  # fmt: skip
    argv, straight = (
        it.words(folder, small_runs.sharp(), tmp_path / name, *extra) for name in ("cut", "whole")
    )
    it.run(straight)
    # In the middle of training; test_best_of_n kills the sampling.
    train = tmp_path / "cut" / "round-1" / "train"
    kill_when(argv, lambda: any(train.glob("checkpoint-*/trainer_state.json")))
    assert not (train / "final").exists()
    it.run(argv)
    assert it.figures(tmp_path / "cut") == it.figures(tmp_path / "whole")
    # Every round began with the first policy and had the pairs of all rounds.
    for number, records in ((1, 26), (2, 52)):
        assert it.rounds(tmp_path / "cut")[number]["records"] == records
        config = (tmp_path / "cut" / f"round-{number}" / "train" / "config.yaml").read_text("utf-8")
        assert f"path: {small_runs.sharp()}\n" in config
    same = [tmp_path / name / "final" / "model.safetensors" for name in ("cut", "whole")]
    assert same[0].read_bytes() == same[1].read_bytes()
