"""Stages in children: by fork and as new interpreters they do the same."""

from __future__ import annotations

import json
import sys

import pytest

from align import child

STAGE = """
import json, os, pathlib, signal, sys

def main(argv):
    if argv[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    seen = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "ALIGN_TEST")}
    pathlib.Path(argv[1]).write_text(json.dumps({"argv": argv, "env": seen, "cwd": os.getcwd()}))
    return int(argv[0])
"""


@pytest.fixture(params=[True, False], ids=["fork", "interpreter"])
def stage(request, tmp_path, monkeypatch):
    """Run the stage above in a child: (exit code, what it saw)."""
    if request.param and not child.can_fork():
        pytest.skip("children are not forked on this machine")
    (tmp_path / "a_stage.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(child, "can_fork", lambda: request.param)
    sys.modules.pop("a_stage", None)

    def run(*words: str) -> tuple[int, dict]:
        code = child.run_child("a_stage", [*words, str(tmp_path / "seen.json")])
        seen = tmp_path / "seen.json"
        return code, json.loads(seen.read_text()) if seen.exists() else {}

    return run


def test_a_child_gets_its_words_and_gives_its_exit_code(stage):
    for code in (0, 2, 75):
        given, seen = stage(str(code))
        assert given == code
        assert seen["argv"][0] == str(code)


def test_a_child_is_outside_the_launchers_group(stage, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, seen = stage("0")
    assert code == 0
    assert (seen["env"]["RANK"], seen["env"]["WORLD_SIZE"]) == (None, None)


def test_a_child_stands_where_its_parent_does_now(stage, tmp_path, monkeypatch):
    for name, word in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("ALIGN_TEST", word)
        seen = stage("0")[1]
        assert (seen["cwd"], seen["env"]["ALIGN_TEST"]) == (str(tmp_path / name), word)


def test_a_child_that_is_killed_is_not_a_success(stage):
    assert stage("die") == (-9, {})


@pytest.mark.parametrize("device", ["nvidiactl", "kfd"])
def test_a_machine_with_an_accelerator_does_not_fork(tmp_path, monkeypatch, device):
    monkeypatch.setattr(child, "_DEVICES", (str(tmp_path / device),))
    before = child.can_fork()
    (tmp_path / device).touch()
    assert (before, child.can_fork()) == (sys.platform == "linux", False)
