"""``python -m reward_models serve``: what is refused before anything is loaded, and how it ends."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import reward_models.server
from reward_models.__main__ import main, parser
from reward_models.server import model_name
from reward_models.server_options import TOKEN, bound, read_token

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that passes as a checkpoint until its weights are read."""
    monkeypatch.delenv(TOKEN, raising=False)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def refused(capsys, folder, *words):
    """The error line; exit code 2, and torch need not be there."""
    assert main(["serve", "--model", str(folder), *map(str, words)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "70000"), "port=70000 is no port. Use 1 to 65535, or 0"),
        (("--port", "-1"), "port=-1 is no port"),
        (("--batch_size", "0"), "batch_size=0 is below 1. Use 1 or more"),
        (("--max_length", "1"), "max_length=1 is below 2"),
        (("--max_queue", "0"), "max_queue=0 is below 1"),
        (("--timeout", "0"), "timeout=0.0 is not in 0 to 1e6"),
        (("--timeout", "nan"), "timeout=nan is not in"),
        (("--max_body_mb", "-1"), "max_body_mb=-1.0 is not in"),
        (("--max_wait_ms", "-1"), "max_wait_ms=-1.0 is not in 0 to 10000"),
        (("--max_queue", "100"), "max_texts=256 is over max_queue=100"),
        (("--token", ""), "token is empty, or has spaces"),
        (("--token", "秘密"), "token is empty, or has spaces"),
        (("--token", "two words"), "token is empty, or has spaces"),
        (("--host", "no.such.host.invalid"), "host='no.such.host.invalid' cannot be resolved"),
        (("--host", "0.0.0.0"), "host='0.0.0.0' lets other machines in, and there is no token. "
         "Set ALIGN_REWARD_TOKEN, or add --allow_public."),
        (("--host", "192.0.2.1", "--allow_public"), "host='192.0.2.1' cannot be listened on"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(capsys, folder, words, said):
    line = refused(capsys, folder, *words)
    assert line.startswith("error: " + said)
    assert "秘密" not in line


def test_the_model_is_looked_at_first(capsys, folder):
    assert "is not a folder" in refused(capsys, folder / "no", "--port", 0)
    (folder / "contract.json").write_text('{"template_hash": "a", "tokenizer_hash"')
    assert "contract=" in refused(capsys, folder, "--port", 0)
    values = {"template_hash": "a", "tokenizer_hash": "b", "max_length": -3}
    (folder / "contract.json").write_text(json.dumps(values))
    assert "contract.max_length=-3" in refused(capsys, folder, "--port", 0)


def test_a_port_in_use(capsys, folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused(capsys, folder, "--port", port) == (
            f"error: port={port} is in use. Stop what listens there, or use another --port."
        )


def test_a_port_in_use_as_a_user_sees_it(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "reward_models", "serve", "--model", str(folder)]
        run = subprocess.run(
            [*command, "--port", str(port)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        f"error: port={port} is in use. Stop what listens there, or use another --port.\n"
    )


def test_a_models_name(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    name = model_name(folder, 64, False)
    assert re.fullmatch("[0-9a-f]{16}", name)
    (folder / "report.html").write_text("what scores do not come from")
    (folder / "checkpoint").mkdir()
    assert model_name(folder, 64, False) == name
    others = {model_name(folder, 65, False), model_name(folder, 64, True)}
    for file, text in (("contract.json", "{}"), ("model.safetensors", "weight2")):
        (folder / file).write_text(text)
        others.add(model_name(folder, 64, False))
    assert len(others - {name}) == 4


def test_missing_packages(capsys, folder, monkeypatch):
    real = reward_models.server.find_spec
    monkeypatch.setattr(
        reward_models.server, "find_spec", lambda name: None if name == "uvicorn" else real(name)
    )
    assert refused(capsys, folder, "--port", 0) == (
        "error: serve needs uvicorn, not installed here. Run: pip install 'align[serve]'."
    )


def arguments(*words):
    return parser().parse_args(["serve", "--model", "m", *words])


def test_who_may_listen(monkeypatch):
    monkeypatch.setenv(TOKEN, "from-the-environment")
    assert read_token(arguments()) == "from-the-environment"
    assert read_token(arguments("--token", "given")) == "given"
    for host in ("127.0.0.1", "127.9.9.9", "localhost"):
        with bound(arguments("--port", "0", "--host", host), None) as listener:
            assert listener.getsockname()[0].startswith("127.")
    for words, token in ((("--allow_public",), None), ((), "secret")):
        with bound(arguments("--port", "0", "--host", "0.0.0.0", *words), token) as listener:
            assert listener.getsockname()[1] > 0
            with pytest.raises(ConnectionRefusedError):  # until the model is loaded
                socket.create_connection(listener.getsockname(), timeout=5)


def test_help_and_errors_are_quick_and_need_no_torch(folder):
    code = (
        "import sys\nfrom reward_models.__main__ import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print(code, [m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules])"
    )
    for words, expected in ((["--help"], "0 []"), (["--model", str(folder / "no")], "2 []")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [sys.executable, "-c", code, "serve", *words],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run.stdout.splitlines()[-1] == expected
        # Time on the processor, so that a busy machine does not matter.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_every_option_is_named_in_the_page():
    page = (ROOT / "docs" / "serving_rewards.md").read_text("utf-8")
    named = re.findall(r"--[a-z_]+", _help())
    assert "--allow_public" in named
    assert [n for n in set(named) - {"--help"} if n not in page] == []


def _help() -> str:
    serve = next(a for a in parser()._actions if a.dest == "command").choices["serve"]
    return serve.format_help()
