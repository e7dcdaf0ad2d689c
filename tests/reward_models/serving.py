"""Engines whose scores are known, and a real server process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.records import RecordError

ROOT = Path(__file__).resolve().parents[2]


class NumberEngine:
    """The score of the answer "17" is 17.0; of "nan" nan; "?" cannot be read; "!" breaks the model.

    gate: cleared, scoring waits. batches: how many texts each pass had. An answer of more than 6
    characters counts as shortened.
    """

    def __init__(self):
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.seen: list[float] = []

    def encode(self, item):
        text = item.completion if hasattr(item, "completion") else item.text
        if text == "?":
            raise RecordError("the chat template refuses it", code="template_refuses")
        return [text], len(text) > 6

    def score(self, rows):
        self.entered.set()
        assert self.gate.wait(60)
        self.batches.append(len(rows))
        if any(text == "!" for (text,) in rows):
            raise MemoryError("out of memory\nmore lines")
        self.seen += [float(text) for (text,) in rows]
        return [float(text) for (text,) in rows]


@contextmanager
def in_thread(engine: NumberEngine, limits=None, **options) -> Iterator[Uvicorn]:
    """The application on loopback under the uvicorn of `serve`, in a thread of this process."""
    import uvicorn

    from reward_models.server import settings
    from reward_models.server_app import Limits, create_app

    limits = limits or Limits()
    app = create_app(engine, limits, **options)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        made = uvicorn.Server(settings(app, limits.timeout))
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Uvicorn(made, thread, listener.getsockname()[1], app.state.service)
        finally:
            engine.gate.set()
            made.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


class Uvicorn:
    """A running server of this process. service: the application's state."""

    def __init__(self, made, thread: threading.Thread, port: int, service):
        self.made, self.thread, self.port, self.service = made, thread, port, service
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def server(model: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """`python -m reward_models serve` on a free port; SIGTERM at the end."""
    command = [sys.executable, "-m", "reward_models", "serve", "--model", str(model)]
    process = subprocess.Popen(
        [*command, "--port", "0", *words], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"model (\w{16}), on (http://127\.0\.0\.1:\d+)$", line.strip())
        assert found, line
        yield Server(process, found[2], found[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(120)
        process.stdout.close()


class Server:
    """process; url: http://127.0.0.1:port; port; model: its name."""

    def __init__(self, process: subprocess.Popen, url: str, model: str):
        self.process, self.url, self.model = process, url, model
        self.port = int(url.rsplit(":", 1)[1])
