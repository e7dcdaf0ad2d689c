"""Whole runs of the scorer: similar lengths together, any order alike, a killed run goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_rewards as tiny
import torch

from align.records import Message
from reward_models import score_file as module
from reward_models.__main__ import main
from reward_models.evaluation_command import score_answers
from reward_models.score_file import score_file
from reward_models.scorer import Scorer

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["房间很干净", "早餐不错", "太差了", "The room", "was clean", "again and again", "。"]


def rows(n, seed=0):
    chooser = random.Random(seed)
    return [
        {
            "id": i,
            "prompt": chooser.choice(["写一条酒店评论", "Write a review of a hotel"]),
            "completion": " ".join(chooser.choices(WORDS, k=chooser.randint(0, 9))),
        }
        for i in range(n)
    ]


def write(path, items):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in items), "utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_of_similar_length_share_a_batch():
    scorer = Scorer(loaded=tiny.loaded(), batch_size=2)
    shapes = []
    scorer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    scorer.score_ids([[5] * n for n in (3, 9, 1, 8, 2, 7)])
    assert shapes == [(2, 9), (2, 7), (2, 2)]  # 9 with 8, 7 with 3, 2 with 1: 2 + 4 + 1 cells spare


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_file_in_another_order_gives_the_same_scores(tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(module, "CHUNK", 11)
    made, items = tiny.loaded("qwen2"), rows(40)
    found = []
    for seed, size in ((1, 16), (2, batch_size)):
        random.Random(seed).shuffle(items)
        source = write(tmp_path / f"{seed}.jsonl", items)
        score_file(Scorer(loaded=made, batch_size=size), source, tmp_path / f"{seed}.out", mark="m")
        found.append({row["id"]: row["score"] for row in read(tmp_path / f"{seed}.out")})
    assert found[0].keys() == set(range(40))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_a_text_is_scored_once_and_its_scores_are_equal_to_the_last_bit():
    scorer = Scorer(loaded=tiny.loaded(), batch_size=3)
    prompt, other = [Message("user", "问")], [Message("user", "Q")]
    seen = []
    scorer.progress = lambda done, total: seen.append(total)
    answers = [(prompt, ["好", "long " * 9, "好"]), (other, ["好"]), (prompt, ["好", "x"])]
    scores, dropped = score_answers(scorer, answers)
    assert seen[-1] == 4  # two answers after each prompt but one
    assert scores[0][0] == scores[0][2] == scores[2][0]
    assert scores[1][0] != scores[0][0]
    assert not dropped


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    model, items = tiny.save(tmp_path / "rm", heads=2), rows(3000)
    source, output = write(tmp_path / "in.jsonl", items), tmp_path / "out.jsonl"
    command = ["score", "--model", str(model), "--input", str(source), "--batch_size", "4"]
    run = subprocess.Popen(
        [sys.executable, "-m", "reward_models", *command, "--output", str(output)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    partial = tmp_path / "out.jsonl.partial"
    while run.poll() is None and not (partial.exists() and partial.stat().st_size > 100_000):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run ended before it was killed"
    kept = partial.read_bytes().count(b"\n")
    assert 0 < kept < len(items)
    assert main([*command, "--output", str(output)]) == 0
    assert not partial.exists()
    assert main([*command, "--output", str(tmp_path / "whole.jsonl")]) == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [row["id"] for row in read(output)] == list(range(len(items)))
    # Another batch size goes on too, with scores that differ by rounding alone.
    partial.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:kept]))
    output.unlink()
    assert main([*command, "--batch_size", "32", "--output", str(output)]) == 0
    for one, other in zip(read(output), read(tmp_path / "whole.jsonl"), strict=True):
        assert one["id"] == other["id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["uncertainty"] == pytest.approx(other["uncertainty"], abs=1e-5)
