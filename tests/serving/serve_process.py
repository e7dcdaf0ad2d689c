"""`recipes/serve_model.py` as a user starts it, for tests that talk to it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "serve_model.py"
SAID = re.compile(r"serving (.+) on (http://(\S+)/v1) \(engine (\S+), \d+ s\), log (.+)")


@dataclass
class Running:
    """A server that said where it is."""

    process: subprocess.Popen[str]
    names: list[str]
    url: str
    address: tuple[str, int]
    logs: Path

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def client(self, key: str = "none") -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)


@contextmanager
def serving(
    model: Path, logs: Path, *words: str, env: Mapping[str, str] | None = None, most: float = 400
) -> Iterator[Running]:
    """Start, wait for the line that says where, yield, and kill what was not ended."""
    logs.mkdir(parents=True, exist_ok=True)
    said = logs / "said.txt"
    line = [sys.executable, str(RECIPE), "--model", str(model), "--port", "0"]
    with said.open("w") as out:
        process = subprocess.Popen(
            [*line, "--log_dir", str(logs), *words], stdout=out, stderr=subprocess.STDOUT, env=env,
            text=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + most
        while (found := SAID.search(said.read_text())) is None:
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.1)
        host, _, port = found[3].rpartition(":")
        yield Running(process, found[1].split(", "), found[2], (host, int(port)), logs)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
