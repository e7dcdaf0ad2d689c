"""The HTTP application with an engine whose scores are known; no model, no network."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import NumberEngine

pytest.importorskip("fastapi", reason="extra 'serve'")
from fastapi.testclient import TestClient

from reward_models.server_app import Limits, create_app

ROOT = Path(__file__).resolve().parents[2]
SMALL = Limits(max_body=2000, max_texts=4, max_queue=6, batch_size=2, max_wait=0.0, timeout=30)


def item(text, prompt="写一条评论"):
    return {"prompt": prompt, "completion": text}


def batch(*texts):
    return {"items": [item(str(text)) for text in texts]}


@pytest.fixture
def engine():
    return NumberEngine()


@pytest.fixture
def client(engine):
    with TestClient(create_app(engine, SMALL), raise_server_exceptions=False) as made:
        yield made
        engine.gate.set()


def wrong(answer, status):
    """The error of an answer, after a check of its status and that its message has its parts."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["message"].startswith(error["field"])
    assert error["reason"] in error["message"]
    return error


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_text_and_several(client):
    assert client.post("/score", json=item("7")).json() == {"score": 7.0, "truncated": 0}
    answer = client.post("/score", json=batch(3, 1, "2.000001"))
    assert answer.json() == {"scores": [3.0, 1.0, 2.000001], "truncated": 1}
    assert client.post("/score", json={"items": []}).json() == {"scores": [], "truncated": 0}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "Write a review", "response": "5"},
        {"prompt": [{"role": "user", "content": "写一条"}], "answer": "5"},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "5"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "5"}]},
        {"prompt": "q", "completion": "5", "id": "rows may have names of their own"},
    ],
)
def test_forms_of_an_item(client, body):
    assert client.post("/score", json=body).json()["score"] == 5.0
    assert client.post("/score", json={"items": [body, item("1")]}).json()["scores"] == [5.0, 1.0]


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"promt": "q", "completion": "1"}, "prompt", "is missing. Rename 'promt' to 'prompt'"),
        ({"prompt": "q"}, "completion", "is missing"),
        ({"items": [item("1"), {"prompt": "q"}]}, "items.1.completion", "is missing"),
        ({"prompt": 5, "completion": "1"}, "prompt", "prompt=5 cannot be used"),
        ({"prompt": [], "completion": "1"}, "prompt", "has no message"),
        ({"prompt": "q", "completion": 1.5}, "completion", "completion=1.5 cannot be used"),
        ({"prompt": "q", "completion": None}, "completion", "completion=null cannot be used"),
        (
            {"prompt": "q", "completion": [{"role": "user", "content": "1"}]},
            "completion", "does not begin with an assistant",
        ),
        ({"prompt": [{"role": "king", "content": "q"}], "completion": "1"}, "prompt", "'king'"),
        ({"prompt": "q", "completion": "1", "answer": "2"}, "completion", "which is the answer?"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages", "ends with the assistant"),
        ({"messages": [], "completion": "1"}, "messages", "completion are both there"),
        ({"items": item("1")}, "items", "is not a list"),
        ({"items": ["1"]}, "items.0", "items.0='1' is not an object"),
        ({"items": [], "calibrate": True}, "calibrate", "is no field"),
        ([item("1")], "body", "is not an object"),
        ("text", "body", "body='text' is not an object"),
        (batch("?"), "items.0", "cannot be scored: the chat template refuses it"),
        (batch("1", "?", "2"), "items.1", "cannot be scored"),
        (item("?"), "body", "cannot be scored"),
    ],
)  # fmt: skip
def test_wrong_fields(client, body, field, said):
    error = wrong(client.post("/score", json=body), 422)
    assert error["field"] == field
    assert said in error["message"]
    assert error["fix"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is empty"),
        (b'{"prompt": "q", ', "is not JSON"),
        (b"prompt=q&completion=1", "is not JSON"),
        ('{"prompt": "你好", "completion": "1"}'.encode("gbk"), "is not UTF-8"),
        (b'{"prompt": "q", "completion": NaN}', "NaN is no JSON number"),
        (b"[" * 1990, "is nested too deeply"),
    ],
)
def test_what_is_no_json(client, body, said):
    assert said in wrong(client.post("/score", content=body), 400)["message"]


def test_a_byte_order_mark_is_no_error(client):
    body = b"\xef\xbb\xbf" + json.dumps(item("4")).encode()
    assert client.post("/score", content=body).json()["score"] == 4.0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/score", b'{"prompt": "q", "completion": "ab\\ud800"}', "completion"),
        ("/score", b'{"items": [{"prompt": "a\\udc00", "completion": "1"}]}', "items.0.prompt"),
        ("/get_reward", b'{"query": ["1", "\\ud83d"]}', "query.1"),
        ("/get_reward", b'{"query": ["1"], "prompts": ["\\ud83d"]}', "prompts.0"),
    ],
)
def test_half_a_character_is_refused(client, path, body, field):
    error = wrong(client.post(path, content=body), 422)
    assert error["field"] == field
    assert "half a surrogate pair" in error["reason"]
    whole = client.post("/score", content=b'{"prompt": "\\ud83d\\ude00", "completion": "1"}')
    assert whole.json()["score"] == 1.0


def test_a_half_surrogate_in_an_error_is_shown_escaped(client):
    answer = client.post("/score", content=b'{"prompt": "q", "completion": {"x": "\\ud800"}}')
    assert "\\ud800" in wrong(answer, 422)["message"].encode("ascii", "backslashreplace").decode()


def test_bodies_over_the_limit(client, engine):
    def pieces():
        yield b'{"prompt": "q", "completion": "1"'
        for _ in range(30):
            yield b" " * 100
        yield b"}"

    exact = json.dumps(item("1")).encode()
    exact += b" " * (2000 - len(exact))
    assert client.post("/score", content=exact).json()["score"] == 1.0
    assert "2001 bytes" in wrong(client.post("/score", content=exact + b" "), 413)["message"]
    # Without a length that could be read beforehand.
    error = wrong(client.post("/score", content=pieces()), 413)
    assert "at most 2000" in error["message"]
    # A length that is none, or a lie, does not get around it.
    odd = client.post("/score", content=pieces(), headers={"Content-Length": "-5"})
    assert wrong(odd, 413)["field"] == "body"
    assert engine.seen == [1.0]


def test_texts_over_the_limit(client, engine):
    error = wrong(client.post("/score", json=batch(1, 2, 3, 4, 5)), 413)
    assert error["message"] == (
        "items has 5 texts, and one request may have 4. Send several requests."
    )
    assert engine.seen == []
    assert client.post("/score", json=batch(1, 2, 3, 4)).json()["scores"] == [1, 2, 3, 4]


def test_a_full_queue_refuses_and_loses_nothing(client, engine):
    engine.gate.clear()
    queue = client.app.state.service.batcher
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(client.post, "/score", json=batch(1))
        assert engine.entered.wait(30)  # it is in the model, not in the queue
        waiting = [threads.submit(client.post, "/score", json=batch(*n)) for n in ([2, 3], [4, 5])]
        wait_until(lambda: queue.depth == 4)
        # Room for two texts: three do not enter, not even partly.
        refused = client.post("/score", json=batch(6, 7, 8))
        assert re.fullmatch("[1-9][0-9]?", refused.headers["retry-after"])
        assert "4 texts are waiting" in wrong(refused, 503)["message"]
        last = threads.submit(client.post, "/score", json=batch(9, 10))
        wait_until(lambda: queue.depth == 6)
        # Full: refused before the body is read, so even one that is no JSON.
        assert wrong(client.post("/score", content=b"{"), 503)["field"] == "queue"
        assert wrong(client.post("/get_reward", json={"query": ["1"]}), 503)["field"] == "queue"
        assert client.get("/health").status_code == 200
        assert "reward_queue_depth 6.0" in client.get("/metrics").text
        engine.gate.set()
        answers = [f.result(60).json()["scores"] for f in (first, *waiting, last)]
    assert answers == [[1], [2, 3], [4, 5], [9, 10]]
    assert sorted(engine.seen) == [1, 2, 3, 4, 5, 9, 10]
    assert queue.depth == 0
    assert client.post("/score", json=batch(6, 7, 8)).json()["scores"] == [6, 7, 8]


def test_a_request_that_takes_too_long(engine):
    limits = Limits(max_texts=9, max_queue=9, batch_size=1, max_wait=0.0, timeout=0.2)
    with TestClient(create_app(engine, limits)) as client:
        engine.gate.clear()
        error = wrong(client.post("/score", json=batch(*range(9))), 504)
        assert "took more than 0.2 s" in error["message"]
        engine.gate.set()
        queue = client.app.state.service.batcher
        wait_until(lambda: queue.depth == 0)
        # The model finishes the pass that it was in; what nobody waits for is not scored.
        assert engine.seen in ([], [0.0, 1.0, 2.0, 3.0][: len(engine.seen)])
        assert client.post("/score", json=batch(5)).json()["scores"] == [5.0]


def test_a_body_that_comes_too_slowly(engine):
    limits = Limits(timeout=0.2)
    app = create_app(engine, limits)

    async def ask(scope):
        sent = []

        async def receive():
            await asyncio.sleep(5)
            return {"type": "http.request", "body": b"{", "more_body": True}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent

    scope = {
        "type": "http", "method": "POST", "path": "/score", "raw_path": b"/score",
        "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    start, body = asyncio.run(ask(scope))
    app.state.service.batcher.close()
    assert start["status"] == 408
    assert "did not arrive within 0.2 s" in json.loads(body["body"])["error"]["message"]


def test_a_model_that_breaks_fails_its_own_request_only(client, engine, capsys):
    engine.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(client.post, "/score", json=batch(1))
        assert engine.entered.wait(30)
        good = threads.submit(client.post, "/score", json=batch(2, 3))
        bad = threads.submit(client.post, "/score", json=batch("!", 4))
        wait_until(lambda: client.app.state.service.batcher.depth == 4)
        engine.gate.set()
        assert first.result(60).json()["scores"] == [1]
        assert good.result(60).json()["scores"] == [2, 3]
        error = wrong(bad.result(60), 500)
    assert error["message"].startswith("server failed: MemoryError: out of memory.")
    assert "scoring failed: MemoryError: out of memory" in capsys.readouterr().err
    assert client.get("/health").json()["status"] == "ok"
    assert client.post("/score", json=item("8")).json()["score"] == 8.0


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_no_answer_holds_a_number_that_json_has_not(client, text):
    answer = client.post("/score", json=batch(1, text))
    assert wrong(answer, 500)["message"].startswith(f"items.1 got {text} from the model")
    assert "NaN" not in answer.text
    answer = client.post("/get_reward", json={"query": [text], "prompts": None})
    assert wrong(answer, 500)["field"] == "query.0"


def test_openrlhf_shape(client):
    body = {"query": ["3", "10000000"], "prompts": ["", ""], "labels": [None, "gold"]}
    assert client.post("/get_reward", json=body).json() == {
        "rewards": [3.0, 1e7],
        "scores": [3.0, 1e7],
        "extra_logs": {"truncated": [0.0, 1.0]},
    }


@pytest.mark.parametrize(
    ("body", "field", "status"),
    [
        ({"prompts": ["a"]}, "query", 422),
        ({"query": "text"}, "query", 422),
        ({"query": ["1", 2]}, "query.1", 422),
        ({"query": ["1", "2"], "prompts": ["1"]}, "prompts", 422),
        ({"query": ["1"], "prompts": [None]}, "prompts.0", 422),
        ({"query": ["1", "?"]}, "query.1", 422),
        ({"query": ["1"] * 5}, "query", 413),
        ([], "body", 422),
    ],
)
def test_openrlhf_errors(client, body, field, status):
    assert wrong(client.post("/get_reward", json=body), status)["field"] == field


def test_the_token(engine):
    with TestClient(create_app(engine, SMALL, token="open-sesame")) as client:

        def ask(header):
            headers = {} if header is None else {"Authorization": header}
            return client.post("/score", json=item("1"), headers=headers)

        assert ask("Bearer open-sesame").json()["score"] == 1.0
        assert ask("bearer  open-sesame ").json()["score"] == 1.0
        for header in (None, "", "Bearer", "Bearer open-sesam", "Bearer open-sesame2",
                       "Basic open-sesame", "open-sesame", "Bearer OPEN-SESAME"):  # fmt: skip
            answer = ask(header)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "open-sesame" not in wrong(answer, 401)["message"]
        # Bytes outside ASCII are a wrong token, not a crash.
        odd = client.post("/score", json=item("1"), headers={"Authorization": b"Bearer \xff\xe9"})
        assert odd.status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").json() == {"status": "ok"}  # and not what it serves
        known = client.get("/health", headers={"Authorization": "Bearer open-sesame"}).json()
        assert known["limits"]["max_texts"] == 4
        assert client.post("/get_reward", json={"query": ["1"]}).status_code == 401
        assert client.get("/health").status_code == 200
        assert "sesame" not in client.get("/health").text
    assert engine.seen == [1.0, 1.0]


def test_other_paths_and_methods(client):
    error = wrong(client.get("/scores"), 404)
    assert error["message"].startswith("path='GET /scores' is not offered. There are POST /score")
    answer = client.get("/score")
    assert wrong(answer, 405)["field"] == "path"
    assert answer.headers["allow"] == "POST"
    for path in ("/docs", "/redoc", "/openapi.json"):  # their pages load scripts from elsewhere
        assert client.get(path).status_code == 404


def test_health_tells_the_limits(engine):
    app = create_app(engine, SMALL, about={"max_length": 64})
    with TestClient(app) as client:
        told = client.get("/health").json()
        assert told["status"] == "ok"
        assert told["max_length"] == 64
        assert told["limits"]["max_texts"] == 4
        assert told["limits"]["max_body"] == 2000
    # The application has shut down: its thread is gone, and nothing new is taken.
    with TestClient(app) as client:
        assert client.get("/health").status_code == 503
        answer = client.post("/score", json=item("1"))
        assert wrong(answer, 503)["message"].startswith("server the server is stopping")
        assert answer.headers["retry-after"] == "5"


def test_which_model_answers(engine):
    about = {"model": "0123456789abcdef", "calibrated": True, "contract": {"template_hash": "ab"}}
    with TestClient(create_app(engine, SMALL, about=about)) as client:
        told = client.get("/health").json()
        assert {name: told[name] for name in about} == about
        for path, body in (("/score", batch(1)), ("/get_reward", {"query": ["1"]})):
            for asked in ("", "?model=0123456789abcdef", "?other=1"):
                answer = client.post(path + asked, json=body)
                assert answer.status_code == 200
                assert answer.headers["reward-model"] == "0123456789abcdef"
            error = wrong(client.post(f"{path}?model=fedcba9876543210", json=body), 409)
            assert error["message"] == (
                "model='fedcba9876543210' is not served here: this is 0123456789abcdef. "
                "Serve that model, or ask for this one."
            )
    with TestClient(create_app(engine, SMALL)) as client:
        assert "reward-model" not in client.post("/score", json=item("1")).headers
        assert (
            "a model without a name"
            in wrong(client.post("/score?model=a", json=item("1")), 409)["message"]
        )


def figures(client):
    lines = client.get("/metrics").text.splitlines()
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_metrics(client, engine):
    client.post("/score", json=batch(1, 2, 3))
    client.post("/score", json=item("12345678"))
    client.post("/get_reward", json={"query": ["1"]})
    client.post("/score", json=[])
    client.get("/wp-login.php")
    client.get("/secret")
    found = figures(client)
    assert found['reward_requests_total{path="/score",status="200"}'] == 2
    assert found['reward_requests_total{path="/score",status="422"}'] == 1
    assert found['reward_requests_total{path="/get_reward",status="200"}'] == 1
    # Whatever is asked for, the number of labels stays bounded.
    assert found['reward_requests_total{path="other",status="404"}'] == 2
    assert found["reward_texts_total"] == 5
    assert found["reward_texts_truncated_total"] == 1
    assert found["reward_request_seconds_count"] == 4
    assert found["reward_batch_size_sum"] == 5
    assert found["reward_batch_size_count"] == len(engine.batches)
    assert found["reward_queue_depth"] == 0


def test_the_application_needs_no_torch():
    code = (
        "import sys, reward_models.server_app\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
