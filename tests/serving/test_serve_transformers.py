"""The default engine, `transformers serve`, from `serve_model.py` to the `openai` package."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chain_model
import client_checks as checks
from serve_process import serving

pytest.importorskip("openai")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain_model.save_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    words = ("--engine", "transformers", "--served_model_name", "chain-模型")
    with serving(model, tmp_path_factory.mktemp("logs"), *words) as running:
        yield running


@pytest.mark.parametrize("check", [*checks.EVERY_ENGINE, checks.check_unknown_model])
def test_client(served, check):
    assert served.names == ["chain-模型"]
    check(served)


def test_what_would_be_read_over_is_refused(served):
    for field, value in (("n", 2), ("logprobs", True), ("presence_penalty", 0.5),
                         ("response_format", {"type": "json_object"})):  # fmt: skip
        error = checks.refused(served, **{field: value})
        assert error.status_code == 400
        assert f"{field}=" in str(error)


def test_an_answer_ends_with_the_context(served):
    """256 positions: a long prompt leaves little room, and the answer is cut there."""
    got = checks.ask(served, "酒" * 200, max_tokens=500)
    room = chain_model.POSITIONS - got.usage.prompt_tokens
    assert 0 < got.usage.completion_tokens <= room


def test_other_models_cannot_be_loaded_through_it(served):
    """The engine's own paths would load what a client names, or unload everything."""
    assert checks.post(served, "/load_model", b'{"model": "other"}') == 404
    assert checks.post(served, "/reset", b"{}") == 404


def test_command_and_log_are_kept(served):
    command = (served.logs / "command.txt").read_text()
    assert "transformers serve chain-模型" in command.replace("'", "")
    assert "Application startup complete" in (served.logs / "server.log").read_text()


def processes_under(folder: Path) -> list[int]:
    """Processes whose working directory is in a folder: the engine's is its link folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(place / "cwd")).is_relative_to(folder):
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_ways_to_end(model, tmp_path):
    """SIGTERM and SIGINT: 0. The engine killed: 1 and its log. serve_model killed: no orphan."""
    with serving(model, tmp_path / "a", "--engine", "transformers") as running:
        assert processes_under(tmp_path / "a")
        asked = threading.Thread(target=_ask_at_length, args=(running,))
        asked.start()
        assert running.end(signal.SIGTERM) == 0
        asked.join()
        assert "stopped" in (running.logs / "said.txt").read_text()
        assert not processes_under(tmp_path / "a")
    with serving(model, tmp_path / "b", "--engine", "transformers") as running:
        for pid in processes_under(tmp_path / "b"):
            if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
        assert running.process.wait(30) == 1
        said = (running.logs / "said.txt").read_text()
        assert "transformers serve ended with code -9" in said
        assert "Application startup complete" in said
    with serving(model, tmp_path / "c", "--engine", "transformers") as running:
        running.process.kill()
        running.process.wait()
        deadline = time.monotonic() + 30
        while processes_under(tmp_path / "c") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes_under(tmp_path / "c")


def _ask_at_length(running):
    import openai

    try:
        for _ in range(50):
            checks.ask(running, max_tokens=200)
    except openai.OpenAIError:
        pass  # the server was ended in the middle, which is the point


def test_a_key(model, tmp_path):
    """Without it nothing but /health answers; it stands in no file and no command line."""
    import openai

    env = {**os.environ, "SERVE_KEY": "sesam-öffne".replace("ö", "oe")}
    words = ("--engine", "transformers", "--api_key_env", "SERVE_KEY")
    with serving(model, tmp_path, *words, env=env) as running:
        with pytest.raises(openai.AuthenticationError):
            running.client("wrong").models.list()
        assert checks.get(running, "/v1/models") == 401
        assert checks.get(running, "/health") == 200
        assert [m.id for m in running.client("sesam-oeffne").models.list()] == running.names
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.suffix in (".txt", ".log"):
            assert "sesam" not in file.read_text()


def test_a_request_log(model, tmp_path):
    """The proxy stands before the front: every answer is a line, without its texts."""
    pytest.importorskip("align.serving.proxy")
    words = ("--engine", "transformers", "--request_log", str(tmp_path / "log"))
    with serving(model, tmp_path / "logs", *words) as running:
        checks.check_answer(running)
        checks.check_stream(running)
        assert checks.get(running, "/metrics") == 200
        assert running.end() == 0
    lines = [line for f in (tmp_path / "log").glob("*.jsonl") for line in f.open(encoding="utf-8")]
    assert len(lines) == 4
    assert "房间" not in "".join(lines)
