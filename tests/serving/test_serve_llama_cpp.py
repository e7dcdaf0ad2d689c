"""llama.cpp behind `serve_model.py`: its own server where it is built, and the wheel's."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chain_model
import client_checks as checks
from chain_gguf import save_gguf
from serve_process import serving

from align.engines.llama_cpp import PROGRAM, WHEEL
from align.engines.venvs import find_program

pytest.importorskip("openai")
pytest.importorskip("gguf")
pytestmark = pytest.mark.engines

HERE = {
    "program": shutil.which(PROGRAM) or find_program("llama.cpp", PROGRAM),
    "wheel": find_spec(WHEEL),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    return save_gguf(chain_model.save_chain(folder), folder / "chain.gguf")


@pytest.fixture(scope="module", params=["program", "wheel"])
def kind(request):
    if HERE[request.param] is None:
        pytest.skip(f"no {PROGRAM if request.param == 'program' else WHEEL} here")
    return request.param


@pytest.fixture(scope="module")
def served(file, kind, tmp_path_factory):
    words = ["--max_model_len", str(chain_model.POSITIONS)]
    words += ["--python", sys.executable] if kind == "wheel" else []
    with serving(file, tmp_path_factory.mktemp("logs"), *words) as running:
        yield running


@pytest.mark.parametrize("check", checks.EVERY_ENGINE)
def test_client(served, check):
    check(served)


def test_metrics_are_there(served):
    assert checks.get(served, "/metrics") == 200


def test_a_key_and_a_clean_stop(file, kind, tmp_path):
    env = {**os.environ, "SERVE_KEY": "sesam"}
    words = ["--api_key_env", "SERVE_KEY"]
    words += ["--python", sys.executable] if kind == "wheel" else []
    with serving(file, tmp_path, *words, env=env) as running:
        asked = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
        assert checks.post(running, "/v1/chat/completions", asked) == 401
        key = {"Authorization": "Bearer sesam"}
        assert checks.post(running, "/v1/chat/completions", asked, **key) == 200
        assert checks.get(running, "/health") == 200
        assert running.end(signal.SIGINT) == 0
    assert "sesam" not in (tmp_path / "command.txt").read_text()
