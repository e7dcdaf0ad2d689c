"""A reward that fails, says NaN, hangs or is down: all processes stop with their state saved."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rewards"))
import processes
from processes import runs
from scripted import Scripted, serving

import align.rewards.http as http
from align.checkpoint_files import COMPLETE
from align.run import run

pytestmark = pytest.mark.faults
# Four steps an update: the second rollout comes after step 4.
OPTIONS = ("--train.resume", "auto", "--train.max_steps", 8, "--train.save_steps", 100,
           "--train.eval_strategy", "no", *runs.CONSTANT)  # fmt: skip
# Right in the first rollout, and as long as the file `broken` beside it is missing.
SOURCE = """
import hashlib, os, pathlib, time
calls = [0]

def score(prompts, completions):
    calls[0] += 1
    scores = [len(text) / 20 for text in completions]
    if calls[0] < 2 or not pathlib.Path(__file__).with_name("broken").exists():
        return scores
    return bad(scores)

def bad(scores):
"""


@pytest.fixture
def reward(tmp_path):
    """reward(line): options of a reward whose second call runs the line."""

    def write(line: str, timeout: float = 600.0) -> tuple[str, str]:
        (tmp_path / "broken").touch()
        file = tmp_path / "my_reward.py"
        file.write_text(SOURCE + f"    {line}\n", encoding="utf-8")
        term = f"{{kind: function, path: '{file}:score', timeout_s: {timeout}}}"
        return "--rewards", f"[{term}]"

    return write


def fails(folder: Path, *options: object) -> None:
    assert run("ppo", runs.arguments(folder, *OPTIONS, *options)) == 1
    assert (folder / "checkpoint-4" / COMPLETE).is_file()
    assert not (folder / "final").exists()


@pytest.mark.parametrize(
    ("line", "said", "what", "promised"),
    [
        ("raise KeyError('评分')", "raised KeyError: '评分' (", "a reward function raises", ""),
        ("scores[1] = float('nan'); return scores", "returned nan for completion 1 (",
         "a reward is NaN", " and completion"),
        ("time.sleep(1000)", "gave no scores in 0.5 s (rewards[].timeout_s)",
         "a reward function hangs", ", after rewards[].timeout_s"),
        ("\n    while True:\n        try:\n            pass\n        except Exception:\n"
         "            pass", "gave no scores in 0.5 s", "a reward function hangs",
         ", after rewards[].timeout_s"),
    ],
)  # fmt: skip
def test_a_reward_function_that_fails(tmp_path, capfd, fault, reward, line, said, what, promised):
    fault(
        what,
        f"exit 1, the message names the reward{promised}; the last finished step is saved, "
        "the same command goes on",
    )
    folder = tmp_path / "run"
    options = reward(line, 0.5 if "gave no" in said else 600.0)
    fails(folder, *options)
    error = capfd.readouterr().err
    assert f"reward '{tmp_path}/my_reward.py:score' {said}" in error or (
        f"reward 'score' {said}" in error
    )
    last = error.strip().splitlines()[-1]
    assert f"Saved {folder}/checkpoint-4: the same command goes on at step 5" in last
    (tmp_path / "broken").unlink()
    runs.train("ppo", folder, *OPTIONS, *options)
    processes.same(runs.train("ppo", tmp_path / "whole", *OPTIONS, *options), folder)


def test_a_corrected_function_goes_on_from_the_checkpoint_that_is_named(tmp_path, capfd, reward):
    folder = tmp_path / "run"
    fails(folder, *reward("raise KeyError(1)"))
    named = f"--train.resume {folder}/checkpoint-4"
    assert f"(after a change of a reward's file: {named})" in capfd.readouterr().err
    runs.train("ppo", folder, *OPTIONS, *reward("return scores"), *named.split())
    assert runs.lines(folder)[-1]["step"] == 8


def test_a_function_that_never_returns_to_python_ends_the_process(tmp_path, fault, reward):
    fault(
        "a reward function hangs in C",
        "half a minute after rewards[].timeout_s the process ends with exit 1 and says where it "
        "stands; the last checkpoint stays",
    )
    line = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)"
    options = (*OPTIONS, "--train.save_steps", 2, *reward(line, 0.5))
    running = processes.start("ppo", tmp_path / "run", *options, wrong="short_grace")
    assert running.wait() == 1, running.out
    assert "gave no scores in 0.5 s" in running.out
    assert "nor does it return to Python; this process ends" in running.out
    assert 'my_reward.py", line' in running.out
    assert (tmp_path / "run" / "checkpoint-4" / COMPLETE).is_file()


def test_a_reward_that_fails_on_one_rank_stops_both(tmp_path, fault, reward):
    processes.launching.need("cpu2")
    fault(
        "a reward function raises in one of two processes",
        "both stop together and name it; the last finished step is saved",
    )
    folder = tmp_path / "run"
    line = "return scores if os.environ['RANK'] == '0' else scores[0] / 0"
    options = (*OPTIONS, *reward(line))
    running = processes.start("ppo", folder, *options, launcher="cpu2", wrong="slow_report")
    assert running.wait(120) == 1
    assert "Failed: rank 1: RewardError: reward " in running.out, running.out
    assert running.out.count(f"Saved {folder}/checkpoint-4: the same command goes on") == 2
    assert (folder / "checkpoint-4" / COMPLETE).is_file()


def test_a_reward_server_that_is_down(tmp_path, capfd, monkeypatch, fault):
    fault(
        "the reward server is down",
        "asked again for six minutes; then exit 1, its URL named, the last finished step saved",
    )
    monkeypatch.setattr(http, "PATIENCE_S", 1.0)
    down, folder = [True], tmp_path / "run"
    with serving(Scripted()) as server:

        def answer(body):
            first = len(server.posts) <= 2  # the question at the start, and one rollout
            if down[0] and not first:
                return 503, {"error": {"message": "卸载了 unloaded"}}, {}
            return 200, {"scores": [len(i["completion"]) / 20 for i in body["items"]]}, {}

        server.otherwise = answer
        options = ("--rewards", f"[{{kind: http, path: '{server.url}'}}]")
        fails(folder, *options)
        error = capfd.readouterr().err
        assert f"{server.url}/score gave no scores for completions 0 to 7 in" in error
        assert "the last ended with 503: 卸载了 unloaded. Saved " in error
        assert "the same command goes on at step 5" in error
        down[0] = False
        runs.train("ppo", folder, *OPTIONS, *options)
        processes.same(runs.train("ppo", tmp_path / "whole", *OPTIONS, *options), folder)


def test_a_reward_that_fails_in_an_evaluation_saves_the_step_too(tmp_path, capfd, reward):
    options = ("--train.eval_strategy", "steps", "--train.eval_steps", 3, "--train.eval_on_start",
               "false", *reward("raise KeyError(1)"))  # fmt: skip
    folder = tmp_path / "run"
    assert run("ppo", runs.arguments(folder, *OPTIONS, *options)) == 1
    assert (folder / "checkpoint-3" / COMPLETE).is_file()
    assert f"Saved {folder}/checkpoint-3: the same command" in capfd.readouterr().err
