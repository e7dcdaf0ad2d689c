"""PPO with a reward model that another process serves: the same run as with kind model.

The server is a real one, and so is the checkpoint that it serves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "reward_models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import launching
import small_runs as runs
import tiny_rewards
from serving import server

pytest.importorskip("fastapi", reason="extra 'serve'")
pytestmark = pytest.mark.slow
# Greedy, so that two worlds see the same completions. Plain SGD: a weight's change is the gradient.
GREEDY = ("--rollout.prompts_per_update", 8, "--rollout.n", 1, "--rollout.top_k", 1,
          "--rollout.max_new_tokens", 6, "--ppo.num_minibatches", 1, "--eval.num_samples", 5,
          "--train.per_device_eval_batch_size", 4, "--train.optim", "sgd",
          "--train.learning_rate", 0.5, "--train.max_grad_norm", 0, "--train.max_steps", 3,
          "--train.per_device_train_batch_size", 8, *runs.CONSTANT)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_rewards.save(tmp_path_factory.mktemp("rm") / "final", scores=[-1.0, 3.0])


def judged(kind, path, **more):
    return ("--policy.path", runs.sharp(), "--rewards",
            json.dumps([{"kind": kind, "path": str(path), **more}]))  # fmt: skip


def scores(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["score/mean"] for row in map(json.loads, lines) if "score/mean" in row]


@pytest.fixture(scope="module")
def local(checkpoint, tmp_path_factory):
    """The run that loads the reward model itself."""
    folder = tmp_path_factory.mktemp("local")
    return runs.train("ppo", folder, *GREEDY, *judged("model", checkpoint))


def test_a_served_model_trains_as_a_local_one(checkpoint, local, tmp_path):
    with server(checkpoint) as made:
        url = f"{made.url}?model={made.model}"
        run = runs.train("ppo", tmp_path / "run", *GREEDY, *judged("http", url))
        other = tmp_path / "other"
        words = [*runs.arguments(other, *GREEDY, *judged("http", f"{made.url}/score?model=0"))]
        assert runs.run("ppo", words) == 2  # another model: nothing is trained
    assert len(scores(local)) == 2  # two rollouts
    assert scores(run) == pytest.approx(scores(local), abs=1e-5)
    assert len(set(scores(run))) == 2
    trained, expected = runs.weights(run), runs.weights(local)
    assert all(torch.allclose(trained[k], expected[k], atol=1e-5) for k in expected)
    (source,) = yaml.safe_load((run / "config.yaml").read_text())["rewards"]
    assert source == {
        "kind": "http", "path": url, "weight": 1.0, "calibrated": False, "timeout_s": 600.0,
    }  # fmt: skip
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in (local / "samples.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in samples] == [row["completion"] for row in theirs]
    assert not (other / "final").exists()


def test_a_calibrated_server_is_kind_model_calibrated(checkpoint, local, tmp_path, capsys):
    with server(checkpoint, "--calibrated", env={"ALIGN_REWARD_TOKEN": "s3cret"}) as made:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALIGN_REWARD_TOKEN_0", "s3cret")
            for calibrated, code in ((False, 2), (True, 0)):
                options = (*GREEDY, *judged("http", made.url, calibrated=calibrated))
                words = runs.arguments(tmp_path / str(calibrated), *options)
                assert runs.run("ppo", words) == code
        assert "rewards.0.calibrated=false is not what" in capsys.readouterr().err
    # Mean 1 and deviation 2; the first scores are of the policy before training.
    assert 2 * scores(tmp_path / "True")[0] + 1 == pytest.approx(scores(local)[0], abs=1e-5)
    assert "s3cret" not in (tmp_path / "True" / "config.yaml").read_text()


def test_no_server_is_the_users_input(tmp_path, capsys):
    options = (*GREEDY, *judged("http", "http://127.0.0.1:9"))
    assert runs.run("ppo", runs.arguments(tmp_path / "run", *options)) == 2
    said = capsys.readouterr().err
    assert "rewards.0.path='http://127.0.0.1:9' does not score: http://127.0.0.1:9/score" in said
    assert "Traceback" not in said


@pytest.mark.distributed
def test_two_processes_ask_one_server(checkpoint, local, tmp_path):
    launching.need("cpu2")
    size = ("--train.per_device_train_batch_size", 4)
    with server(checkpoint) as made:
        options = (*GREEDY, *size, *judged("http", made.url))
        words = runs.arguments(tmp_path / "run", *options)
        done = launching.launch("recipes/ppo.py", words, launching.config_file("cpu2"))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert runs.manifest(tmp_path / "run")["world_size"] == 2
    assert scores(tmp_path / "run") == pytest.approx(scores(local), abs=1e-4)
