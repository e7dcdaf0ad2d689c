"""PPO under ZeRO-3: what is sharded, what is gathered and how often; ranks with unequal work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from launching import config_file, launch, need, reports
from recipe_launches import STEPS, one, options

pytestmark = pytest.mark.distributed
PROBE = "tests/distributed/ppo_probe.py"
LORA = ("--policy.lora", "{r: 4}", "--ppo.critic", "adapter")
# Four rollouts and three evaluations, of which each gathers once.
EVALUATIONS, ROLLOUTS = 3, 4
UPDATES = ("--ppo.ppo_epochs", 1, "--rollout.gather_chunk_mb", 1)


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    """A reward model of the same base."""
    folder = tmp_path_factory.mktemp("judge")
    like = ("--policy.path", runs.sharp(), "--policy.lora", "{r: 4}")
    return runs.train("reward", folder, "--train.max_steps", 2, *like) / "final"


def rewards(judge: Path) -> tuple:
    """The reward model, and the checksum of the text as `options` has it."""
    checksum = Path(__file__).parent / "byte_reward.py"
    return ("--rewards", f"[{{kind: model, path: '{judge}'}}, {{kind: function, path: "
            f"'{checksum}:checksum'}}]")  # fmt: skip


def probe(folder: Path, skew: bool, *extra: object) -> tuple[subprocess.CompletedProcess, list]:
    need("zero3")
    size = ("--train.per_device_train_batch_size", 4)
    argv = runs.arguments(folder, *size, *options("ppo"), *STEPS, *extra)
    done = launch(PROBE, [str(int(skew)), *argv], config_file("zero3"), timeout=180)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = reports(done)
    assert [row["rank"] for row in found] == [0, 1]
    assert runs.manifest(folder)["world_size"] == 2
    return done, found


@pytest.mark.parametrize(
    ("adapters", "inner"), [((), ""), (LORA, ""), (LORA, "adapter")], ids=["full", "lora", "shared"]
)
def test_all_roles_are_sharded_and_the_policy_alone_is_gathered(adapters, inner, judge, tmp_path):
    """The last case: the reward model is an adapter on the policy's base, as all roles are."""
    more = (*UPDATES, *adapters, *rewards(judge / inner))
    _, found = probe(tmp_path / "two", False, *more)
    for row in found:
        held = {name: here / whole for name, (here, whole) in row["shards"].items()}
        roles = {"lm", "judges"} | ({"value_head"} if adapters else {"reference", "critic"})
        assert held.keys() == roles
        # DeepSpeed leaves parameters of few entries whole, as heads are; all else is in parts.
        heads = {"value_head", "judges"} if inner else {"value_head"}
        assert max(held[name] for name in roles - heads) < 0.5
        assert row["fills"] == ROLLOUTS + EVALUATIONS
        assert {name for _, roles in row["gathers"] for name in roles} == {"lm"}
        largest = max(size for size, _ in row["gathers"])
        assert largest <= 2**20
    alone = one("ppo", tmp_path / "one", *STEPS, *more)
    runs.trace_difference(alone, tmp_path / "two", limit=1e-4)


def test_ranks_with_unequal_work_do_not_wait_for_ever(judge, tmp_path, fault):
    fault("ranks with unequal work in PPO (ZeRO-3)", "no rank waits for ever")
    budget = ("--train.max_tokens_per_batch", 60, "--train.per_device_eval_batch_size", 2)
    probe(tmp_path / "run", True, *UPDATES, *budget, *rewards(judge), "--eval.num_samples", 3)
    lengths = [row["length/mean"] for row in runs.lines(tmp_path / "run") if "loss" in row]
    assert len(lengths) == 4
    assert all(length < 6 for length in lengths)  # rank 0's are a token long
