"""Ask llama.cpp's server about a GGUF file: the ids of texts, greedy answers, memory.

The server is started for the question and stopped after it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.config_errors import Failed
from align.engines.llama_cpp import PROGRAM, launch
from align.engines.process import Server, free_port
from align.http_link import Links

TIMEOUT_S = 600.0


class Asked:
    """A running server of one file."""

    def __init__(self, server: Server) -> None:
        """Keep the server."""
        self.server = server

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a JSON question; Failed where the status is not 200."""
        headers = {"Content-Type": "application/json"}
        link = Links(self.server.url, TIMEOUT_S)  # one each: several threads ask
        answer = link.ask("POST", self.server.url + path, json.dumps(body).encode(), headers)
        if answer.status != 200:
            said = answer.body[:300].decode("utf-8", "replace")
            raise Failed(f"{PROGRAM} answered {path} with {answer.status}: {said}")
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
        """The most bytes that the server has held; None where the system does not say."""
        guard = self.server.process.pid  # the server is its child, and starts none itself
        try:
            child = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0]
            text = Path(f"/proc/{child}/status").read_text()
        except (OSError, IndexError):
            return None
        line = next((line for line in text.splitlines() if line.startswith("VmHWM")), "")
        return int(line.split()[1]) * 1024 if line else None


@contextmanager
def serving(file: Path, *, context: int = 512, slots: int = 1) -> Iterator[Asked]:
    """A server of `file`, which answers `slots` questions at a time of `context` tokens each."""
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        started = launch(
            file, name="model", log=Path(folder) / "server.log", port=free_port(),
            max_model_len=context, slots=slots,
        )  # fmt: skip
        with Server(started) as server:
            server.wait(TIMEOUT_S)
            yield Asked(server)
