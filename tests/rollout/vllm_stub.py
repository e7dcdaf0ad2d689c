"""A stand-in for vLLM's server: its endpoints and fields, a small model of transformers behind.

Run as `python vllm_stub.py` with the words of vLLM's command line, or `start` it in this process.
What it gets wrong on purpose is said in the environment: STUB_DEAF (a reload is acknowledged, not
done), STUB_DIES_AFTER=N (it kills itself after N completions, unless the file STUB_DIED exists,
which it makes), STUB_HANGS (completions are never answered), STUB_BAD=KIND (a wrong answer).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.rollout.hf import HFSampler


class Stub:
    """The model and what was asked of it."""

    def __init__(self, model: str, name: str, positions: int, lora: bool, dev: bool) -> None:
        self.name, self.positions, self.dev, self.lora = name, positions, dev, lora
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.folder = model
        self.loaded: list[str] = []
        self.adapters: dict[str, Any] = {}
        self.requests: list[dict[str, Any]] = []
        self.completions = 0
        self.lock = threading.Lock()
        self.load(model)

    def load(self, folder: str) -> None:
        """Take the weights of a folder."""
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.loaded.append(folder)

    def load_adapter(self, name: str, folder: str) -> None:
        """Put an adapter on a copy of the base."""
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.adapters[name] = PeftModel.from_pretrained(base, folder).merge_and_unload()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer /v1/completions."""
        self.requests.append(body)
        self.completions += 1
        self._misbehave()
        assert body["ignore_eos"]
        assert not body["skip_special_tokens"]
        assert body["logprobs"] == 0
        strings = body["stop"] if body["include_stop_str_in_output"] else []
        sampler = HFSampler(
            self.adapters.get(body["model"], self.model), self.tokenizer, body["stop_token_ids"],
            max_new_tokens=min(body["max_tokens"], self.positions - len(body["prompt"])),
            temperature=body["temperature"], top_p=body["top_p"], top_k=body["top_k"],
            stop_strings=strings, want_logps=True,
        )  # fmt: skip
        got = sampler.sample([body["prompt"]], 1, body["seed"])
        ids, logps = got.completions[0], (got.logps or [[]])[0]
        reason = "stop" if got.finished[0] else "length"
        bad = os.environ.get("STUB_BAD")
        if bad == "short":
            ids, logps, reason = ids[:1], logps[:1], "abort"
        if bad == "logps":
            logps = [*logps[:-1], None]
        choice = {
            "index": 0, "text": "", "finish_reason": reason, "token_ids": ids,
            "logprobs": {"token_logprobs": logps, "tokens": [f"token_id:{i}" for i in ids]},
        }  # fmt: skip
        if bad == "ids":
            choice.pop("token_ids")
        return {"choices": [choice]}

    def _misbehave(self) -> None:
        after = os.environ.get("STUB_DIES_AFTER")
        died = os.environ.get("STUB_DIED")
        if after and self.completions > int(after) and not (died and Path(died).exists()):
            if died:
                Path(died).write_text(str(self.completions), "utf-8")
            os._exit(3)
        while os.environ.get("STUB_HANGS"):
            time.sleep(0.1)


def handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    """The request handler of a stub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                return self._say(200, None)
            if self.path == "/version":
                return self._say(200, {"version": "0.32.0"})
            if self.path == "/v1/models":
                data = [{"id": stub.name, "max_model_len": stub.positions}]
                data += [{"id": n, "parent": stub.name} for n in stub.adapters]
                return self._say(200, {"data": data})
            if self.path.startswith("/server_info") and stub.dev:
                config = {
                    "model_config": {
                        "logprobs_mode": os.environ.get("STUB_LOGPROBS", "processed_logprobs"),
                        "dtype": "torch.float32", "max_model_len": stub.positions,
                        "generation_config": "vllm",
                    },
                    "lora_config": {"max_lora_rank": 16} if stub.lora else None,
                }  # fmt: skip
                return self._say(200, {"vllm_config": config})
            return self._say(404, {"error": {"message": "Not Found"}})

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            with stub.lock:
                try:
                    self._post(body)
                except OSError as error:
                    self._say(500, {"error": {"message": str(error)}})

        def _post(self, body: dict[str, Any]) -> None:
            if self.path == "/v1/completions":
                if body["model"] not in (stub.name, *stub.adapters):
                    text = f"The model `{body['model']}` does not exist."
                    return self._say(404, {"error": {"message": text}})
                return self._say(200, stub.complete(body))
            if self.path == "/collective_rpc" and stub.dev:
                assert body["method"] == "reload_weights"
                if not os.environ.get("STUB_DEAF"):
                    stub.load(body["kwargs"]["weights_path"])
                return self._say(200, {"results": [None]})
            if self.path == "/reset_prefix_cache" and stub.dev:
                return self._say(200, {"success": True})
            if self.path == "/v1/load_lora_adapter" and stub.lora:
                stub.load_adapter(body["lora_name"], body["lora_path"])
                return self._say(200, None)
            if self.path == "/v1/unload_lora_adapter" and stub.lora:
                stub.adapters.pop(body["lora_name"])
                return self._say(200, None)
            return self._say(404, {"error": {"message": "Not Found"}})

        def _say(self, status: int, body: Any) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class Quiet(ThreadingHTTPServer):
    """Says nothing about clients that go away."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: Any) -> None:
        pass


def start(model: str, name: str = "policy", positions: int = 96, **more: Any) -> tuple[Stub, Quiet]:
    """A stub that serves in a thread of this process; its URL is in `server_address`."""
    stub = Stub(model, name, positions, more.get("lora", False), more.get("dev", True))
    server = Quiet(("127.0.0.1", more.get("port", 0)), handler(stub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return stub, server


def main(words: list[str]) -> None:
    """Serve with the words of vLLM's command line."""
    if "-m" in words[:1]:
        words = words[2:]
    given = {w: words[i + 1] for i, w in enumerate(words[:-1]) if w.startswith("--")}
    print("stub:", " ".join(words), flush=True)
    torch.set_num_threads(1)
    assert given["--logprobs-mode"] == "processed_logprobs"
    assert given["--generation-config"] == "vllm"
    dev = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    lora = "--enable-lora" in words and "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in os.environ
    positions = int(given.get("--max-model-len", 96))
    stub = Stub(given["--model"], given["--served-model-name"], positions, lora, dev)
    Quiet((given["--host"], int(given["--port"])), handler(stub)).serve_forever()


def interpreter(folder: Path) -> str:
    """A program that stands for the python of vLLM's environment, and starts this stub."""
    file = folder / "python"
    here = Path(__file__)
    file.write_text(
        f"#!/bin/sh\nPYTHONPATH={here.parents[2]} exec {sys.executable} {here} \"$@\"\n",
        encoding="utf-8",
    )  # fmt: skip
    file.chmod(0o755)
    return str(file)


if __name__ == "__main__":
    main(sys.argv[1:])
