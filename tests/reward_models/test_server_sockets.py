"""The server under uvicorn on loopback: what a client sees of limits, errors and the end."""

from __future__ import annotations

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from serving import NumberEngine, in_thread

pytest.importorskip("fastapi", reason="extra 'serve'")
from prometheus_client.parser import text_string_to_metric_families

from reward_models.server_app import Limits

CLIENTS, REQUESTS = 64, 50
SMALL = Limits(max_body=4000, max_texts=4, max_queue=6, batch_size=2, max_wait=0.0, timeout=30)


def batch(*texts):
    return {"items": [{"prompt": "写一条评论", "completion": str(text)} for text in texts]}


class Asking:
    """One connection; ask: (status, headers, JSON value)."""

    def __init__(self, made, token=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, path, value=None, method="POST"):
        body = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
        self.connection.request(method, path, body, self.headers)
        response = self.connection.getresponse()
        return response.status, response.headers, json.loads(response.read())

    def get(self, path):
        self.connection.request("GET", path, headers=self.headers)
        response = self.connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture
def engine():
    return NumberEngine()


@pytest.fixture
def made(engine):
    with in_thread(engine, SMALL) as running:
        yield running


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_single_batch_and_the_order(made):
    client = Asking(made)
    one = {"prompt": "Write a review", "completion": "7"}
    assert client.ask("/score", one)[2] == {"score": 7.0, "truncated": 0}
    assert client.ask("/score", batch(3, 1, 2))[2] == {"scores": [3.0, 1.0, 2.0], "truncated": 0}
    told = {"query": ["3", "10000000"], "prompts": ["", ""], "labels": ["gold", None]}
    assert client.ask("/get_reward", told)[2]["rewards"] == [3.0, 1e7]
    assert client.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/score", b"", 400, "body is empty"),
        ("/score", b'{"prompt": "q"', 400, "body is not JSON"),
        ("/score", "你好".encode("gbk"), 400, "body is not UTF-8"),
        ("/score", {"prompt": "q"}, 422, "completion is missing"),
        ("/score", batch("?"), 422, "items.0 cannot be scored: the chat template refuses it"),
        ("/score", batch(1, 2, 3, 4, 5), 413, "items has 5 texts, and one request may have 4"),
        ("/get_reward", {"query": ["1"] * 5}, 413, "query has 5 texts"),
        ("/get_reward", {"query": "1"}, 422, "query='1' is not a list"),
        ("/score", b" " * 4001, 413, "body has 4001 bytes, and at most 4000 are taken"),
        ("/score", b" " * 4_000_000, 413, "body has 4000000 bytes"),
        ("/nothing", {}, 404, "path='POST /nothing' is not offered"),
    ],
)
def test_a_clear_error_and_the_connection_stays(made, path, body, status, said):
    client = Asking(made)
    found, headers, value = client.ask(path, body)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert value["error"]["message"].startswith(said)
    assert client.ask("/score", batch(5))[2]["scores"] == [5.0]


def test_the_token(engine):
    with in_thread(engine, SMALL, token="open-sesame") as made:
        status, headers, value = Asking(made).ask("/score", batch(1))
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert value["error"]["message"] == (
            "Authorization has no valid token. Send the header Authorization: Bearer TOKEN."
        )
        assert Asking(made, "open-sesam").ask("/score", batch(1))[0] == 401
        # Refused before the body is read: who has no token cannot fill the memory.
        assert Asking(made, "wrong").ask("/score", b" " * 4_000_000)[0] == 401
        assert Asking(made, "open-sesame").ask("/score", batch(1))[2]["scores"] == [1.0]
        assert Asking(made).get("/metrics")[0] == 401
        assert Asking(made).get("/health")[0] == 200
    assert engine.seen == [1.0]


def test_a_full_queue_says_when_to_come_back(made, engine):
    engine.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(Asking(made).ask, "/score", batch(1))
        assert engine.entered.wait(30)
        others = [threads.submit(Asking(made).ask, "/score", batch(*n)) for n in ([2, 3], [4, 5])]
        wait_until(lambda: made.service.batcher.depth == 4)
        status, headers, value = Asking(made).ask("/score", batch(6, 7, 8))
        assert (status, headers["retry-after"]) == (503, "1")
        assert value["error"]["message"] == (
            "queue is full: 4 texts are waiting. Try again in 1 s."
        )
        assert Asking(made).get("/health")[0] == 200  # busy is not dead
        engine.gate.set()
        answers = [future.result(60)[2]["scores"] for future in (first, *others)]
    assert answers == [[1], [2, 3], [4, 5]]


def test_too_long_is_504_and_leaves_the_queue(engine):
    limits = Limits(max_texts=9, max_queue=9, batch_size=1, max_wait=0.0, timeout=0.3)
    with in_thread(engine, limits) as made:
        engine.gate.clear()
        client = Asking(made)
        status, _, value = client.ask("/score", batch(*range(9)))
        assert status == 504
        assert value["error"]["message"].startswith("request took more than 0.3 s. Send fewer")
        engine.gate.set()
        assert client.ask("/score", batch(42))[2]["scores"] == [42.0]
        assert 8.0 not in engine.seen


def test_who_hangs_up_leaves_the_queue(made, engine):
    engine.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(Asking(made).ask, "/score", batch(1))
        assert engine.entered.wait(30)
        leaving = Asking(made)
        leaving.connection.request("POST", "/score", json.dumps(batch(66, 67)))
        staying = threads.submit(Asking(made).ask, "/score", batch(2))
        wait_until(lambda: made.service.batcher.depth == 3)
        leaving.connection.close()
        gone = 'reward_requests_total{path="/score",status="499"} 1.0'
        wait_until(lambda: gone in Asking(made).get("/metrics")[1])
        engine.gate.set()
        assert first.result(60)[2]["scores"] == [1.0]
        assert staying.result(60)[2]["scores"] == [2.0]
    assert engine.seen == [1.0, 2.0]


def test_a_body_that_never_ends_is_408(engine):
    with in_thread(engine, Limits(timeout=0.3)) as made:
        with socket.create_connection(("127.0.0.1", made.port), timeout=30) as raw:
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert raw.recv(4000).startswith(b"HTTP/1.1 408 ")
        assert Asking(made).ask("/score", batch(1))[0] == 200


def test_the_end_waits_for_requests(engine):
    with in_thread(engine, SMALL) as made, ThreadPoolExecutor(4) as threads:
        engine.gate.clear()
        first = threads.submit(Asking(made).ask, "/score", batch(1))
        assert engine.entered.wait(30)
        queued = threads.submit(Asking(made).ask, "/score", batch(2, 3))
        wait_until(lambda: made.service.batcher.depth == 2)
        made.made.should_exit = True
        wait_until(lambda: refused(made.port))  # nobody new
        assert made.thread.is_alive()
        engine.gate.set()
        assert first.result(60)[2]["scores"] == [1.0]
        assert queued.result(60)[2]["scores"] == [2.0, 3.0]
        made.thread.join(60)
        assert not made.thread.is_alive()
        assert not made.service.batcher.alive


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return True
    return False


def test_metrics_are_read_by_prometheus_parser(made):
    client = Asking(made)
    client.ask("/score", batch(1, 2, 3))
    client.ask("/score", batch("12345678"))
    client.ask("/get_reward", {"query": ["1"]})
    client.ask("/score", [])
    client.ask("/wp-login.php", {})
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics")[1])}
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["reward_requests"] == kinds["reward_texts"] == "counter"
    assert kinds["reward_request_seconds"] == kinds["reward_batch_size"] == "histogram"
    assert kinds["reward_queue_depth"] == "gauge"
    requests = {
        (s.labels["path"], s.labels["status"]): s.value
        for s in families["reward_requests"].samples
        if s.name.endswith("_total")
    }
    assert requests == {
        ("/score", "200"): 2, ("/score", "422"): 1, ("/get_reward", "200"): 1, ("other", "404"): 1,
    }  # fmt: skip
    values = {s.name: s.value for f in families.values() for s in f.samples if not s.labels}
    assert values["reward_texts_total"] == 5
    assert values["reward_texts_truncated_total"] == 1
    assert values["reward_batch_size_sum"] == 5
    assert values["reward_request_seconds_count"] == 4
    buckets = [s for s in families["reward_batch_size"].samples if s.name.endswith("_bucket")]
    assert buckets[-1].labels["le"] == "+Inf"
    assert [b.value for b in buckets] == sorted(b.value for b in buckets)


@pytest.mark.slow
def test_64_clients_with_50_requests_each(engine):
    numbers, wrong, seconds = count(), [], []

    def one(_):
        client = Asking(made)
        for i in range(REQUESTS):
            mine = [next(numbers) for _ in range(1 + i % 4)]
            start = time.monotonic()
            status, _, value = client.ask("/score", batch(*mine))
            seconds.append(time.monotonic() - start)
            if status != 200 or value["scores"] != mine:
                wrong.append((status, mine, value))

    with in_thread(engine, Limits(max_queue=512)) as made:
        start = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(one, range(CLIENTS)))
        total = time.monotonic() - start
    assert wrong == []
    # Every number once: nothing was lost, nothing scored twice.
    assert sorted(engine.seen) == list(range(next(numbers)))
    seconds.sort()
    half, last = seconds[len(seconds) // 2], seconds[int(0.99 * len(seconds))]
    print(
        f"\n{len(seconds) / total:.0f} requests/s, p50 {half * 1e3:.0f} ms, p99 {last * 1e3:.0f} ms"
    )
