"""What the `openai` package must see of any engine that serves the chain model."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import chain_model
import pytest
from serve_process import Running

ANSWERS = {chain_model.ANSWER + tail for tail in chain_model.EITHER}
QUESTIONS = ("写一条酒店评论", "Write a review of a hotel")


def ask(served: Running, text: str = "hi", **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    more = {"model": served.names[0], "messages": messages, "temperature": 0} | fields
    return served.client().chat.completions.create(**more)


def refused(served: Running, **fields: Any) -> Any:
    """The error of a request that must not be answered."""
    import openai

    with pytest.raises(openai.APIStatusError) as caught:
        ask(served, **fields)
    return caught.value


def post(served: Running, path: str, body: bytes, **headers: str) -> int:
    """Status of a POST, as curl would send it."""
    root = served.url.removesuffix("/v1")
    headers = {"Content-Type": "application/json", **headers}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(root + path, body, headers), timeout=60
        ) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


def get(served: Running, path: str, **headers: str) -> int:
    try:
        asked = urllib.request.Request(served.url.removesuffix("/v1") + path, headers=headers)
        with urllib.request.urlopen(asked, timeout=60) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


def check_answer(served: Running) -> None:
    """Both languages: the known answer, no stop token in it, and what was used."""
    for question in QUESTIONS:
        got = ask(served, question, max_tokens=60)
        choice = got.choices[0]
        assert choice.message.content in ANSWERS
        assert choice.finish_reason == "stop"
        assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def check_stream(served: Running) -> None:
    """Chunks come one by one, and together are the answer."""
    for question in QUESTIONS:
        pieces, reasons, used = [], [], None
        for chunk in ask(
            served, question, max_tokens=60, stream=True, stream_options={"include_usage": True}
        ):
            used = chunk.usage or used
            for choice in chunk.choices:
                reasons += [choice.finish_reason] if choice.finish_reason else []
                pieces += [choice.delta.content] if choice.delta.content else []
        assert "".join(pieces) in ANSWERS
        assert len(pieces) >= 4
        assert reasons == ["stop"]
        assert used is not None
        assert used.completion_tokens >= len(pieces)


def check_length(served: Running) -> None:
    """max_tokens: the beginning of the answer, and why it ends."""
    got = ask(served, max_tokens=2)
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == 2
    text = got.choices[0].message.content
    assert text
    assert chain_model.ANSWER.startswith(text)


def check_stop_strings(served: Running) -> None:
    """The answer ends before the string, in one piece and streamed."""
    for stop, expected in (("服务", "房间很干净，"), (["很好", "干净"], "房间很")):
        got = ask(served, max_tokens=60, stop=stop)
        assert (got.choices[0].message.content, got.choices[0].finish_reason) == (expected, "stop")
        chunks = [c.choices[0] for c in ask(served, max_tokens=60, stop=stop, stream=True)
                  if c.choices]  # fmt: skip
        assert "".join(c.delta.content or "" for c in chunks) == expected
        assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]


def check_sampling(served: Running) -> None:
    """One seed, one answer; temperature 0 always the same; without either both come."""

    def text(**fields: Any) -> str:
        return ask(served, max_tokens=60, **fields).choices[0].message.content

    assert len({text(temperature=0) for _ in range(3)}) == 1
    for seed in (1, 2, 3):
        assert text(temperature=1, seed=seed) == text(temperature=1, seed=seed)
    # Two answers with equal odds: 20 draws are all the same once in 500,000.
    assert {text(temperature=1, seed=seed) for seed in range(20)} == ANSWERS


def check_defaults(served: Running) -> None:
    """Without a temperature the policy's own distribution is sampled, not a greedy answer."""
    client = served.client()
    messages: Any = [{"role": "user", "content": "hi"}]
    texts = {
        client.chat.completions.create(
            model=served.names[0], messages=messages, max_tokens=60, seed=seed
        ).choices[0].message.content
        for seed in range(20)
    }  # fmt: skip
    assert texts == ANSWERS


def check_long_prompt(served: Running) -> None:
    """More tokens than the context: 400 and words that say so, then the server goes on."""
    for stream in (False, True):
        error = refused(served, text="酒店 hotel " * 200, max_tokens=5, stream=stream)
        assert error.status_code == 400
        assert any(word in str(error).lower() for word in ("context", "length"))
        assert any(c.isdigit() for c in str(error.body))
    check_length(served)


def check_wrong_requests(served: Running) -> None:
    """Broken JSON, no messages, a field of the wrong kind: 4xx, never 5xx."""
    assert 400 <= post(served, "/v1/chat/completions", b'{"model": ') < 500
    no_messages = json.dumps({"model": served.names[0]}).encode()
    assert 400 <= post(served, "/v1/chat/completions", no_messages) < 500
    assert 400 <= refused(served, temperature="hot").status_code < 500


def check_unknown_model(served: Running) -> None:
    error = refused(served, model="nobody")
    assert error.status_code in (400, 404)
    assert "nobody" in str(error)


def check_disconnect(served: Running) -> None:
    """A client that leaves in mid-stream costs nobody else anything."""
    for _ in range(3):
        with ask(served, max_tokens=200, stream=True, temperature=1) as stream:
            next(iter(stream))
    began = time.monotonic()
    check_answer(served)
    assert time.monotonic() - began < 30


def check_web_pages(served: Running) -> None:
    """A page of another site, open in the user's browser, is not let in."""
    asked = urllib.request.Request(served.url + "/models", headers={"Origin": "http://a.example"})
    with urllib.request.urlopen(asked, timeout=60) as got:
        assert got.headers.get("Access-Control-Allow-Origin") in (None, "http://localhost")


def check_paths(served: Running) -> None:
    """Health, the list of models, text completions."""
    assert get(served, "/health") == 200
    assert [m.id for m in served.client().models.list()] == served.names
    got = served.client().completions.create(
        model=served.names[0], prompt=chain_model.ANSWER, max_tokens=60, temperature=0
    )
    assert got.choices[0].text in chain_model.EITHER


EVERY_ENGINE = (
    check_answer, check_stream, check_length, check_stop_strings, check_sampling, check_defaults,
    check_long_prompt, check_wrong_requests, check_disconnect, check_paths, check_web_pages,
)  # fmt: skip
