"""Folders that cannot be written, disks that fill up."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import processes
from processes import runs

from align.checkpoint_files import complete
from align.config_errors import UserError
from align.disk import check_writable, disk_trouble, size

pytestmark = pytest.mark.faults
REFUSED = "refused with the reason, exit 2, nothing started"
OPTIONS = ("--train.resume", "auto", "--train.max_steps", 6, "--train.save_steps", 2,
           "--train.eval_strategy", "no", *runs.CONSTANT)  # fmt: skip


def need_mounts() -> None:
    """Skip where a test may not mount a file system of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")


def mounted(folder: Path, options: str, *commands: str) -> tuple[list[int], str]:
    """Run shell commands where `folder` is a small file system; exit codes, all they print."""
    folder.mkdir()
    script = f"mount -t tmpfs -o {options} none {shlex.quote(str(folder))} || exit 99\n"
    script += "".join(f"{command}\necho CODE $?\n" for command in commands)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=processes.launching.ROOT,
        env=processes.launching.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    codes = [int(line[5:]) for line in done.stdout.splitlines() if line.startswith("CODE ")]
    return codes, done.stdout


def command(folder: Path) -> str:
    argv = runs.arguments(folder, *OPTIONS)
    return shlex.join([sys.executable, "recipes/sft.py", *argv])


# Before a run


def test_permission_denied(fault):
    fault(
        "permission denied for train.output_dir", "refused with the reason, exit 2, nothing started"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        root = os.geteuid() == 0  # whom no permission stops
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"to: permission denied \(") as error:
                check_writable(folder / "新" / "run")
        finally:
            if root:
                os.seteuid(0)
    assert error.value.field == "train.output_dir"


def test_nothing_is_left_of_the_look(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "before", "said", "what"),
    [
        ("size=1m,ro", ":", "the file system is read-only", "read-only output folder"),
        (
            "size=64k",
            "head -c 1m /dev/zero > {}/rest",
            "the disk is full",
            "disk full at the start",
        ),
    ],
)
def test_a_folder_that_takes_no_file(tmp_path, fault, options, before, said, what):
    need_mounts()
    fault(what, REFUSED)
    place = tmp_path / "mounted"
    found, out = mounted(
        place, options, before.format(place), command(place / "run"), f"ls {place}"
    )
    assert found[1] == 2, out
    assert f"train.output_dir='{place}/run' cannot be written to: {said}" in out
    assert "run" not in out.splitlines()[-2:]


def test_too_little_room_for_a_checkpoint_is_said_before(tmp_path, capsys, monkeypatch, fault):
    fault("less free space than a checkpoint needs", "a warning with both figures before the run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    folder = runs.train("sft", tmp_path / "run", *OPTIONS, "--train.max_steps", 1)
    weights = sum(4 * x.numel() for x in runs.weights(folder).values())
    error = capsys.readouterr().err
    assert (
        f"warning: {folder} has 4 KiB free, and a checkpoint with the finished model needs" in error
    )
    assert f"about {size(4 * weights)}" in error  # weights, two moments, and final/


# During a run


def test_a_disk_that_fills_up(tmp_path, fault):
    need_mounts()
    fault(
        "full disk during a checkpoint",
        "exit 1 with path, free bytes and last good checkpoint; with more room the same command "
        "goes on",
    )
    place = tmp_path / "mounted"
    found, out = mounted(
        place, "size=800k", command(place / "run"), f"mount -o remount,size=64m {place}",
        command(place / "run"), f"cp -r {place}/run {tmp_path}/kept",
    )  # fmt: skip
    assert found == [1, 0, 0, 0], out
    first, second = out.split("CODE 1\n")
    assert "could not be written: " in first
    assert "bytes are free. Make room, and the same command goes on from " in first
    assert f"{place}/run/checkpoint-2" in first
    assert "checkpoint-4 was not finished: removed" in second
    processes.same(runs.train("sft", tmp_path / "whole", *OPTIONS), tmp_path / "kept")


def test_files_that_cannot_be_written_to_their_end(tmp_path, fault):
    fault("files cut short by a limit of the system", "as for a full disk")
    folder = tmp_path / "run"
    running = processes.start("sft", folder, *OPTIONS, wrong="small_files")
    assert running.wait() == 1, running.out
    assert "could not be written: the system allows no file of this size; " in running.out
    assert f"the same command goes on from {folder}/checkpoint-2." in running.out
    assert [p.name for p in complete(folder)] == ["checkpoint-2"]
    runs.train("sft", folder, *OPTIONS)
    processes.same(runs.train("sft", tmp_path / "whole", *OPTIONS), folder)


def test_other_errors_are_no_disk_trouble(tmp_path):
    assert disk_trouble(FileNotFoundError(2, "No such file", "x"), tmp_path) is None
    assert disk_trouble(PermissionError(13, "Permission denied", "x"), tmp_path) is None
    wrapped = RuntimeError("x")
    wrapped.__cause__ = OSError(28, "No space left on device", "/数据/optimizer.pt")
    assert "/数据/optimizer.pt could not be written: the disk is full" in str(
        disk_trouble(wrapped, tmp_path)
    )


def test_an_error_among_its_own_causes_is_no_endless_search(tmp_path):
    error, halt = ValueError("引擎"), RuntimeError("halt")
    error.__cause__, halt.__cause__ = halt, error
    assert disk_trouble(error, tmp_path) is None
