"""benchmarks/serve_load.py against a stub server whose delays and failures are known."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="extra 'serve'")
sys.path.insert(0, str(Path(__file__).parent / "serving"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import load_client
import load_metrics
import serve_load
from chat_stub import Say, Stub
from load_client import Level, Result, percentile, summary
from load_report import engine_row, findings, row

ROOT = Path(__file__).resolve().parents[1]
VLLM = """\
# HELP vllm:num_requests_waiting Number of requests waiting.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 640.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 90.0
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 4.0
vllm:e2e_request_latency_seconds_count 4.0
vllm:e2e_request_latency_seconds_sum 2.0
"""
LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 17
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 42
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 6
"""


def run(tmp_path, *words):
    code = serve_load.main([*map(str, words), "--output", str(tmp_path / "load")])
    return code, json.loads((tmp_path / "load" / "load.json").read_text(encoding="utf-8"))


def test_percentiles_are_nearest_rank():
    # Wikipedia's example: of 15, 20, 35, 40, 50 the 5th, 30th, 40th, 50th and 100th percentile.
    values = [50, 15, 40, 20, 35]
    assert [percentile(values, p) for p in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile(list(range(1, 101)), 95) == 95
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_a_level_by_hand():
    done = [Result(None, 0.1 * k, 0.05 * k, 0.01 * k, 10) for k in range(1, 21)]
    lost = [Result("http_500", 9.0), Result("timeout", 60.0), Result("timeout", 60.0)]
    got = summary(Level(4, done + lost, started=24, seconds=4.0, client_cpu=0.5))
    assert got["completed"] == 20
    assert got["failures"] == {"timeout": 2, "http_500": 1}
    assert got["unfinished"] == 1
    assert got["latency"] == pytest.approx({"p50": 1.0, "p95": 1.9, "p99": 2.0})
    assert got["first_token"] == pytest.approx({"p50": 0.5, "p95": 0.95})
    assert got["per_token"] == pytest.approx({"p50": 0.1, "p95": 0.19})
    assert (got["tokens"], got["tokens_per_s"], got["requests_per_s"]) == (200, 50.0, 5.0)
    assert (got["tokens_from"], got["tokens_per_answer"]) == ("usage", 10.0)
    assert row(got)[:6] == [
        "4", "20/24", "2 timeout, 1 http_500, 1 cut off", "1.000", "1.900", "2.000",
    ]  # fmt: skip


def test_a_level_without_answers_has_no_figures():
    got = summary(Level(2, [Result("connection", 0.0)], started=1, seconds=1.0))
    assert got["latency"] == {"p50": None, "p95": None, "p99": None}
    assert (got["tokens"], got["tokens_per_s"], got["requests_per_s"]) == (None, None, 0.0)
    assert row(got)[3] == "–"


def test_prometheus_pages_of_both_engines():
    assert load_metrics.parse(VLLM) == {
        "waiting": 5.0, "running": 8.0, "kv_cache": 0.25, "tokens": 640.0, "prompt_tokens": 90.0,
    }  # fmt: skip
    assert load_metrics.parse(LLAMA) == {
        "waiting": 6.0,
        "running": 4.0,
        "tokens": 42.0,
        "prompt_tokens": 17.0,
    }
    assert load_metrics.parse("# nothing of ours\nup 1\n") == {}


def test_prompts_differ_are_seeded_and_of_both_languages():
    texts = list(islice(load_client.prompts(3), 400))
    assert len(set(texts)) == 400
    assert texts == list(islice(load_client.prompts(3), 400))
    assert not set(texts) & set(islice(load_client.prompts(4), 400))
    assert len({t[:9] for t in texts}) == 400  # from the beginning on, for prefix caches
    chinese = [any("\u4e00" <= c <= "\u9fff" for c in t) for t in texts]
    assert chinese == [True, False] * 200
    own = list(islice(load_client.prompts(3, ["你好", "hi"]), 3))
    assert [t.split("] ")[1] for t in own] == ["你好", "hi", "你好"]


def test_latencies_and_failures_of_a_known_server(tmp_path):
    """One request at a time: 0.1 s to the first of three pieces, 0.1 s between; one 500, one hang.

    So 0.3 s an answer, 0.1 s to the first piece and for each of the two after it.
    """
    plan = {2: Say(status=500), 4: Say(["a"], then="hang"), 5: Say([]), 6: Say(["a"], then="error"),
            7: Say(["a"], then="cut")}  # fmt: skip

    def answer(number, body):
        return plan.get(number, Say(["早", "餐", "好"], wait=0.1, gap=0.1))

    with Stub(answer) as stub:
        code, found = run(tmp_path, "--url", f"{stub.url}/v1", "--concurrency", 1, "--requests", 8,
                          "--timeout", 0.6)  # fmt: skip
        assert code == 0
        assert len(stub.bodies) == 9  # and one to warm up
        prompts = [b["messages"][0]["content"] for b in stub.bodies]
        assert len(set(prompts)) == 9
        assert {b["max_tokens"] for b in stub.bodies} == {64}
    (server,) = found["runs"]
    (level,) = server["levels"]
    assert server["model"] == "stub-model"
    assert server["form"] == "ignore_eos"
    assert (level["started"], level["completed"]) == (8, 3)
    assert level["failures"].pop("stream", 0) + level["failures"].pop("connection", 0) == 2
    assert level["failures"] == {"http_500": 1, "timeout": 1, "empty": 1}
    assert "今天不行" in level["failure_details"]["http_500"]
    assert 0.3 <= level["latency"]["p50"] < 0.5
    assert 0.1 <= level["first_token"]["p50"] < 0.25
    assert 0.1 <= level["per_token"]["p50"] < 0.15
    assert (level["tokens"], level["tokens_from"]) == (9, "usage")
    # Three answers, and 0.6 s of waiting for the one that hangs.
    assert 1.5 <= level["seconds"] < 2.6
    assert level["tokens_per_s"] == pytest.approx(9 / level["seconds"])
    assert level["engine"] is None
    text = (tmp_path / "load" / "load.md").read_text(encoding="utf-8")
    assert "no /metrics" in text
    assert "1 http_500" in text
    page = (tmp_path / "load" / "report.html").read_text(encoding="utf-8")
    assert "stub-model" in page
    assert "http_500" in page


@pytest.mark.slow
def test_so_many_are_under_way_and_no_more(tmp_path):
    with Stub(lambda *_: Say(wait=0.4)) as stub:
        code, found = run(tmp_path, "--url", stub.url, "--concurrency", 16, 64, "--requests", 64)
        assert code == 0
        assert stub.most == 64
    some, all_ = found["runs"][0]["levels"]
    # 64 answers of 0.4 s each: in four rounds of sixteen, or in one.
    assert 1.6 <= some["seconds"] < 3.0
    assert 0.4 <= all_["seconds"] < 1.4
    assert (some["completed"], all_["completed"]) == (64, 64)


def test_without_a_stream_tokens_are_the_servers_usage(tmp_path):
    with Stub(lambda *_: Say(["a", "b"], wait=0.05)) as stub:
        code, found = run(tmp_path, "--url", stub.url, "--concurrency", 2, "--requests", 4,
                          "--no-stream")  # fmt: skip
        assert code == 0
        assert "stream_options" not in stub.bodies[-1]
    level = found["runs"][0]["levels"][0]
    assert (level["completed"], level["tokens"], level["tokens_from"]) == (4, 8, "usage")
    assert level["first_token"]["p50"] is None


def test_without_usage_pieces_are_counted_and_that_is_said(tmp_path):
    with Stub(lambda *_: Say(["a", "b", "c"], usage=False)) as stub:
        _, found = run(tmp_path, "--url", stub.url, "--concurrency", 1, "--requests", 2)
    (server,) = found["runs"]
    assert (server["levels"][0]["tokens"], server["levels"][0]["tokens_from"]) == (6, "counted")
    assert "the server sends no usage: tokens are pieces of its streams" in findings(server)


@pytest.mark.parametrize(
    ("refused", "form"),
    [
        (["ignore_eos"], "generation_config"),
        (["ignore_eos", "generation_config"], "neither: answers may end early"),
    ],
)
def test_what_a_server_refuses_is_left_out(tmp_path, refused, form):
    with Stub(lambda *_: Say(), refused=refused) as stub:
        code, found = run(tmp_path, "--url", stub.url, "--concurrency", 1, "--requests", 2)
        assert not set(refused) & set(stub.bodies[-1])
    assert (code, found["runs"][0]["form"]) == (0, form)
    assert found["runs"][0]["levels"][0]["completed"] == 2


def test_the_engines_own_counters_stand_beside_ours(tmp_path):
    pages = []

    def page():
        pages.append(None)
        return VLLM.replace("640.0", str(100.0 + 4 * (len(pages) > 1)))

    with Stub(lambda *_: Say(["a", "b"]), metrics=page) as stub:
        _, found = run(tmp_path, "--url", stub.url, "--concurrency", 1, "--requests", 2)
    level = found["runs"][0]["levels"][0]
    assert level["engine"]["tokens"] == level["tokens"] == 4
    assert (level["engine"]["max_waiting"], level["engine"]["max_kv_cache"]) == (5.0, 0.25)
    assert engine_row(level) == ["1", "8", "5", "25.0%", "4", "4", "0", "–"]


@pytest.mark.slow
def test_limits_of_a_level_and_of_the_whole(tmp_path):
    with Stub(lambda *_: Say(wait=0.2)) as stub:
        code, found = run(tmp_path, "--url", stub.url, "--concurrency", 1, "--requests", 1000,
                          "--max_seconds", 0.5)  # fmt: skip
        level = found["runs"][0]["levels"][0]
        assert code == 0
        assert (level["completed"], level["stopped"]) == (3, "no new request after 0.5 s")
        begin = time.monotonic()
        code, found = run(tmp_path, "--url", stub.url, "--concurrency", 1, 2, "--requests", 1000,
                          "--total_seconds", 0.7)  # fmt: skip
        assert time.monotonic() - begin < 5
    (server,) = found["runs"]
    assert code == 1
    assert server["levels"][0]["stopped"] == "the total time was over"
    assert server["levels"][0]["unfinished"] == 1
    assert server["error"] == "the total of 0.7 s was over before all levels"


def test_ctrl_c_gives_the_table_so_far(tmp_path):
    with Stub(lambda number, _: Say(wait=0.05 if number < 5 else 20.0)) as stub:
        command = [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--url", stub.url,
                   "--concurrency", "2", "4", "--requests", "4", "--output",
                   str(tmp_path)]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 30
        while len(stub.bodies) < 9:  # one to warm up, four, and four that hang
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=20)
    assert process.returncode == 130, text
    levels = json.loads((tmp_path / "load.json").read_text())["runs"][0]["levels"]
    assert [(v["completed"], v["unfinished"], v["stopped"]) for v in levels] == [
        (4, 0, None), (0, 4, "interrupted"),
    ]  # fmt: skip
    assert "4 cut off" in text


def test_nobody_there(tmp_path, capsys):
    code, found = run(tmp_path, "--url", "http://127.0.0.1:9", "--concurrency", 1)
    assert code == 1
    assert "does not answer" in found["runs"][0]["error"]
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--serve", "vllm"], "--export is needed by --serve"),
        (["--serve", "vllm", "--export", "nowhere"], "--export='nowhere' does not exist"),
        (["--url", "ftp://x"], "is not an http or https URL"),
        (["--url", "http://x", "--prompts", "{empty}"], "holds no prompt"),
        (["--url", "http://x", "--prompts", "{bad}"], "cannot be read"),
        (["--url", "http://x", "--output", "{empty}"], "is a file"),
    ],
)
def test_wrong_input(tmp_path, capsys, words, said):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "no prompt"}\n')
    names = {"{empty}": str(tmp_path / "empty.txt"), "{bad}": str(tmp_path / "bad.jsonl")}
    assert serve_load.main([names.get(w, w) for w in words]) == 2
    assert said in capsys.readouterr().err


def test_own_prompts_are_read(tmp_path):
    (tmp_path / "p.txt").write_text("写一条评论\n\nhello there\n", encoding="utf-8")
    assert serve_load.read_prompts(str(tmp_path / "p.txt")) == ["写一条评论", "hello there"]
    rows = [{"prompt": "早餐？"}, {"prompt": [{"role": "system", "content": "s"},
                                            {"role": "user", "content": "hi"}]}]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert serve_load.read_prompts(str(tmp_path / "p.jsonl")) == ["早餐？", "hi"]


@pytest.mark.slow
def test_an_engine_that_does_not_start_costs_itself_alone(tmp_path, monkeypatch, capsys):
    """The stand-in for recipes/serve_model.py serves the first engine and dies as the second."""
    fake = tmp_path / "recipes" / "serve_model.py"
    fake.parent.mkdir()
    fake.write_text(
        "import argparse, sys, time\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'serving')!r}]\n"
        "from chat_stub import Say, Stub\n"
        "p = argparse.ArgumentParser()\n"
        "for n in ('model', 'engine', 'port', 'log_dir', 'timeout'): p.add_argument('--' + n)\n"
        "a = p.parse_args()\n"
        "if a.engine == 'llama.cpp': sys.exit('no such wheel')\n"
        "with Stub(lambda *_: Say()) as s:\n"
        "    print(f'serving tiny on {s.url}/v1 (engine {a.engine}), log x', flush=True)\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.setattr(serve_load, "ROOT", tmp_path / "benchmarks")
    (tmp_path / "model").mkdir()
    code, found = run(tmp_path, "--serve", "llama.cpp", "vllm", "--export", tmp_path / "model",
                      "--concurrency", 1, "--requests", 2)  # fmt: skip
    assert code == 1
    llama, vllm = found["runs"]
    assert "no such wheel" in llama["error"]
    assert llama["levels"] == []
    assert (vllm["model"], vllm["error"], vllm["levels"][0]["completed"]) == ("tiny", None, 2)
    assert vllm["start_s"] > 0


def test_a_busy_client_is_said():
    level = {**summary(Level(64, [], 0, 1.0, client_cpu=0.95)), "engine": None}
    text = findings({"levels": [level], "error": None, "max_tokens": 64})
    assert text == ["concurrency 64: this client used 95% of a core and may have been the limit"]


def test_answers_that_end_early_are_said():
    long = {**summary(Level(1, [Result(None, 1.0, tokens=64)], 1, 1.0)), "engine": None}
    short = {**summary(Level(2, [Result(None, 1.0, tokens=20)], 1, 1.0)), "engine": None}
    run = {"levels": [long], "error": None, "max_tokens": 64}
    assert findings(run) == []
    assert "answers ended early: 20.0 of 64" in findings({**run, "levels": [long, short]})[0]


def test_a_refused_connection_is_a_failure_of_its_kind():
    async def once():
        async with load_client.open_client() as client:
            return await load_client.ask(client, "http://127.0.0.1:9/v1/chat/completions", b"{}", 5)

    assert asyncio.run(once()).failure == "connection"
