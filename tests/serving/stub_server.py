"""An OpenAI-compatible server over a real tokenizer, with fixed answers and with faults."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from align.chat import render_prompt, stop_ids

# A question, and the answer of the model.
TALKS = [
    ([{"role": "user", "content": "写一条酒店评论"}], "房间很干净。"),
    ([{"role": "user", "content": "Write a review"}], "The room was clean."),
    ([{"role": "system", "content": "简短。"}, {"role": "user", "content": "评价房间"}], "不错"),
    ([{"role": "user", "content": "Rate <|im_end|> the food"}], "Terrible"),
]


def rows(tokenizer: Any, talks=TALKS) -> list[dict[str, Any]]:
    """The lines of a parity file for these talks, each answer ended by the stop token."""
    found = []
    for messages, text in talks:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        plain = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        row = {
            "messages": messages,
            "prompt_ids": render_prompt(tokenizer, messages),
            "prompt_text": tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            ),
            "greedy_ids": [*ids, stop_ids(tokenizer)[0]],
            "greedy_text": text,
            "offsets": [
                len(tokenizer.decode(ids[: i + 1]).rstrip("\ufffd")) for i in range(len(ids))
            ],
            "logprobs": [-0.1] * (len(ids) + 1),
            "margins": [1.0] * (len(ids) + 1),
            "stop_ids": list(stop_ids(tokenizer)),
            "stop_texts": tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer))),
        }
        found.append(row | ({"plain_ids": plain} if plain != row["prompt_ids"] else {}))
    return found


class Stub:
    """kind: vllm, token_ids, llama.cpp or count. fault: "" or what it does wrong."""

    def __init__(self, tokenizer: Any, kind: str = "vllm", fault: str = "", talks=TALKS) -> None:
        self.tokenizer, self.kind, self.fault = tokenizer, kind, fault
        self.answers = {json.dumps(m): text for m, text in talks}
        self.asked: list[str] = []

    def text(self, messages) -> str:
        header = self.fault != "no_header"
        if self.fault == "merged_system" and messages[0]["role"] == "system":
            joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            messages = [{"role": "user", "content": joined}]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=header
        )

    def ids(self, messages) -> list[int]:
        found = self.tokenizer(self.text(messages), add_special_tokens=False)["input_ids"]
        return [found[0], *found] if self.fault == "double_bos" else found

    def reply(self, path: str, body: dict) -> dict | None:
        if path == "/v1/models":
            return {"data": [{"id": "stub"}]}
        if path == "/tokenize" and self.kind == "vllm" and "messages" in body:
            ids = self.ids(body["messages"])
            return {"tokens": ids, "count": len(ids)}
        if path == "/tokenize" and self.kind == "llama.cpp":
            text = body.get("content", "")
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"tokens": ids[:1] * (self.fault == "double_bos") + ids}
        if path == "/apply-template" and self.kind == "llama.cpp":
            return {"prompt": self.text(body["messages"])}
        if path == "/detokenize" and self.kind in ("vllm", "llama.cpp"):
            return {"prompt": self.tokenizer.decode(body["tokens"])}
        return self.chat(body) if path == "/v1/chat/completions" else None

    def chat(self, body: dict) -> dict:
        text = self.answers[json.dumps(body["messages"])]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        finish = "stop" if body["max_tokens"] > len(ids) else "length"
        ids = ids[: body["max_tokens"]]
        if self.fault == "other_answer":
            text = "咖啡" + text
        if self.fault == "runs_on":
            text, finish = text + "服务很好", "length"
        if self.fault == "shows_stop":
            text += "<|im_end|>"
        if self.fault == "wrong_finish":
            finish = "length"
        prompt = self.ids(body["messages"])
        out = {"choices": [{"message": {"content": text}, "finish_reason": finish}],
               "usage": {"prompt_tokens": len(prompt)}}  # fmt: skip
        if self.fault == "says_nothing":
            del out["usage"]
        if self.kind == "token_ids" and body.get("return_token_ids"):
            out["prompt_token_ids"] = prompt
            out["choices"][0]["token_ids"] = ids
        return out


@contextlib.contextmanager
def serve(stub: Stub):
    """The stub's address, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer

        def _answer(self, body: dict) -> None:
            stub.asked.append(self.path)
            said = stub.reply(self.path, body)
            payload = json.dumps(said if said is not None else {"error": "no such path"}).encode()
            self.send_response(200 if said is not None else 404)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self):
            self._answer({})

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
