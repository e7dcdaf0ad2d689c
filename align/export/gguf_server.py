"""Ask llama.cpp's server about a GGUF file: the ids of texts, greedy answers, memory.

The server is started for the question and stopped after it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.config_errors import Failed
from align.engines.process import Launch, Server, free_port
from align.engines.venvs import find_program
from align.rewards.http_link import Links

ENGINE = "llama.cpp"
SERVER = "llama-server"
TIMEOUT_S = 600.0


def program(name: str) -> Path | None:
    """A program of llama.cpp: on PATH, else in its own environment."""
    found = shutil.which(name)
    return Path(found) if found else find_program(ENGINE, name)


class Asked:
    """A running server of one file."""

    def __init__(self, server: Server, note: str = "") -> None:
        """Keep the server. note: an option that it needs on this machine."""
        self.server, self.note = server, note

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a JSON question; Failed where the status is not 200."""
        headers = {"Content-Type": "application/json"}
        link = Links(self.server.url, TIMEOUT_S)  # one each: several threads ask
        answer = link.ask("POST", self.server.url + path, json.dumps(body).encode(), headers)
        if answer.status != 200:
            said = answer.body[:300].decode("utf-8", "replace")
            raise Failed(f"{SERVER} answered {path} with {answer.status}: {said}")
        return json.loads(answer.body)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, in which special tokens are read as such.

        special: with what the server puts before and after a prompt by itself.
        """
        body = {"content": text, "add_special": special, "parse_special": True}
        return [int(i) for i in self.post("/tokenize", body)["tokens"]]

    def rendered(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a chat prompt as /v1/chat/completions renders it by the file's own template."""
        text = self.post("/apply-template", {"messages": list(messages)})["prompt"]
        return self.ids(text, special=True)

    def answers(
        self, prompts: Sequence[Sequence[int]], new: int, stops: Sequence[int], batch: int
    ) -> tuple[list[list[int]], float]:
        """Greedy answers to prompts given as ids, `batch` at a time, and the seconds they took."""

        def one(prompt: Sequence[int]) -> list[int]:
            body = {
                "prompt": list(prompt), "n_predict": new, "temperature": 0, "return_tokens": True,
                "cache_prompt": False, "repeat_penalty": 1.0,
            }  # fmt: skip
            got = self.post("/completion", body)
            ids = [int(i) for i in got["tokens"]]
            # The stop token itself is not returned; which one it was does not matter here.
            return [*ids, stops[0]] if got.get("stop_type") == "eos" else ids

        start = time.monotonic()
        with ThreadPoolExecutor(batch) as pool:
            found = list(pool.map(one, prompts))
        return found, time.monotonic() - start

    def memory(self) -> int | None:
        """The most bytes that the process has held; None where the system does not say."""
        try:
            text = Path(f"/proc/{self.server.process.pid}/status").read_text()
        except OSError:
            return None
        line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "")
        return int(line.split()[1]) * 1024 if line else None


@contextmanager
def serving(file: Path, *, context: int = 512, slots: int = 1) -> Iterator[Asked]:
    """A server of `file`, which answers `slots` questions at a time of `context` tokens each.

    Where it dies of a signal while it starts, it is started again without repacked weights: on
    CPUs with AMX whose tiles the system (a container, say) does not hand out, llama.cpp b11434 uses
    them for quantised weights all the same and ends with SIGSEGV. `Asked.note` says so.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        log = Path(folder) / "server.log"
        for note, more in (("", ()), ("--no-repack", ("--no-repack",))):
            with Server(_launch(file, log, context, slots, more)) as server:
                try:
                    server.wait(TIMEOUT_S)
                except Failed:
                    if more or (server.process.poll() or 0) >= 0:
                        raise
                    continue
                yield Asked(server, note)
                return


def _launch(file: Path, log: Path, context: int, slots: int, more: Sequence[str]) -> Launch:
    found = program(SERVER)
    if found is None:
        raise Failed(f"{SERVER} is gone")
    port = free_port()
    words = [
        str(found), "--model", str(file), "--host", "127.0.0.1", "--port", str(port),
        "--ctx-size", str(context * slots), "--parallel", str(slots), "--no-webui",
        "--offline", "--jinja", *more,
    ]  # fmt: skip
    return Launch(SERVER, words, f"http://127.0.0.1:{port}", log)
