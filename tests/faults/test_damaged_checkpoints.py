"""A checkpoint that is cut short or changed is found, kept under another name, and not used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from align.checkpoint_files import COMPLETE, complete, rotate
from align.run import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
import small_runs as runs

pytestmark = pytest.mark.faults
STEPS = ("--train.max_steps", 4, "--train.save_steps", 1, "--train.save_total_limit", 3,
         "--train.resume", "auto", "--train.eval_strategy", "no", *runs.CONSTANT)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs.train("sft", tmp_path_factory.mktemp("whole") / "run", *STEPS)


@pytest.fixture
def folder(tmp_path, whole):
    """A finished run with checkpoints 2, 3 and 4."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def again(folder: Path, whole: Path) -> None:
    runs.train("sft", folder, *STEPS)
    first, second = runs.weights(whole), runs.weights(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:12])


def flip(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[len(held) // 2] ^= 1
    file.write_bytes(held)


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (cut, "optimizer.pt", "optimizer.pt has 12 bytes, "),
        (flip, "model.safetensors", "model.safetensors has other contents than were written"),
        (Path.unlink, "scheduler.pt", "scheduler.pt is missing"),
        (cut, COMPLETE, "complete.json cannot be read"),
    ],
)
def test_the_one_before_a_damaged_checkpoint_is_used(
    folder, whole, capsys, fault, damage, name, said
):
    fault(
        "last checkpoint truncated, or a bit of it changed",
        "said with file and cause, kept as damaged-checkpoint-N, the one before it is used",
    )
    damage(folder / "checkpoint-4" / name)
    again(folder, whole)
    out = capsys.readouterr()
    assert f"checkpoint-4 is damaged: {said}" in out.err
    assert "it is now damaged-checkpoint-4; going on from checkpoint-3" in out.err
    assert "sft 4/4" in out.out
    assert "sft 3/4" not in out.out
    assert (folder / "damaged-checkpoint-4").is_dir()
    assert [p.name for p in complete(folder)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]


def test_with_all_of_them_damaged_a_run_starts_anew(folder, whole, capsys, fault):
    fault("all checkpoints damaged", "said, kept under other names, the run starts anew")
    flip(folder / "checkpoint-4" / "optimizer.pt")
    cut(folder / "checkpoint-3" / "optimizer.pt")
    flip(folder / "checkpoint-2" / "trainer_state.json")
    again(folder, whole)
    out = capsys.readouterr()
    assert "checkpoint-2 is damaged: trainer_state.json has other contents" in out.err
    assert "no other checkpoint: starting anew" in out.err
    assert "sft 1/4" in out.out
    kept = {p.name for p in folder.glob("damaged-*")}
    assert kept == {f"damaged-checkpoint-{n}" for n in (2, 3, 4)}


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_that_the_user_names_is_refused(folder, capsys, fault, damage):
    fault("the checkpoint of train.resume: PATH damaged", "refused with file and cause, exit 2")
    named = folder / "checkpoint-3"
    damage(named / "optimizer.pt")
    argv = runs.arguments(folder, *STEPS, "--train.resume", named)
    assert run("sft", argv) == 2
    assert f"train.resume='{named}' is damaged: optimizer.pt has" in capsys.readouterr().err
    assert named.is_dir()


def test_a_second_damaged_checkpoint_of_the_same_step_keeps_the_first(folder, whole):
    for _ in range(2):
        flip(folder / "checkpoint-4" / "optimizer.pt")
        again(folder, whole)
    kept = {p.name for p in folder.glob("damaged-*")}
    assert kept == {"damaged-checkpoint-4", "damaged-checkpoint-4.2"}


def test_a_checkpoint_of_an_older_version_has_no_list_and_is_used(folder, whole, capsys):
    file = folder / "checkpoint-4" / COMPLETE
    marker = json.loads(file.read_text())
    assert set(marker.pop("files")) == {
        "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json",
        "training_args.bin", "rng_state.pth", "align_state.json",
    } - {"training_args.bin"}  # fmt: skip
    file.write_text(json.dumps(marker))
    again(folder, whole)
    assert "damaged" not in capsys.readouterr().err


# Which ones stay


@pytest.fixture
def ten(tmp_path):
    for step in (9, 10, 8, 7):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / COMPLETE).write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()  # being written
    return tmp_path


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, {7, 8, 9, 10, 11}),
        (1, None, {10, 11}),
        (2, None, {9, 10, 11}),
        (1, "checkpoint-7", {7, 10, 11}),
        (2, "checkpoint-7", {7, 10, 11}),
        (3, "checkpoint-10", {8, 9, 10, 11}),
    ],
)
def test_the_newest_complete_ones_and_the_best_one_stay(ten, keep, best, left):
    rotate(ten, keep, best and str(ten / best))
    assert {p.name for p in ten.iterdir()} == {f"checkpoint-{n}" for n in left}
