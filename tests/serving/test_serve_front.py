"""The front by itself: before an engine that is a stub, and its parts by hand."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from align.serving.front import Front, make_app
from align.serving.openai_body import CHAT, Context, Refused, check_body, fit, read_body
from align.serving.stop_text import StopCut


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "hit"),
    [
        (["停"], ["请", "停", "下"], ["请", "", ""], True),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
        (["END"], ["E", "N", "x"], ["", "", "ENx"], False),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
        (["end", "d!"], ["the end!"], ["the "], True),
        ([], ["a", "b"], ["a", "b"], False),
    ],
)
def test_text_is_cut_before_a_stop_string(stops, pieces, shown, hit):
    cut = StopCut(stops)
    assert [cut.feed(piece) for piece in pieces] == shown
    assert cut.hit is hit


def test_what_waited_comes_at_the_end():
    cut = StopCut(["<end>"])
    assert cut.feed("a<en") == "a"
    assert cut.rest() == "<en"


def body(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "你好"}]} | fields


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "other"}, 404, "The model 'other' does not exist here; this server has 'm'."),
        ({"messages": []}, 400, "messages must be a list that is not empty."),
        ({"messages": [{"content": "a"}]}, 400, "messages.0 must be an object with a role."),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content must be a string."),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
            "messages.0.content may hold text parts alone.",
        ),
        ({"top_k": 5}, 400, "top_k=5 is not supported by this engine; leave it out."),
        ({"n": 3}, 400, "n=3 is not supported by this engine; leave it out."),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number from 1 to 1000000000."),
        ({"temperature": True}, 400, "temperature must be a number from 0 to 100."),
        ({"top_p": 0}, 400, "top_p must be above 0."),
        ({"stop": [""]}, 400, "stop must be a string or a list of strings, not empty."),
    ],
)  # fmt: skip
def test_requests_that_are_refused(fields, status, said):
    with pytest.raises(Refused) as caught:
        check_body(body(**fields), "m", chat=True)
    assert (caught.value.status, caught.value.message) == (status, said)


def test_text_completions_need_a_prompt():
    with pytest.raises(Refused, match=r"prompt must be a string\."):
        check_body({"prompt": ["a"]}, "m", chat=False)


@pytest.mark.parametrize("data", [b'{"model"', b"[1]", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_object(data):
    with pytest.raises(Refused, match=r"The body is no JSON"):
        read_body(data)


def test_null_fields_and_what_is_fine_are_dropped():
    asked = body(n=1, stop=None, presence_penalty=0, max_tokens=5, top_k=-1, return_token_ids=True)
    del asked["model"]
    check_body(asked, "m", chat=True)
    assert asked == body(max_tokens=5)


@pytest.mark.parametrize(
    ("asked", "prompt", "most"),
    [({"max_tokens": 5}, 90, 5), ({"max_tokens": 50}, 90, 10), ({}, 20, 80),
     ({"max_completion_tokens": 7}, 20, 7), ({"max_tokens": 9}, 99, 1)],
)  # fmt: skip
def test_an_answer_gets_the_room_that_is_left(asked, prompt, most):
    fields = body(**asked)
    fit(fields, Context(100, lambda *_: prompt), chat=True)
    assert fields == body(max_tokens=most)


@pytest.mark.parametrize("prompt", [100, 5000])
def test_a_prompt_that_fills_the_context(prompt):
    said = f"context length is 100 tokens, and the prompt has {prompt}"
    with pytest.raises(Refused, match=said) as caught:
        fit(body(), Context(100, lambda *_: prompt), chat=True)
    assert caught.value.status == 400
    assert caught.value.body()["error"]["code"] == "context_length_exceeded"


def test_a_prompt_that_the_template_refuses():
    def count(*_):
        raise ValueError("the chat template says: roles must alternate")

    with pytest.raises(Refused, match="roles must alternate"):
        fit(body(), Context(100, count), chat=True)


def chunk(text=None, end=None):
    delta = {} if text is None else {"content": text}
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}


def through(answer, *, asked=None, key=None, path=CHAT, headers=None, context=True):
    """What a client gets from a front whose engine is `answer(request) -> httpx.Response`."""

    def fresh(request):  # httpx has read what it is given as text or bytes already
        made = answer(request)
        stream = httpx.ByteStream(made.content) if made.is_stream_consumed else made.stream
        return httpx.Response(made.status_code, headers=made.headers, stream=stream)

    async def run():
        front = Front(
            "http://engine", "m", key=key, context=Context(100, lambda *_: 10) if context else None
        )
        front.client = httpx.AsyncClient(
            base_url="http://engine", transport=httpx.MockTransport(fresh)
        )
        app = httpx.ASGITransport(make_app(front))
        async with httpx.AsyncClient(transport=app, base_url="http://front") as client:
            if asked is None:
                return await client.get(path, headers=headers)
            return await client.post(path, json=asked, headers=headers)

    return asyncio.run(run())


def events(response):
    lines = [line[6:] for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed(*chunks):
    text = "".join(f"data: {json.dumps(c, ensure_ascii=False)}\n\n" for c in chunks)
    return lambda _: httpx.Response(200, text=text)


def test_a_stream_without_stop_strings_is_as_the_engine_sent_it():
    sent = [chunk("你"), chunk("好"), chunk(end="length")]
    assert events(through(streamed(*sent), asked=body(stream=True))) == sent


def test_a_stream_is_cut_and_its_reason_corrected():
    sent = [chunk("一二"), chunk("三"), chunk("四五"), chunk(end="length")]
    got = events(through(streamed(*sent), asked=body(stream=True, stop=["三四"])))
    assert got == [chunk("一二"), chunk(end="stop")]


def test_text_that_waited_comes_before_the_end_of_a_stream():
    sent = [chunk("一"), chunk("三"), chunk(end="stop")]
    got = events(through(streamed(*sent), asked=body(stream=True, stop=["三四"])))
    assert got == [chunk("一"), chunk("三"), chunk(end="stop")]


def test_an_error_in_a_stream_is_one_that_clients_read():
    """The engine writes it as a bare string, and its quotes without escapes."""
    text = 'data: {"error": "Invalid prefix: "Q""}\n\n'
    (got,) = events(through(lambda _: httpx.Response(200, text=text), asked=body(stream=True)))
    assert 'Invalid prefix: "Q"' in got["error"]["message"]


def test_an_answer_is_cut():
    answer = {"choices": [{"message": {"content": "好。END 不"}, "finish_reason": "length"}]}
    got = through(lambda _: httpx.Response(200, json=answer), asked=body(stop="END")).json()
    assert got["choices"] == [{"message": {"content": "好。"}, "finish_reason": "stop"}]


def test_what_the_engine_says_is_passed_on():
    """FastAPI's 422 becomes the 400 of OpenAI's API; a 500 stays one."""
    detail = {"detail": "Unexpected fields in the request: {foo}"}
    got = through(lambda _: httpx.Response(422, json=detail), asked=body(foo=1))
    assert got.status_code == 400
    assert "Unexpected fields" in got.json()["error"]["message"]
    got = through(lambda _: httpx.Response(500, text="Internal Server Error"), asked=body())
    assert got.status_code == 500
    assert got.json()["error"]["type"] == "server_error"


def test_an_engine_that_has_gone():
    def gone(_):
        raise httpx.ConnectError("refused")

    got = through(gone, asked=body())
    assert got.status_code == 502
    assert "The engine does not answer (ConnectError)" in got.json()["error"]["message"]


class Breaks(httpx.AsyncByteStream):
    """A body that ends in its middle, as that of a process that is killed."""

    def __init__(self, text=b""):
        self.text = text

    async def __aiter__(self):
        yield self.text
        raise httpx.ReadError("reset")


def test_an_engine_that_ends_in_mid_answer():
    got = through(lambda _: httpx.Response(200, stream=Breaks()), asked=body())
    assert got.status_code == 502
    said = "The engine ended in mid-answer; see the server's log."
    assert got.json()["error"]["message"] == said
    first = f"data: {json.dumps(chunk('a'))}\n\n".encode()
    broken = through(lambda _: httpx.Response(200, stream=Breaks(first)), asked=body(stream=True))
    shown, error = events(broken)
    assert shown == chunk("a")
    assert error["error"]["message"] == said


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "sesam", "Basic sesam", "Bearer schlüssel"]
)
def test_without_the_key_nothing_is_asked(header):
    def never(_):
        raise AssertionError("reached the engine")

    headers = {} if header is None else {"Authorization": header.encode("utf-8")}
    got = through(never, asked=body(), key="sesam", headers=headers)
    assert got.status_code == 401
    assert got.headers["WWW-Authenticate"] == "Bearer"


def test_with_the_key_and_the_open_path():
    answer = {"choices": []}
    got = through(
        lambda _: httpx.Response(200, json=answer), asked=body(), key="sesam",
        headers={"Authorization": "Bearer sesam"},
    )  # fmt: skip
    assert got.json() == answer
    assert through(lambda _: httpx.Response(200), path="/health", key="sesam").status_code == 200


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/invocations", "/"])
def test_other_paths_do_not_exist(path):
    got = through(lambda _: httpx.Response(200), asked={}, path=path, context=False)
    assert got.status_code == 404


def test_an_engine_that_checks_by_itself_gets_every_byte():
    """Before vLLM the front only asks for the key."""
    seen = []

    def answer(request):
        seen.append(request.content)
        return httpx.Response(418, content=b"odd", headers={"X-Request-Id": "7"})

    got = through(answer, asked={"n": 5, "model": "?"}, context=False)
    assert (got.status_code, got.content, got.headers["X-Request-Id"]) == (418, b"odd", "7")
    assert json.loads(seen[0]) == {"n": 5, "model": "?"}
