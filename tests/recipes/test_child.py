"""Stages in children: by fork and as new interpreters they do the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 - as any other test may have done

from align import child

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import json, os, pathlib, signal, sys

def main(argv):
    if argv[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if argv[0] == "raise":
        raise ValueError("a stage that breaks")
    seen = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "ALIGN_TEST")}
    told = {"argv": argv, "env": seen, "cwd": os.getcwd(), "torch": "torch" in sys.modules}
    pathlib.Path(argv[1]).write_text(json.dumps(told))
    return int(argv[0])
"""
# A user's own script, without the guard that multiprocessing asks for.
PARENT = """
import json, os, sys
from align import child

if sys.argv[1] == "interpreter":
    child.can_fork = lambda: False
codes = []
for words, folder, env in json.loads(sys.argv[2]):
    os.chdir(folder)
    os.environ.update(env)
    codes.append(child.run_child("a_stage", words))
print(json.dumps(codes))
"""


@pytest.fixture(params=[pytest.param("fork", marks=pytest.mark.slow), "interpreter"])
def stages(request, tmp_path):
    """Run the stage above in children of one parent: [(exit code, what it saw)]."""
    if request.param == "fork" and (sys.platform != "linux" or child.has_accelerator()):
        pytest.skip("children are not forked on this machine")
    (tmp_path / "a_stage.py").write_text(STAGE)
    (tmp_path / "parent.py").write_text(PARENT)

    def run(*jobs: tuple[str, Path, dict]) -> list[tuple[int, dict]]:
        files = [tmp_path / f"seen{i}.json" for i in range(len(jobs))]
        told = [
            ([word, str(file)], str(folder), env)
            for (word, folder, env), file in zip(jobs, files, strict=True)
        ]
        command = [sys.executable, str(tmp_path / "parent.py"), request.param, json.dumps(told)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = [json.loads(f.read_text()) if f.exists() else {} for f in files]
        assert all(s["torch"] == (request.param == "fork") for s in seen if s)
        return list(zip(json.loads(done.stdout), seen, strict=True))

    return run


def test_a_child_gets_its_words_and_gives_its_exit_code(stages, tmp_path):
    for code, (given, seen) in zip(
        (0, 2, 75), stages(*((str(code), tmp_path, {}) for code in (0, 2, 75))), strict=True
    ):
        assert given == code
        assert seen["argv"][0] == str(code)


def test_a_child_is_outside_the_launchers_group(stages, tmp_path):
    ((code, seen),) = stages(("0", tmp_path, {"RANK": "0", "WORLD_SIZE": "2"}))
    assert code == 0
    assert (seen["env"]["RANK"], seen["env"]["WORLD_SIZE"]) == (None, None)


def test_a_child_stands_where_its_parent_does_now(stages, tmp_path):
    places = [(tmp_path / name, word) for name, word in (("one", "1"), ("two", "2"))]
    for folder, _ in places:
        folder.mkdir()
    done = stages(*(("0", folder, {"ALIGN_TEST": word}) for folder, word in places))
    for (folder, word), (_, seen) in zip(places, done, strict=True):
        assert (seen["cwd"], seen["env"]["ALIGN_TEST"]) == (str(folder), word)


def test_a_child_that_is_killed_or_breaks_is_not_a_success(stages, tmp_path):
    assert stages(("die", tmp_path, {}), ("raise", tmp_path, {})) == [(-9, {}), (1, {})]


def test_a_process_in_which_torch_has_computed_does_not_fork(monkeypatch):
    monkeypatch.setattr(child, "_DEVICES", ())
    assert not child.can_fork()  # the tests have imported torch, and not for children
    monkeypatch.setattr(child, "_threads", 0)
    assert not child.can_fork()


@pytest.mark.parametrize("device", ["nvidiactl", "kfd"])
def test_a_machine_with_an_accelerator_does_not_fork(tmp_path, monkeypatch, device):
    monkeypatch.setattr(child, "_DEVICES", (str(tmp_path / device),))
    monkeypatch.setattr(child, "_threads", 10**6)
    before = child.can_fork()
    (tmp_path / device).touch()
    assert (before, child.can_fork()) == (sys.platform == "linux", False)
