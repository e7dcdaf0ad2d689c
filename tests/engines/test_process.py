"""A server process of ours: health, log, and a stop that leaves no worker behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from align.config_errors import Failed
from align.engines.process import Launch, Server, free_port

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
