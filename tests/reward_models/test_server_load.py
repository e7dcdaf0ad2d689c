"""A real server process: 64 clients at once, overload, and an orderly end."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_rewards as tiny
from serving import server

from align.config_errors import UserError
from align.records import Message
from align.rewards.http import HttpReward
from reward_models.__main__ import main
from reward_models.scorer import Scorer

pytest.importorskip("fastapi", reason="extra 'serve'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CLIENTS, REQUESTS = 64, 50
WORDS = (
    "房间", "干净", "服务", "很好", "早餐", "不错", "位置", "方便", "太差", "再也", "不来",
    "room", "clean", "kind", "staff", "terrible", "never", "again",
)  # fmt: skip
ASKED = ["写一条酒店评论", "Write a review of a hotel", "你住得怎么样？"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("rm") / "final", max_length=64, scores=[0.0, 2.0])


@pytest.fixture(scope="module")
def pool(checkpoint):
    """200 texts of 0 to 40 words, and what the scorer gives each, alone."""
    draw = random.Random(3)
    texts = [
        (draw.choice(ASKED), " ".join(draw.choices(WORDS, k=draw.randrange(0, 41))))
        for _ in range(200)
    ]
    scorer = Scorer(checkpoint, batch_size=1)
    chats = [[Message("user", asked)] for asked, _ in texts]
    scores = scorer.score(chats, [answer for _, answer in texts])
    assert scorer.truncated > 0  # some are longer than the model reads
    assert len({round(s, 4) for s in scores}) > 150  # an answer in the wrong place would show
    return [(*text, score) for text, score in zip(texts, scores, strict=True)]


def post(connection, path, value):
    connection.request("POST", path, json.dumps(value), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.headers, json.loads(response.read())


def one_client(port, pool, seed, failures, times):
    """Requests of one text, of several, and in OpenRLHF's shape; returns scores that were right."""
    draw = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    right = 0
    for _ in range(REQUESTS):
        texts = draw.choices(pool, k=draw.choice([1, 1, 1, 2, 5]))
        items = [{"prompt": asked, "completion": answer} for asked, answer, _ in texts]
        start = time.monotonic()
        if len(items) == 1:
            status, _, got = post(connection, "/score", items[0])
            scores = [got.get("score")]
        elif draw.random() < 0.5:
            status, _, got = post(connection, "/score", {"items": items})
            scores = got.get("scores")
        else:
            queries = {"query": [a + b for a, b, _ in texts], "prompts": [a for a, _, _ in texts]}
            status, _, got = post(connection, "/get_reward", queries)
            scores = got.get("rewards")
        times.append(time.monotonic() - start)
        if status != 200 or len(scores) != len(texts):
            failures.append((status, got))
            continue
        wrong = [
            (s, e) for s, (_, _, e) in zip(scores, texts, strict=True) if not abs(s - e) < 1e-5
        ]
        failures.extend(wrong)
        right += len(texts) - len(wrong)
    connection.close()
    return right


def test_64_clients_lose_nothing_and_mix_nothing_up(checkpoint, pool, record_property):
    failures: list = []
    times: list[float] = []
    with server(checkpoint, "--max_queue", "4096") as made:
        start = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as threads:
            seeds = range(CLIENTS)
            jobs = threads.map(lambda s: one_client(made.port, pool, s, failures, times), seeds)
            right = sum(jobs)
        seconds = time.monotonic() - start
        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    found = {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}
    assert failures == []
    asked = {
        path: found.get(f'reward_requests_total{{path="{path}",status="200"}}', 0)
        for path in ("/score", "/get_reward")
    }
    assert sum(asked.values()) == CLIENTS * REQUESTS
    assert found["reward_texts_total"] == right
    assert found["reward_texts_truncated_total"] > 0
    assert found["reward_batch_size_count"] < right / 4  # texts were scored together
    times.sort()
    half, last = (1000 * times[int(share * len(times))] for share in (0.5, 0.99))
    rate = len(times) / seconds
    print(f"\n{right} texts, {rate:.0f} requests/s, p50 {half:.0f} ms, p99 {last:.0f} ms")
    record_property("requests_per_s", rate)
    record_property("p99_ms", last)


def test_past_the_limits_every_answer_is_right_or_says_no(checkpoint, pool):
    counts = {200: 0, 503: 0}
    lock = threading.Lock()

    def ask(seed):
        draw = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=600)
        for _ in range(10):
            texts = draw.choices(pool, k=4)
            items = [{"prompt": asked, "completion": answer} for asked, answer, _ in texts]
            status, headers, got = post(connection, "/score", {"items": items})
            if status == 200:
                assert got["scores"] == pytest.approx([e for *_, e in texts], abs=1e-5)
            else:
                assert got["error"]["field"] == "queue"
                assert int(headers["Retry-After"]) >= 1
            with lock:
                counts[status] += 1

    with server(checkpoint, "--max_queue", "8", "--max_texts", "8", "--max_body_mb", "1") as made:
        with ThreadPoolExecutor(32) as threads:
            list(threads.map(ask, range(32)))
        assert sum(counts.values()) == 320
        assert counts[503] > 0
        # The client waits and asks again until all is there, and splits what is too large.
        reward = HttpReward(made.url, attempts=30, texts=64)
        chats = [[Message("user", asked)] for asked, *_ in pool]
        answers = [answer for _, answer, _ in pool]

        def train(_):
            return HttpReward(made.url, attempts=30)(chats[:24], answers[:24], [True] * 24)

        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(train, range(6)))
        expected = [e for *_, e in pool]
        assert all(scores == pytest.approx(expected[:24], abs=1e-5) for scores in found)
        assert reward(chats, answers, [True] * 200) == pytest.approx(expected, abs=1e-5)
        check_bodies(made.port)


def check_bodies(port):
    """Bodies over 1 MiB, by their length and in pieces; the connection stays usable."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    big = {"prompt": "q", "completion": "a" * (8 << 20)}
    status, _, got = post(connection, "/score", big)
    assert (status, got["error"]["field"]) == (413, "body")
    pieces = (b"x" * 65536 for _ in range(200))
    connection.request("POST", "/score", pieces, encode_chunked=True)  # no Content-Length
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["field"] == "body"
    assert post(connection, "/score", {"prompt": "q", "completion": "a"})[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=120) as raw:
        raw.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n{")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_sigterm_answers_what_is_queued(checkpoint, pool):
    texts = [(asked, answer, score) for asked, answer, score in pool] * 5
    items = [{"prompt": asked, "completion": answer} for asked, answer, _ in texts]
    with server(checkpoint, "--max_texts", "1000", "--batch_size", "1") as made:
        with ThreadPoolExecutor(2) as threads:
            connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=600)
            asked = threads.submit(post, connection, "/score", {"items": items})
            other = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
            depth = 0.0
            while depth == 0:  # until it is in the queue
                other.request("GET", "/metrics")
                page = other.getresponse().read().decode()
                depth = float(page.split("\nreward_queue_depth ")[1].split("\n")[0])
                assert not asked.done()
            made.process.send_signal(signal.SIGTERM)
            status, _, got = asked.result(600)
        assert status == 200
        assert got["scores"] == pytest.approx([e for *_, e in texts], abs=1e-5)
        assert made.process.wait(120) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", made.port), timeout=5)


def test_a_contract_that_does_not_match_is_not_served(checkpoint, tmp_path, capsys):
    import shutil

    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    contract = json.loads((changed / "contract.json").read_text())
    for field, value in (("template_hash", "0" * 64), ("tokenizer_hash", "1"), ("heads", 2)):
        (changed / "contract.json").write_text(json.dumps(contract | {field: value}))
        assert main(["serve", "--model", str(changed), "--port", "0"]) == 2
        assert f"error: contract.{field}=" in capsys.readouterr().err
    (changed / "contract.json").write_text(json.dumps(contract))
    assert main(["serve", "--model", str(changed), "--port", "0", "--max_length", "65"]) == 2
    assert "max_length=65 is over the contract's 64" in capsys.readouterr().err


def test_a_diverged_model_is_not_served(tmp_path, capsys):
    import torch

    from reward_models.contract import make_contract
    from reward_models.model import save_reward_model

    words, made = tiny.tokenizer(), tiny.model()
    with torch.no_grad():
        made.score.weight.fill_(float("nan"))
    save_reward_model(tmp_path / "rm", made, words, make_contract(words))
    assert main(["serve", "--model", str(tmp_path / "rm"), "--port", "0"]) == 2
    assert "gives nan as a score. The model has diverged." in capsys.readouterr().err


def test_calibrated_and_the_token(checkpoint, pool, monkeypatch):
    with server(checkpoint, "--calibrated", env={"ALIGN_REWARD_TOKEN": "s3cret"}) as made:
        monkeypatch.delenv("ALIGN_REWARD_TOKEN", raising=False)
        with pytest.raises(UserError, match=r"401: .* Set ALIGN_REWARD_TOKEN to the server's"):
            HttpReward(made.url)
        monkeypatch.setenv("ALIGN_REWARD_TOKEN", "s3cret")
        with pytest.raises(UserError, match=r"calibrated=false is not what .* calibrated scores"):
            HttpReward(made.url, calibrated=False)
        with pytest.raises(UserError, match="409: model='0' is not served here"):
            HttpReward(f"{made.url}?model=0")
        reward = HttpReward(f"{made.url}?model={made.model}", calibrated=True)
        assert reward.model == made.model
        told = reward.told()
        contract = json.loads((checkpoint / "contract.json").read_text())
        assert {**told["contract"], "version": 1} == contract
        assert told["max_length"] == contract["max_length"] == 64
        chats = [[Message("user", asked)] for asked, *_ in pool[:9]]
        found = reward(chats, [answer for _, answer, _ in pool[:9]], [True] * 9)
    # Reference scores 0 and 2: mean 1, deviation 1.
    assert [s + 1 for s in found] == pytest.approx([e for *_, e in pool[:9]], abs=1e-5)
