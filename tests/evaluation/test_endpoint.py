"""The client of chat servers, against a server whose answers the test has written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "rewards"))
import scripted

from align.config_errors import UserError
from align.evaluation.endpoint import Endpoint
from align.records import Message

KEY = "sk-not-written-anywhere"


def said(text: str | None, prompt: int = 7, completion: int = 2, **more) -> tuple:
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}, {}


def echo(body: dict) -> tuple:
    return said(body["messages"][-1]["content"].upper())


def ask(*texts: str) -> list[list[Message]]:
    return [[Message("user", t)] for t in texts]


@pytest.fixture
def server():
    script = scripted.Scripted()
    script.otherwise = echo
    with scripted.serving(script):
        yield script


def endpoint(server, **options) -> Endpoint:
    waits = options.pop("waits", [])
    return Endpoint(f"{server.url}/v1", "m", sleep=waits.append, **options)


def test_answers_come_in_order_and_equal_questions_are_asked_once(server):
    e = endpoint(server, concurrency=3)
    texts = [f"q{i}" for i in range(9)] + ["q0", "你好"]
    assert [a.text for a in e.ask(ask(*texts))] == [t.upper() for t in texts]
    assert len(server.posts) == 10
    assert {p.path for p in server.posts} == {"/v1/chat/completions"}
    assert e.counts["calls"] == 10
    assert (e.counts["prompt_tokens"], e.counts["completion_tokens"]) == (70, 20)


def test_above_temperature_zero_equal_questions_are_samples(server):
    e = endpoint(server, temperature=0.7)
    assert len(e.ask(ask("a", "a"))) == 2
    assert len(server.posts) == 2


def test_what_is_sent(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    e = endpoint(
        server, api_key_env="JUDGE_KEY", max_tokens=9, body={"seed": 3, "temperature": None}
    )
    messages = [Message("system", "你是评委"), Message("user", "哪个好")]
    e.ask([messages])
    sent = server.posts[0]
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.body == {
        "model": "m", "max_tokens": 9, "seed": 3,
        "messages": [m.to_json() for m in messages],
    }  # fmt: skip


def test_no_key_sends_none_and_a_broken_one_is_refused(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint(server).ask(ask("a"))
    assert "Authorization" not in server.posts[0].headers
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(UserError, match="header cannot carry"):
        endpoint(server).ask(ask("a"))


def test_limits_and_faults_of_the_server_are_waited_out(server):
    waits: list[float] = []
    server.answers = [
        scripted.HANG_UP, (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}),
        (503, {}, {}), said("at last"),
    ]  # fmt: skip
    e = endpoint(server, waits=waits)
    assert e.ask(ask("a"))[0] == ("at last", None)
    assert (e.counts["calls"], e.counts["retries"], e.counts["failed"]) == (4, 3, 0)
    assert 0.25 <= waits[0] <= 0.5  # half of 0.5 s to all of it
    assert 7 <= waits[1] <= 7 * 1.25  # what Retry-After says, and a little more
    assert 1.0 <= waits[2] <= 2.0  # of 0.5·2² s


def test_patience_ends_with_the_last_cause(server):
    server.otherwise = lambda body: (500, {"error": {"message": "out of memory"}}, {})
    e = endpoint(server, retries=2)
    assert e.ask(ask("a"))[0] == (
        None, "no answer in 3 attempts; the last: 500: out of memory",
    )  # fmt: skip
    assert (e.counts["calls"], e.counts["failed"]) == (3, 1)


def test_a_late_answer_is_a_failed_attempt(server):
    import time

    def slow(body):
        time.sleep(0.3)
        return said("late")

    server.otherwise = slow
    answer = endpoint(server, retries=0, timeout_s=0.05).ask(ask("a"))[0]
    assert "no answer in time" in answer.error


def test_a_bad_request_is_not_asked_again_and_others_go_on(server):
    def picky(body):
        if body["messages"][0]["content"] == "long":
            return 400, {"error": {"message": "context length exceeded"}}, {}
        return echo(body)

    server.otherwise = picky
    e = endpoint(server)
    answers = e.ask(ask("long", "a"))
    assert answers[0] == (None, "400: context length exceeded")
    assert answers[1].text == "A"
    assert e.counts["calls"] == 2


def test_a_wrong_key_ends_the_batch(server):
    server.otherwise = lambda body: (401, {"error": {"message": "bad key"}}, {})
    e = endpoint(server, concurrency=1)
    answers = e.ask(ask(*"abcdefgh"))
    assert {a.error for a in answers} == {"401: bad key"}
    assert (len(server.posts), e.counts["failed"]) == (1, 8)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, b"<html>", {}), "no chat completion: '<html>'"),
        ((200, {"choices": []}, {}), "no chat completion"),
        ((200, [], {}), "no chat completion"),
        (said(None), "no text (stop)"),
        (said(None, refusal="I must not"), "no text (I must not)"),
    ],
)
def test_what_is_no_answer_says_why(server, answer, says):
    server.answers = [answer]
    found = endpoint(server).ask(ask("a"))[0]
    assert found.text is None
    assert says in found.error


def test_the_cache_is_shared_keeps_no_key_and_no_error(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.answers = [(400, {}, {})]
    first = endpoint(server, cache=tmp_path, concurrency=1)
    assert [a.text for a in first.ask(ask("一", "b"))] == [None, "B"]
    second = endpoint(server, cache=tmp_path, price_in=2.0, price_out=4.0)
    assert [a.text for a in second.ask(ask("一", "b"))] == ["一", "B"]
    assert (second.counts["cached"], second.counts["calls"]) == (1, 1)
    # 7 tokens at 2 and 2 at 4, of a million; what came from disk costs nothing.
    assert second.cost == pytest.approx((7 * 2 + 2 * 4) / 1e6)
    assert second.to_json() == {
        "model": "m", "calls": 1, "cached": 1, "retries": 0, "failed": 0, "prompt_tokens": 7,
        "completion_tokens": 2, "cost": second.cost,
    }  # fmt: skip
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 2
    assert not any(KEY in p.read_text() for p in files)


@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 0.5}, {"max_tokens": 3}])
def test_another_model_or_decoding_is_another_answer(server, tmp_path, change):
    options = {"model": "m", "cache": tmp_path} | change
    endpoint(server, cache=tmp_path).ask(ask("a"))
    e = Endpoint(f"{server.url}/v1", options.pop("model"), **options)
    e.ask(ask("a"))
    assert e.counts["cached"] == 0


def test_a_damaged_cache_file_is_asked_again(server, tmp_path):
    endpoint(server, cache=tmp_path).ask(ask("a"))
    file = next(p for p in tmp_path.rglob("*.json"))
    file.write_text(file.read_text()[:-9])
    again = endpoint(server, cache=tmp_path)
    assert again.ask(ask("a"))[0].text == "A"
    assert json.loads(file.read_text())["text"] == "A"


@pytest.mark.parametrize(
    ("url", "path"),
    [("http://h", "/v1/chat/completions"), ("http://h/v1/", "/v1/chat/completions"),
     ("https://h/api/v3", "/api/v3/chat/completions"),
     ("http://h:1/x/chat/completions?v=2", "/x/chat/completions?v=2")],
)  # fmt: skip
def test_addresses(url, path):
    assert Endpoint(url, "m").url.endswith(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"url": "ftp://h"},
            "endpoint.url='ftp://h' is not an http or https URL. Write http://host",
        ),
        ({"url": "http://me:pw@h/v1"}, "Set OPENAI_API_KEY in the environment"),
        ({"model": ""}, "is empty"),
        ({"retries": -1}, "endpoint.retries=-1 is not a number from 0 on"),
        ({"concurrency": 0}, "from 1 on"),
        ({"timeout_s": "60"}, "is not a number"),
        ({"temperature": float("nan")}, "is not a number"),
    ],
)
def test_wrong_options_are_user_errors(options, says):
    with pytest.raises(UserError) as error:
        Endpoint(**({"url": "http://h/v1", "model": "m"} | options))
    assert says in str(error.value)
    assert "pw" not in str(error.value)


def test_a_check_says_what_to_do(server):
    endpoint(server).check()
    server.otherwise = lambda body: (404, {"error": {"message": "no model m"}}, {})
    with pytest.raises(UserError) as error:
        endpoint(server).check("judge")
    assert "does not answer: 404: no model m. Start the server, or check url" in str(error.value)
