"""The client of a reward server, against answers that are written down."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scripted import HANG_UP, Scripted, serving

import align.rewards.http
from align.config_errors import UserError
from align.config_files import check_url
from align.records import Message
from align.rewards import RewardError, make_reward
from align.rewards.http import HttpReward

ASKED = [Message("system", "你是客人。"), Message("user", "写一条好评")]


@pytest.fixture
def script(monkeypatch):
    for name in list(os.environ):
        if name.startswith("ALIGN_REWARD_TOKEN"):
            monkeypatch.delenv(name)
    with serving(Scripted()) as made:
        yield made


@pytest.fixture
def waits():
    return []


@pytest.fixture
def client(script, waits):
    """A client that does not wait, and has asked once already; what it asks next is scripted."""
    made = HttpReward(script.url, sleep=waits.append)
    script.requests.clear()
    return made


def ask(reward, *texts):
    return reward([ASKED] * len(texts), [str(text) for text in texts], [True] * len(texts))


def fails(reward, *texts):
    with pytest.raises(RewardError) as caught:
        ask(reward, *texts)
    return str(caught.value)


def test_what_is_sent_and_what_comes_back(client, script):
    assert ask(client, "3", "-1.5", "1e7") == [3.0, -1.5, 1e7]
    (sent,) = script.posts
    assert sent.path == "/score"
    assert sent.headers["Content-Type"] == "application/json"
    assert sent.headers["Authorization"] is None
    prompt = [
        {"role": "system", "content": "你是客人。"},
        {"role": "user", "content": "写一条好评"},
    ]
    assert sent.body == {
        "items": [{"prompt": prompt, "completion": text} for text in ("3", "-1.5", "1e7")]
    }
    assert client.name == script.url.removeprefix("http://")
    assert ask(client) == []
    assert len(script.posts) == 1


def test_many_texts_are_several_requests_in_order_over_one_connection(script):
    reward = HttpReward(script.url, texts=3)
    assert ask(reward, *range(8)) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [len(sent.body["items"]) for sent in script.posts] == [1, 3, 3, 2]
    assert len({sent.connection for sent in script.requests}) == 1


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/score"),
        ("/", "/score"),
        ("/score", "/score"),
        ("/rm/score", "/rm/score"),
        ("/v2/judge", "/v2/judge"),
        ("?model=0123456789abcdef", "/score?model=0123456789abcdef"),
        ("/?model=a", "/score?model=a"),
    ],
)
def test_where_it_is_sent(script, path, target):
    ask(HttpReward(script.url + path, calibrated=False), "1")
    assert {sent.path for sent in script.posts} == {target}
    # Where /health would be is only known of a path that ends with /score.
    base = target.partition("?")[0]
    expected = [base.replace("score", "health")] if "score" in base else []
    assert [sent.path for sent in script.requests if sent.method == "GET"] == expected


def test_the_token_of_the_environment(script, monkeypatch):
    monkeypatch.setenv("ALIGN_REWARD_TOKEN", "for-all")
    monkeypatch.setenv("ALIGN_REWARD_TOKEN_1", "for-the-second")
    make_reward([{"kind": "http", "path": script.url}] * 3)
    tokens = [sent.headers["Authorization"] for sent in script.posts]
    assert tokens == ["Bearer for-all", "Bearer for-the-second", "Bearer for-all"]
    monkeypatch.setenv("ALIGN_REWARD_TOKEN", "two words")
    with pytest.raises(UserError, match=r"^ALIGN_REWARD_TOKEN has spaces") as caught:
        HttpReward(script.url)
    assert "two words" not in str(caught.value)


def test_waits_grow_and_are_partly_random(client, script, waits, capsys):
    script.answers = [(500, {"error": {"message": "server failed"}}, {})] * 9
    assert ask(client, "5") == [5.0]
    # 0.5·2^k, not above 30, and between half of that and all of it.
    for wait, most in zip(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert most / 2 <= wait <= most
    assert [sent.body for sent in script.posts] == [script.posts[0].body] * 10
    said = capsys.readouterr().err.splitlines()
    assert 4 <= len(said) <= 7  # short waits are not worth a word
    assert re.fullmatch(
        rf"\[reward\] {client.name}: 500: server failed; asking again in \d+ s", said[-1]
    )


def test_two_clients_do_not_wait_alike(script):
    all_waits = []
    for _ in range(2):
        waits = []
        reward = HttpReward(script.url, sleep=waits.append)
        script.answers = [(503, {}, {})] * 5
        ask(reward, "1")
        all_waits.append(waits)
    assert all_waits[0] != all_waits[1]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_trouble_is_waited_out(client, script, status):
    script.answers = [(status, {"error": {"message": "not now"}}, {}), HANG_UP, HANG_UP]
    assert ask(client, "5", "6") == [5.0, 6.0]


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 409, 422])
def test_a_refusal_is_not_asked_again(client, script, waits, status):
    script.answers = [(status, {"error": {"message": "items.0 is\nwrong"}}, {"Location": "/x"})]
    assert fails(client, "5", "6") == (
        f"{client.url} refuses completions 0 to 1, {status}: items.0 is wrong"
    )
    assert len(script.posts) == 1
    assert waits == []


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 8.75),
        ("0", 0.25, 0.5),
        ("100000", 120, 150),  # no server can make a run sleep for a day
        ("soon", 0.25, 0.5),
        ("-3", 0.25, 0.5),
        (lambda: formatdate(time.time() + 60, usegmt=True), 55, 75),
        (lambda: formatdate(time.time() - 60, usegmt=True), 0.25, 0.5),
    ],
)
def test_retry_after(client, script, waits, asked, least, most):
    text = asked() if callable(asked) else asked
    script.answers = [(503, {}, {"Retry-After": text})]
    assert ask(client, "1") == [1.0]
    (wait,) = waits
    assert least <= wait <= most


def test_attempts_end(script, waits):
    reward = HttpReward(script.url, attempts=4, sleep=waits.append)
    script.requests.clear()
    script.answers = [(503, {"error": {"message": "queue is full"}}, {})] * 99
    assert fails(reward, "5") == (
        f"{script.url}/score gave no scores for completion 0 in 4 attempts; the last ended with "
        "503: queue is full"
    )
    assert len(script.posts) == 4
    assert len(waits) == 3  # not after the last


def test_patience_ends(client, script, waits, monkeypatch):
    monkeypatch.setattr(align.rewards.http, "PATIENCE_S", 20.0)
    script.answers = [(503, {}, {"Retry-After": "60"})] * 99
    assert "in 1 attempts; the last ended with 503: {}" in fails(client, "5")
    assert waits == []


def test_a_server_that_ends_and_comes_back(waits):
    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 4:
            stack.enter_context(serving(Scripted(), port))

    with ExitStack() as stack:
        with serving(Scripted()) as first:
            port = int(first.url.rsplit(":", 1)[1])
            reward = HttpReward(first.url, sleep=wait)
            assert ask(reward, "1") == [1.0]
        assert ask(reward, "2", "3") == [2.0, 3.0]
        assert len(waits) == 4


def test_a_connection_that_was_closed_is_opened_again(client, script, waits):
    script.answers = [(200, {"scores": [1]}, {"Connection": "close"})]
    assert ask(client, "1") == [1.0]
    assert ask(client, "2") == [2.0]
    script.answers = [HANG_UP]  # as if it had been idle for too long: that is no failed attempt
    assert ask(client, "3") == [3.0]
    assert waits == []
    script.answers = [HANG_UP, HANG_UP]  # the second time it is one
    assert ask(client, "4") == [4.0]
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "sent no JSON for completions 0 to 1: Expecting value"),
        (b"", "sent no JSON"),
        (b"[1, 2]", "sent no list of scores for completions 0 to 1: '[1, 2]'"),
        (b'{"score": 1}', "sent no list of scores"),
        (b'{"scores": 1}', "sent no list of scores"),
        (b'{"scores": []}', "sent 0 scores for completions 0 to 1, 2 texts"),
        (b'{"scores": [1]}', "sent 1 scores"),
        (b'{"scores": [1, 2, 3]}', "sent 3 scores"),
        (b'{"scores": [1, NaN]}', "sent nan for completion 1; it must be a finite number"),
        (b'{"scores": [-Infinity, 1]}', "sent -inf for completion 0"),
        (b'{"scores": [1, 1e999]}', "sent inf for completion 1"),
        (b'{"scores": [1, null]}', "sent None for completion 1"),
        (b'{"scores": [1, "2"]}', "sent '2' for completion 1"),
        (b'{"scores": [true, 2]}', "sent True for completion 0"),
        (b'{"scores": [[1], 2]}', "sent [1] for completion 0"),
        (b'{"scores": [1, 1' + b"0" * 400 + b"]}", "for completion 1"),
    ],
)
def test_answers_that_are_no_scores(client, script, body, said):
    script.answers = [(200, body, {})]
    assert said in fails(client, "5", "6")
    assert len(script.posts) == 1  # asked again it would say the same


def test_what_is_too_large_is_halved(client, script):
    def at_most_three(body):
        if len(body["items"]) > 3:
            return (413, {"error": {"message": "items has too many"}}, {})
        return (200, {"scores": [float(item["completion"]) for item in body["items"]]}, {})

    script.otherwise = at_most_three
    assert ask(client, *range(11)) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [len(sent.body["items"]) for sent in script.posts] == [11, 5, 2, 3, 6, 3, 3]
    script.otherwise = lambda body: (413, {"error": {"message": "body is too large"}}, {})
    assert fails(client, *range(4)) == (
        f"{client.url} refuses completion 0, 413: body is too large"
    )


def test_an_answer_that_comes_before_the_body_was_sent(waits):
    """413 and a closed connection, while the client still writes megabytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def serve():
        for answer in (b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"scores": [0]}',
                       b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}"):  # fmt: skip
            other, _ = listener.accept()
            other.recv(1000)
            other.sendall(answer)
            other.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            other.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        reward = HttpReward(f"{url}/only", sleep=waits.append)
        assert "refuses completion 0, 413" in fails(reward, "5" * (20 << 20))
    finally:
        thread.join()
        listener.close()
    assert waits == []


def test_a_server_that_does_not_answer_in_time(script, waits):
    reward = HttpReward(script.url, attempts=2, timeout=0.1, sleep=waits.append)
    over = threading.Event()
    script.otherwise = lambda body: over.wait(10) and HANG_UP
    try:
        assert "in 2 attempts; the last ended with no answer in time" in fails(reward, "5")
    finally:
        over.set()


def test_another_model_in_the_middle_of_a_run(client, script):
    answers = [{"Reward-Model": "aaaa"}, {"reward-model": "aaaa"}, {"Reward-Model": "bbbb"}, {}]
    script.answers = [(200, {"scores": [1]}, headers) for headers in answers]
    assert client.model is None  # the scripted server has no name so far
    assert ask(client, "1") == [1.0]
    assert client.model == "aaaa"
    assert ask(client, "1") == [1.0]
    assert fails(client, "1") == (
        f"{client.url} now serves bbbb; this run began with aaaa. Serve that one again and resume"
    )
    assert "now serves a model without a name" in fails(client, "1")


@pytest.mark.parametrize(
    ("said", "wanted", "error"),
    [
        (True, True, None),
        (False, False, None),
        (None, False, None),
        (True, None, None),
        (True, False, "rewards.0.calibrated=false is not what URL serves: calibrated scores. "
         "Change it, or start the server without --calibrated."),
        (False, True, "rewards.0.calibrated=true is not what URL serves: raw scores. "
         "Change it, or start the server with --calibrated."),
        (None, True, "rewards.0.calibrated=true cannot be checked: URL does not say what its "
         "scores are. Use false, or a server of this version."),
    ],
)  # fmt: skip
def test_the_unit_must_be_that_of_the_configuration(script, said, wanted, error):
    script.health = {"status": "ok"} if said is None else {"status": "ok", "calibrated": said}

    def make():
        return HttpReward(script.url, field="rewards.0.path", calibrated=wanted)

    if error is None:
        assert ask(make(), "2") == [2.0]
        return
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == error.replace("URL", f"{script.url}/score")


def start_error(path, **more):
    with pytest.raises(UserError) as caught:
        make_reward([{"kind": "http", "path": path, **more}])
    return str(caught.value).replace(path, "URL")


def test_what_a_run_does_not_start_with(script):
    wrong = {"error": {"message": "Authorization has no valid token"}}
    script.answers = [(401, wrong, {})]
    assert start_error(script.url) == (
        "rewards.0.path='URL' does not score: URL/score refuses completion 0, 401: Authorization "
        "has no valid token. Set ALIGN_REWARD_TOKEN to the server's token."
    )
    script.answers = [(404, b"Not Found", {})]
    assert "404: Not Found. Look at the address." in start_error(script.url)
    script.answers = [(409, {"error": {"message": "model='a' is not served here"}}, {})]
    said = start_error(f"{script.url}/score?model=a")
    assert said.endswith("Without ?model= in the URL any model will do.")
    script.answers = [(200, {"scores": ["nan"]}, {})]
    assert "does not score: URL/score sent 'nan' for completion 0" in start_error(script.url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        said = start_error(nobody)
    assert "in 3 attempts; the last ended with ConnectionRefusedError" in said
    assert said.endswith("Start it with python -m reward_models serve, then start this run.")


def test_a_weighted_sum_with_a_function(script, tmp_path):
    (tmp_path / "mine.py").write_text("def short(completions):\n    return [1.0] * 2\n")
    reward = make_reward([
        {"kind": "http", "path": script.url, "weight": 2.0},
        {"kind": "function", "path": f"{tmp_path}/mine.py:short", "weight": -1},
    ])  # fmt: skip
    found = reward.score([ASKED] * 2, ["3", "4"], [True, False])
    assert found.total == [5.0, 7.0]
    assert found.components == {script.url.removeprefix("http://"): [3.0, 4.0], "short": [1.0, 1.0]}


def test_a_child_process_has_its_own_connection(client, script):
    ask(client, "1")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, repr(ask(client, "2", "3")).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"[2.0, 3.0]"
    assert ask(client, "4") == [4.0]
    first, childs, last = (sent.connection for sent in script.posts)
    assert first == last
    assert childs != first


def test_no_proxy_of_the_environment(script, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(HttpReward(script.url), "6") == [6.0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8001", "is not an http or https URL"),
        ("127.0.0.1:8001", "is not an http or https URL"),
        ("ftp://host", "is not an http or https URL"),
        ("http://", "is not an http or https URL"),
        ("http://host:99999", "is not a URL"),
        ("http://host:port", "is not a URL"),
        ("http://ho st:1", "is not an http or https URL"),
        ("http://host:1/\n", "is not an http or https URL"),
        ("http://[::1", "is not a URL"),
        ("http://host:1/score#a", "has a part after #"),
        ("auto", "is not an http or https URL"),
    ],
)
def test_what_is_no_address(url, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        check_url("rewards.0.path", url)
    assert str(caught.value).startswith("rewards.0.path=")
    assert "Write http://host:port" in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(UserError) as caught:
        check_url("rewards.0.path", "http://me:hunter2@host:1")
    assert str(caught.value) == (
        "rewards.0.path holds a name or password, which would be written into config.yaml. "
        "Set ALIGN_REWARD_TOKEN in the environment."
    )


@pytest.mark.parametrize("url", ["http://h", "https://h:443/a/b?c=d", "http://[::1]:8001"])
def test_addresses(url):
    check_url("rewards.0.path", url)
