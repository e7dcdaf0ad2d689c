"""One recipe as a process of its own and as two launched ones, with the same steps."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import small_runs as runs
from launching import config_file, launch, need

METHODS = ("pretrain", "sft", "reward", "dpo", "orpo", "ppo")
STEPS = ("--train.max_steps", 4, "--train.save_strategy", "no", *runs.CONSTANT)
# Greedy sampling, so that two worlds see the same completions; five prompts to evaluate on, so
# that the ranks have different numbers of them.
GREEDY = ("--rollout.prompts_per_update", 8, "--rollout.n", 1, "--rollout.top_k", 1,
          "--rollout.max_new_tokens", 6, "--ppo.num_minibatches", 1, "--eval.num_samples", 5,
          "--train.per_device_eval_batch_size", 4)  # fmt: skip


def options(method: str) -> tuple:
    """What PPO needs for two worlds to see the same completions, each with its own score."""
    if method != "ppo":
        return ()
    reward = f"{Path(__file__).parent / 'byte_reward.py'}:checksum"
    judged = f"[{{kind: function, path: '{reward}'}}]"
    return (*GREEDY, "--policy.path", runs.sharp(), "--rewards", judged)


def two(method: str, folder: Path, name: str, *extra: object) -> Path:
    """A run under ds_configs/accelerate_<name>.yaml: two processes, for `single` one."""
    need(name)
    world = 1 if name == "single" else 2
    size = ("--train.per_device_train_batch_size", 8 // world)
    argv = runs.arguments(folder, *size, *options(method), *extra)
    done = launch(f"recipes/{method}.py", argv, config_file(name))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    manifest = runs.manifest(folder)
    assert (manifest["finished"], manifest["world_size"]) == (True, world)
    assert done.stdout.count(f"{method} 1/") <= 2  # a step and perhaps an evaluation: rank 0 alone
    return folder


def one(method: str, folder: Path, *extra: object) -> Path:
    """The same run in this process."""
    size = ("--train.per_device_train_batch_size", 8)
    return runs.train(method, folder, *size, *options(method), *extra)
