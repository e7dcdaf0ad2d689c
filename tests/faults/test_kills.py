"""SIGKILL at random points: the same command goes on, and the weights are those without a kill."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import processes
from processes import runs

from align.checkpoint_files import COMPLETE

pytestmark = pytest.mark.faults
STEPS = 12
OPTIONS = ("--train.resume", "auto", "--train.max_steps", STEPS, "--train.save_steps", 2,
           "--train.eval_steps", 4, *runs.CONSTANT)  # fmt: skip


def struck(running: processes.Process, how: str, chance: random.Random) -> bool:
    """Kill the run as `how` says, at a random step; False where it had ended before."""
    step = chance.randrange(1, STEPS)
    if how == "writing":
        folder = running.folder / f"checkpoint-{step + step % 2}"
        going = running.until(lambda: folder.is_dir() and not (folder / COMPLETE).exists())
        time.sleep(chance.uniform(0, 0.02))
    elif how == "starting":
        going = running.until(lambda: (running.folder / "manifest.json").exists())
        time.sleep(chance.uniform(0, 6))
    else:
        going = running.until_step(step)
        time.sleep(chance.uniform(0, 0.1))
    if not going:
        return False
    if how == "rank":
        victim = running.rank(chance.randrange(2))
        if victim is not None:
            victim.kill()
        running.wait(60)
    else:
        running.kill()
    return running.popen.returncode != 0


def survive(
    method: str, folder: Path, launcher: str | None, hows: list[str], seed: int
) -> list[Path]:
    """Start the same command again and again, killed as listed; the runs that came to their end.

    A run that ends before it is struck is kept, and a new one is struck instead.
    """
    chance, ended, missed = random.Random(seed), [folder / "0"], 0
    for how in hows:
        while not struck(
            running := processes.start(method, ended[-1], *OPTIONS, launcher=launcher), how, chance
        ):
            assert running.wait() == 0, running.out
            missed += 1
            assert missed <= len(hows) + 2, "runs end before they are struck"
            ended.append(folder / str(len(ended)))
    last = processes.start(method, ended[-1], *OPTIONS, launcher=launcher)
    assert last.wait() == 0, last.out
    assert "; stopping" not in last.out  # nobody is taken for lost at a good end
    return ended


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(method, launcher): a whole run's folder."""
    made: dict[tuple[str, str | None], Path] = {}

    def run(method: str, launcher: str | None) -> Path:
        if (method, launcher) not in made:
            folder = tmp_path_factory.mktemp(f"{method}-{launcher}") / "run"
            if launcher is None:
                runs.train(method, folder, *OPTIONS)
            else:
                whole = processes.start(method, folder, *OPTIONS, launcher=launcher)
                assert whole.wait() == 0, whole.out
            made[method, launcher] = folder
        return made[method, launcher]

    return run


FEW = [
    pytest.param("sft", None, ["writing"], id="sft"),
    pytest.param("ppo", None, ["step", "writing"], id="ppo"),
    pytest.param("dpo", "cpu2", ["rank", "writing"], id="dpo-cpu2"),
]


@pytest.mark.parametrize(("method", "launcher", "hows"), FEW)
def test_a_killed_run_ends_as_if_nothing_had_been(
    tmp_path, uninterrupted, fault, method, launcher, hows
):
    if launcher:
        processes.launching.need(launcher)
    fault(
        "SIGKILL at random points, during a checkpoint write, of one process or all",
        "the same command goes on by itself; final weights equal to the last bit",
    )
    for run in survive(method, tmp_path, launcher, hows, seed=len(method)):
        processes.same(uninterrupted(method, launcher), run)


MANY = [
    pytest.param(method, launcher, kills, id=f"{method}-{launcher or 'single'}")
    for method, launcher, kills in (
        ("sft", None, 8), ("sft", "cpu2", 8), ("dpo", None, 8), ("dpo", "cpu2", 8),
        ("ppo", None, 9), ("ppo", "cpu2", 9),
    )
]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("method", "launcher", "kills"), MANY)
def test_fifty_kills(tmp_path, uninterrupted, method, launcher, kills):
    chance = random.Random(f"{method} {launcher}")
    kinds = ["step", "writing", "starting", *(["rank"] if launcher else [])]
    hows = [chance.choice(kinds) for _ in range(kills)]
    for run in survive(method, tmp_path, launcher, hows, seed=kills):
        processes.same(uninterrupted(method, launcher), run)
