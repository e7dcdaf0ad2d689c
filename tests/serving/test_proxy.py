"""The proxy between a client and a stub engine: what passes, what is logged, what never breaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="extra 'serve'")
sys.path.insert(0, str(Path(__file__).parent))

import aiohttp
from chat_stub import Say, Stub

from align.config_errors import UserError
from align.engines.process import free_port
from align.feedback.records import read_log
from align.serving import proxy as proxy_module
from align.serving.proxy import ProxyServer, check_log, make_app
from reward_models.import_annotations import main as import_annotations

ASKED = [{"role": "user", "content": "早餐怎么样？"}]
KEY = "sk-secret-of-the-engine"


def server(stub, tmp_path, **options):
    return ProxyServer(stub.url, "127.0.0.1", 0, tmp_path / "log", **options)


def call(method, url, **options):
    """(status, headers, bytes) of one request."""

    async def once():
        async with (
            aiohttp.ClientSession(auto_decompress=False) as client,
            client.request(method, url, **options) as answer,
        ):
            return answer.status, answer.headers, await answer.read()

    return asyncio.run(once())


def chat(url, *, stream=False, headers=None, content=ASKED, **more):
    body = {"model": "stub-model", "messages": content, "stream": stream, **more}
    return call("POST", f"{url}/v1/chat/completions", json=body, headers=headers or {})


def lines(tmp_path):
    rows = []
    for file in sorted((tmp_path / "log").glob("*.jsonl")):
        found, torn = read_log(file)
        assert torn == 0
        rows += found
    return rows


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def value_of(page, name):
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def test_what_passes_is_what_the_engine_says(tmp_path):
    with Stub(lambda *_: Say(["很", "好"])) as stub, server(stub, tmp_path) as proxy:
        for stream in (False, True):
            straight, through = chat(stub.url, stream=stream), chat(proxy.url, stream=stream)
            assert through[0] == straight[0] == 200
            assert through[1]["content-type"] == straight[1]["content-type"]
            assert (
                through[2]
                .replace(b"chatcmpl-1", b"chatcmpl-0")
                .replace(b"chatcmpl-3", b"chatcmpl-2")
                == straight[2]
            )
        assert stub.bodies[0] == stub.bodies[1]
        status, _, data = call("GET", f"{proxy.url}/v1/models?limit=1")
        assert (status, json.loads(data)["data"][0]["id"]) == (200, "stub-model")
        assert call("GET", f"{proxy.url}/no/such%2Fpath")[0] == 404


def test_the_first_piece_is_there_before_the_second_is_written(tmp_path):
    async def times(url):
        body = {"model": "m", "messages": ASKED, "stream": True}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/v1/chat/completions", json=body) as answer,
        ):
            begin = time.monotonic()
            return [(time.monotonic() - begin, part) async for part in answer.content.iter_any()]

    with Stub(lambda *_: Say(["a", "b", "c"], gap=0.3)) as stub, server(stub, tmp_path) as proxy:
        parts = asyncio.run(times(proxy.url))
    first = next(at for at, part in parts if b'"a"' in part)
    last = next(at for at, part in parts if b'"c"' in part)
    assert first < 0.25
    assert last >= 0.55
    (row,) = lines(tmp_path)
    assert row["request"]["first_token_s"] < 0.25
    assert row["latency_s"] >= 0.6


def test_a_line_without_texts_is_the_default(tmp_path):
    answer = "抱歉，我不能帮助你。"
    with (
        Stub(lambda *_: Say(list(answer))) as stub,
        server(stub, tmp_path) as proxy,
    ):
        _, headers, data = chat(proxy.url, headers={"Authorization": f"Bearer {KEY}"})
        assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
        assert stub.headers[0]["x-request-id"] == headers["x-request-id"]
    (file,) = (tmp_path / "log").glob("*.jsonl")
    assert file.name == f"requests-{time.strftime('%Y-%m-%d', time.gmtime())}.jsonl"
    text = file.read_text(encoding="utf-8")
    assert KEY not in text
    assert "早餐" not in text
    assert "抱歉" not in text
    assert file.stat().st_mode & 0o777 == 0o600
    row = json.loads(text)
    assert row["id"] == headers["x-request-id"]
    assert (row["source"], row["vote"], row["consent"], row["prompt"]) == (
        "serving", None, False, None,
    )  # fmt: skip
    assert row["completions"] == [{"model": "stub-model", "text": None}]
    assert row["tokens"] == len(answer)
    assert row["request"] == {
        "completion_id": json.loads(data)["id"], "status": 200, "failure": None,
        "first_token_s": None, "stream": False, "choices": 1, "finish_reason": "stop",
        "prompt_tokens": 7, "chars": 10, "language": "zh", "refuses": True,
    }  # fmt: skip


def test_texts_are_kept_where_asked_for_and_a_request_may_decline(tmp_path):
    with (
        Stub(lambda *_: Say(["Fine", ", 好"])) as stub,
        server(stub, tmp_path, log_texts=True) as proxy,
    ):
        chat(proxy.url, stream=True, stream_options={"include_usage": True})
        chat(proxy.url, headers={"X-Log-Texts": "no"})
        picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        chat(proxy.url, content=[{"role": "user", "content": picture}])
    kept, declined, picture = lines(tmp_path)
    assert kept["prompt"] == ASKED
    assert kept["completions"][0]["text"] == "Fine, 好"
    assert (kept["consent"], kept["tokens"], kept["request"]["stream"]) == (True, 2, True)
    assert (declined["consent"], declined["prompt"]) == (False, None)
    assert declined["completions"][0]["text"] is None
    assert declined["request"]["chars"] == 7
    assert (picture["prompt"], picture["completions"][0]["text"]) == (None, "Fine, 好")


def test_failures_have_a_line_and_a_count_each(tmp_path):
    plan = [Say(status=503), Say(["a"], then="error"), Say(["a"], then="cut")]
    with Stub(lambda number, _: plan[number]) as stub, server(stub, tmp_path) as proxy:
        status, headers, data = chat(proxy.url, stream=True)
        assert (status, "今天不行" in data.decode()) == (503, True)
        assert headers["x-request-id"]
        assert b"out of memory" in chat(proxy.url, stream=True)[2]
        with pytest.raises(aiohttp.ClientPayloadError):  # the client sees the cut too
            chat(proxy.url, stream=True)
        wait_for(lambda: len(lines(tmp_path)) == 3)
        page = call("GET", f"{proxy.url}/metrics")[2].decode()
    assert [r["request"]["failure"] for r in lines(tmp_path)] == [
        "http_503", "stream", "connection",
    ]  # fmt: skip
    assert all(r["completions"][0]["text"] is None for r in lines(tmp_path))
    for kind in ("http_503", "stream", "connection"):
        assert value_of(page, f'align_proxy_failures_total{{kind="{kind}"}}') == 1
    assert value_of(page, "align_proxy_log_lines_total") == 3
    assert value_of(page, "align_proxy_engine_metrics") == 0


def test_an_engine_that_is_gone(tmp_path):
    with ProxyServer(f"http://127.0.0.1:{free_port()}", "127.0.0.1", 0, tmp_path / "log") as proxy:
        status, headers, data = chat(proxy.url)
        assert status == 502
        assert "the engine does not answer" in json.loads(data)["error"]["message"]
        assert call("GET", f"{proxy.url}/health")[0] == 502
        assert "align_proxy_chats" in call("GET", f"{proxy.url}/metrics")[2].decode()
    (row,) = lines(tmp_path)
    assert (row["id"], row["request"]["failure"]) == (headers["x-request-id"], "connection")
    assert (row["request"]["status"], row["completions"][0]["model"]) == (None, "stub-model")


def test_a_client_that_leaves_stops_the_engine_and_is_noted(tmp_path):
    async def leave(url):
        body = {"model": "m", "messages": ASKED, "stream": True}
        async with aiohttp.ClientSession() as client:
            answer = await client.post(f"{url}/v1/chat/completions", json=body)
            await answer.content.readany()
            answer.close()

    with (
        Stub(lambda *_: Say(["a"] * 200, gap=0.05)) as stub,
        server(stub, tmp_path) as proxy,
    ):
        asyncio.run(leave(proxy.url))
        wait_for(lambda: stub.gone == 1)
        wait_for(lambda: lines(tmp_path))
        stub.answer = lambda *_: Say()
        assert chat(proxy.url)[0] == 200
    left, after = lines(tmp_path)
    assert (left["request"]["failure"], after["request"]["failure"]) == ("disconnected", None)


def test_metrics_hold_the_engines_page_too(tmp_path):
    page = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2.0\n"
    with (
        Stub(lambda *_: Say(["a"] * 5), metrics=lambda: page) as stub,
        server(stub, tmp_path) as proxy,
    ):
        chat(proxy.url)
        text = call("GET", f"{proxy.url}/metrics")[2].decode()
    assert text.endswith(page)
    assert value_of(text, "align_proxy_engine_metrics") == 1
    assert value_of(text, 'align_proxy_chats_total{status="200"}') == 1
    assert value_of(text, 'align_proxy_tokens_total{kind="completion"}') == 5
    assert value_of(text, "align_proxy_chat_seconds_count") == 1
    from prometheus_client.parser import text_string_to_metric_families

    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))


def test_a_full_disk_costs_lines_and_no_answers(tmp_path, monkeypatch, capsys):
    from align.feedback import records

    def full(*_):
        raise OSError(28, "No space left on device")

    with Stub(lambda *_: Say(["好"])) as stub, server(stub, tmp_path) as proxy:
        monkeypatch.setattr(records.os, "write", full)
        for _ in range(3):
            assert chat(proxy.url)[0] == 200
        lost = 'align_proxy_log_lines_lost_total{reason="OSError"}'
        page = wait_for(lambda: (p := call("GET", f"{proxy.url}/metrics")[2].decode())
                        and lost in p and value_of(p, lost) == 3 and p)  # fmt: skip
        assert value_of(page, "align_proxy_log_lines_total") == 0
        status, _, data = call("POST", f"{proxy.url}/feedback", json={"id": "x", "vote": "up"})
        assert (status, b"is no answer that was logged" in data) == (404, True)
        monkeypatch.undo()
        _, headers, _ = chat(proxy.url)
    assert [r["id"] for r in lines(tmp_path)] == [headers["x-request-id"]]
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 1  # not once a line


def test_votes_join_the_answer_and_the_last_counts(tmp_path):
    with (
        Stub(lambda *_: Say(["好"])) as stub,
        server(stub, tmp_path, log_texts=True) as proxy,
    ):
        _, headers, data = chat(proxy.url)
        url, answer = f"{proxy.url}/feedback", headers["x-request-id"]
        first = call("POST", url, json={"id": answer, "vote": "up", "annotator": "王"})
        # The engine's own id of the answer does as well.
        other = {"id": json.loads(data)["id"], "vote": "down", "annotator": "王", "comment": "太短"}
        second = call("POST", url, json=other)
    assert (first[0], second[0]) == (200, 200)
    one, two = json.loads(first[2]), json.loads(second[2])
    assert (one["answer"], one["replaced"], one["texts"]) == (answer, False, True)
    assert (two["answer"], two["replaced"]) == (answer, True)
    asked, up, down = lines(tmp_path)
    assert (up["answer"], down["answer"], down["vote"]) == (answer, answer, "down")
    assert down["prompt"] == asked["prompt"]
    assert down["completions"] == asked["completions"]
    assert (down["request"], down["latency_s"]) == ({"comment": "太短"}, None)


def test_a_vote_without_texts_keeps_none_of_its_own(tmp_path):
    with Stub(lambda *_: Say(["好"])) as stub, server(stub, tmp_path) as proxy:
        _, headers, _ = chat(proxy.url)
        said = {"id": headers["x-request-id"], "vote": "down", "comment": "我的电话是 123"}
        assert json.loads(call("POST", f"{proxy.url}/feedback", json=said)[2])["texts"] is False
    _, vote = lines(tmp_path)
    assert (vote["vote"], vote["consent"], vote["prompt"], vote["request"]) == (
        "down", False, None, {},
    )  # fmt: skip


def test_a_proxy_that_starts_again_knows_yesterdays_answers(tmp_path):
    with Stub(lambda *_: Say(["好"])) as stub:
        with server(stub, tmp_path) as proxy:
            answer = chat(proxy.url)[1]["x-request-id"]
            call("POST", f"{proxy.url}/feedback", json={"id": answer, "vote": "up"})
        (today,) = (tmp_path / "log").glob("*.jsonl")
        from datetime import datetime, timedelta, timezone

        before = (datetime.now(timezone.utc) - timedelta(days=1)).date().isoformat()
        row = json.loads(today.read_text().splitlines()[0])
        row |= {"id": "e" * 32, "time": f"{before}T12:00:00.000+00:00"}
        old = tmp_path / "log" / f"requests-{before}.jsonl"
        old.write_text("torn {\n" + json.dumps(row) + "\n")
        with server(stub, tmp_path) as proxy:
            again = call("POST", f"{proxy.url}/feedback", json={"id": answer, "vote": "down"})
            late = call("POST", f"{proxy.url}/feedback", json={"id": "e" * 32, "vote": "up"})
    assert json.loads(again[2])["replaced"] is True
    assert late[0] == 200
    assert json.loads(today.read_text().splitlines()[-1])["answer"] == "e" * 32


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 422, "the body is not JSON"),
        (b"[]", 422, "the body is not an object"),
        (b'{"vote": "up"}', 422, "id is missing: send the header X-Request-Id"),
        (b'{"id": "x", "vote": "left"}', 422, "vote='left' is not known: use up or down"),
        (b'{"id": "x", "vote": "up", "vot": 1}', 422, "'vot' is no field"),
        (b'{"id": "x", "vote": "up", "annotator": 5}', 422, "annotator is not a text of 1 to 80"),
        (b'{"id": "x", "vote": "up", "comment": ""}', 422, "comment is not a text of 1 to 2000"),
        (b" " * 70_000, 422, "at most 65536 are taken"),
        (b'{"id": "x", "vote": "up"}', 404, "id='x' is no answer that was logged today"),
    ],
)
def test_votes_that_cannot_be_taken(tmp_path, body, status, said):
    app = make_app("http://127.0.0.1:9", tmp_path / "log")
    from starlette.testclient import TestClient

    with TestClient(app) as client:
        answer = client.post("/feedback", content=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_token_guards_what_is_the_proxys_own(tmp_path):
    with (
        Stub(lambda *_: Say(), metrics=lambda: "up 1\n") as stub,
        server(stub, tmp_path, token="t0p") as proxy,
    ):
        good = {"Authorization": "Bearer t0p"}
        for method, path in (("GET", "metrics"), ("POST", "feedback")):
            assert call(method, f"{proxy.url}/{path}")[0] == 401
            assert call(method, f"{proxy.url}/{path}", headers={"Authorization": "t0p"})[0] == 401
        assert call("GET", f"{proxy.url}/metrics", headers=good)[0] == 200
        assert call("POST", f"{proxy.url}/feedback", headers=good)[0] == 422
        assert chat(proxy.url)[0] == 200  # the engine asks for its own key


def test_without_a_log_there_are_figures_only():
    from starlette.testclient import TestClient

    with TestClient(make_app("http://127.0.0.1:9/v1", None)) as client:
        assert client.post("/feedback", json={"id": "x", "vote": "up"}).status_code == 404
        assert client.post("/v1/chat/completions", json={}).status_code == 502
        assert 'kind="connection"} 1.0' in client.get("/metrics").text


def test_from_an_answer_to_the_next_reward_models_data(tmp_path):
    """Serve, proxy, votes, import: two samples of one prompt are a pair, and nothing is lost."""
    texts = ["很好，很安静。", "吵。", "Fine."]
    plan = [Say([texts[0]]), Say([texts[1]]), Say([texts[2]]), Say(status=500)]
    with (
        Stub(lambda number, _: plan[number]) as stub,
        server(stub, tmp_path, log_texts=True) as proxy,
    ):
        ids = [chat(proxy.url)[1]["x-request-id"] for _ in range(2)]
        ids.append(chat(proxy.url, content="?")[1]["x-request-id"])
        chat(proxy.url)
        said = [(0, "down", "ann"), (0, "up", "ann"), (0, "up", "bob"), (1, "down", "ann"),
                (2, "up", "ann")]  # fmt: skip
        for number, vote, who in said:
            body = {"id": ids[number], "vote": vote, "annotator": who}
            assert call("POST", f"{proxy.url}/feedback", json=body)[0] == 200
    (log,) = (tmp_path / "log").glob("*.jsonl")
    out = tmp_path / "groups"
    assert import_annotations(["--input", str(log), "--output", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "preferences.jsonl").open(encoding="utf-8")]
    (group,) = rows
    assert group["prompt"] == ASKED
    by_text = {c["content"]: group["judgements"][0]["value"][c["id"]] for c in group["candidates"]}
    assert by_text == {texts[0]: 1.0, texts[1]: 0.0}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    counts = report["rows"]
    assert counts["used"] + sum(counts["dropped"].values()) == 9
    assert counts["used"] == 3
    assert counts["dropped"] == {
        "failed_request": 1, "no_vote": 3, "one_candidate": 1, "replaced_vote": 1,
    }  # fmt: skip


def test_wrong_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file\. Give a folder, or a name with \.jsonl"):
        check_log(tmp_path / "file")
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(UserError, match=r"is a folder\. Leave \.jsonl out of its name"):
        check_log(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"cannot be written: look at .*file\. Give another"):
        check_log(tmp_path / "file" / "requests")
    assert check_log(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    with pytest.raises(UserError, match="is not an http or https URL"):
        make_app("127.0.0.1:8000", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is in use"):
            ProxyServer("http://127.0.0.1:9", "127.0.0.1", taken.getsockname()[1], None)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(proxy_module, "PACKAGES", ("no_such_package_anywhere",))
    with pytest.raises(UserError, match=r"no_such_package_anywhere.*pip install 'align\[serve\]'"):
        make_app("http://127.0.0.1:9", None)


def test_run_serves_until_sigterm(tmp_path):
    code = (
        "import sys; from pathlib import Path; from align.serving.proxy import run\n"
        "print(sys.modules.get('torch'), flush=True)\n"
        "sys.exit(run(sys.argv[1], '127.0.0.1', 0, Path(sys.argv[2]), log_texts=True,\n"
        "         ready=lambda url: print(url, flush=True)))\n"
    )
    with Stub(lambda *_: Say(["好"])) as stub:
        command = [sys.executable, "-c", code, f"{stub.url}/v1", str(tmp_path / "all.jsonl")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline().strip() == "None"
        assert chat(process.stdout.readline().strip())[0] == 200
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
    (row,), _ = read_log(tmp_path / "all.jsonl")
    assert row["completions"][0]["text"] == "好"


def test_the_openai_client_streams_and_votes_through_it(tmp_path):
    openai = pytest.importorskip("openai", reason="pip install openai")
    with (
        Stub(lambda *_: Say(["很", "好", "。"], gap=0.1)) as stub,
        server(stub, tmp_path, log_texts=True) as proxy,
    ):
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY)
        options = {"model": "stub-model", "messages": ASKED}
        whole = client.chat.completions.create(**options)
        begin, times, said = time.monotonic(), [], ""
        stream = client.chat.completions.create(**options, stream=True)
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                said += chunk.choices[0].delta.content
                times.append(time.monotonic() - begin)
        votes = [
            call("POST", f"{proxy.url}/feedback", json={"id": name, "vote": "up"})
            for name in (whole._request_id, chunk.id)
        ]
    assert (whole.choices[0].message.content, said) == ("很好。", "很好。")
    assert times[-1] - times[0] >= 0.1  # piece by piece, 0.2 s in all
    assert [status for status, _, _ in votes] == [200, 200]
    assert [r["request"]["failure"] for r in lines(tmp_path) if "answer" not in r] == [None, None]
    assert len({r["answer"] for r in lines(tmp_path) if "answer" in r}) == 2
