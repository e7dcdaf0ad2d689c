"""A server process of ours: health, log, and a stop that leaves no worker behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.config_errors import Failed
from align.engines.process import Launch, Server, answers, free_port

# A server that starts a worker which ignores SIGTERM, as some engines' workers do.
SCRIPT = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if sys.argv[2] == "fails":
    print("no such model"); sys.exit(3)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", code])
print("worker", worker.pid, flush=True)
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
    def log_message(self, *a): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def launch(tmp_path: Path, mode: str = "serves") -> Launch:
    port = free_port()
    return Launch(
        "a server",
        [sys.executable, "-c", SCRIPT, str(port), mode],
        f"http://127.0.0.1:{port}",
        tmp_path / "logs" / "server.log",
    )


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"  # in a container nobody may collect an orphan


def test_stop_ends_the_workers_too(tmp_path):
    with Server(launch(tmp_path)) as server:
        assert server.wait(30)
        assert server.healthy()
        worker = int(server.launch.log.read_text().split()[1])
        assert running(worker)
    assert not server.alive()
    assert not server.healthy()
    deadline = time.monotonic() + 5
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def test_one_that_ends_says_why(tmp_path):
    said = r"a server ended with code 3.*(?s:.*)no such model"
    with Server(launch(tmp_path, "fails")) as server, pytest.raises(Failed, match=said):
        server.wait(30)


def test_one_that_never_answers(tmp_path):
    quiet = Launch("quiet", ["sleep", "60"], "http://127.0.0.1:9", tmp_path / "log")
    with Server(quiet) as server, pytest.raises(Failed, match=r"did not answer .* in 0.3 s"):
        server.wait(0.3)
    assert not server.alive()


def test_giving_up_while_waiting(tmp_path):
    quiet = Launch("quiet", ["sleep", "60"], "http://127.0.0.1:9", tmp_path / "log")
    with Server(quiet) as server:
        assert not server.wait(30, told=lambda: True)


STARTER = """
import sys, time
from pathlib import Path
from align.engines.process import Launch, Server
url, log, *command = sys.argv[1:]
server = Server(Launch("a server", command, url, Path(log)))
server.wait(30)
print("serves", flush=True)
time.sleep(600)
"""


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def test_no_orphan_when_the_starter_is_killed(tmp_path):
    """SIGKILL leaves a process no time to stop anything; the worker even ignores SIGTERM."""
    of = launch(tmp_path)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, of.url, str(of.log), *of.command],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert starter.stdout is not None
    assert starter.stdout.readline() == "serves\n"
    worker = int(of.log.read_text().split()[1])
    assert running(worker)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert gone(worker)
    assert not answers(of.url + "/health")


def test_one_that_a_signal_ends(tmp_path):
    """The guard ends as its command did."""
    killed = Launch("killed", ["sh", "-c", "kill -9 $$"], "http://127.0.0.1:9", tmp_path / "log")
    with Server(killed) as server, pytest.raises(Failed, match="ended with code -9"):
        server.wait(30)


CRASHES_ONCE = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--careful" not in sys.argv:
    os.kill(os.getpid(), signal.SIGSEGV)
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def test_one_that_crashes_is_started_again_with_its_words(tmp_path, capsys):
    port = free_port()
    command = [sys.executable, "-c", CRASHES_ONCE, str(port)]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with Server(Launch("one", command, url, log, after_crash=("--careful",))) as server:
        assert server.wait(30)
        assert server.note == "--careful"
    said = "one ended with SIGSEGV: started again with --careful\n"
    assert capsys.readouterr().err == said
    assert not server.alive()


@pytest.mark.parametrize(
    ("number", "code", "starts"), [(11, -11, 2), (15, -15, 1), (9, -9, 1)], ids=str
)
def test_it_is_started_again_once_and_only_after_a_crash(tmp_path, number, code, starts):
    """Nobody who ends it by hand, nor the system without memory, wants it back."""
    script = f"echo start >> {tmp_path}/starts; kill -{number} $$"
    one = Launch("one", ["sh", "-c", script], "http://127.0.0.1:9", tmp_path / "log",
                 after_crash=("--careful",))  # fmt: skip
    with Server(one) as server, pytest.raises(Failed, match=f"ended with code {code}"):
        server.wait(30)
    assert len((tmp_path / "starts").read_text().split()) == starts


def test_a_program_that_is_not_there(tmp_path):
    missing = Launch("missing", ["no-such-program"], "http://127.0.0.1:9", tmp_path / "log")
    with Server(missing) as server, pytest.raises(Failed, match="No such file or directory"):
        server.wait(30)


def test_what_is_shown_holds_no_key(tmp_path):
    of = Launch(
        "one", ["serve", "--model", "a b"], "http://127.0.0.1:9", tmp_path / "log",
        env={"VLLM_API_KEY": "geheim", "VLLM_CPU_KVCACHE_SPACE": "2"}, cwd=tmp_path,
    )  # fmt: skip
    assert of.shown() == (
        f"cd {tmp_path} && VLLM_API_KEY=*** VLLM_CPU_KVCACHE_SPACE=2 serve --model 'a b'"
    )
