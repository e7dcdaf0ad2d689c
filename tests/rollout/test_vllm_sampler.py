"""The sampler over vLLM's HTTP endpoints, against a stand-in that serves a small model."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from align.config_errors import Failed, UserError
from align.config_rollout import RolloutServer
from align.engines.process import Launch
from align.rollout import Interrupted, vllm_server
from align.rollout.vllm import Served, VllmSampler, row_seeds
from align.rollout.vllm_http import EngineDown, VllmHttp
from align.rollout.vllm_server import Followed, Lasting, Managed, serves

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny
import vllm_stub

PROMPTS = ["写一条酒店评论", "Write a review of a hotel", "早餐", "The staff"]


@pytest.fixture(scope="module")
def model():
    return tiny.model("llama_gqa")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def served(folder):
    stub, server = vllm_stub.start(str(folder))
    yield stub, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def sampler(url: str, **fields) -> VllmSampler:
    model = Served(VllmHttp(url, 20.0), fields.pop("model", "policy"), 96)
    return VllmSampler(
        model, tiny.tokenizer(), {0}, **({"max_new_tokens": 12, "want_logps": True} | fields)
    )


def ids() -> list[list[int]]:
    return [tiny.tokenizer()(p)["input_ids"] for p in PROMPTS]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_log_probs_are_the_models_own(served, model, temperature):
    got = sampler(served[1], temperature=temperature).sample(ids(), 3, 7)
    assert len(got) == 12
    assert got.prompt_ids[3:6] == [ids()[1]] * 3
    for prompt, completion, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].double()
        scaled = torch.log_softmax(logits[len(prompt) - 1 : -1] / (temperature or 1.0), -1)
        own = scaled.gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert (own - torch.tensor(logps)).abs().max() < 1e-4
        if temperature == 0:
            assert (scaled.argmax(1) == torch.tensor(completion)).all()
    if temperature:
        assert len({tuple(c) for c in got.completions[:3]}) > 1


def test_a_sample_depends_on_its_seed_and_prompt_alone(served):
    url = served[1]
    seeds = [5, 6, 7, 8]
    together = sampler(url, batch_size=4).sample(ids(), 1, seeds)
    one = sampler(url, batch_size=1)
    alone = [one.sample([i], 1, [s]) for i, s in zip(ids(), seeds, strict=True)]
    assert together.completions == [a.completions[0] for a in alone]
    assert sampler(url).sample(ids(), 1, 3).completions == (
        sampler(url).sample(ids(), 1, 3).completions
    )
    assert sampler(url).sample(ids(), 1, 3).completions != (
        sampler(url).sample(ids(), 1, 4).completions
    )


def test_seeds_of_rows_differ_and_fit():
    seeds = row_seeds(1000, 3)
    assert len(set(seeds)) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    assert row_seeds(2, [9, 9])[0] == row_seeds(2, [9, 9])[1]
    with pytest.raises(ValueError, match="2 seeds for 3"):
        row_seeds(3, [1, 2])


def test_it_ends_at_stop_tokens_and_strings_as_hf_does(served, model):
    url = served[1]
    free = sampler(url, max_new_tokens=24).sample(ids(), 2, 1)
    unended = [c for c in free.completions if 0 not in c]
    token = unended[0][5]
    text = tiny.tokenizer().decode([token])
    stopped = VllmSampler(
        Served(VllmHttp(url), "policy", 96), tiny.tokenizer(), {0, token}, max_new_tokens=24
    ).sample(ids(), 2, 1)
    for before, after, finished in zip(
        free.completions, stopped.completions, stopped.finished, strict=True
    ):
        ends = [i for i, t in enumerate(before) if t in (0, token)]
        assert after == (before[: ends[0] + 1] if ends else before)
        assert finished == bool(ends)
    assert any(c[-1] == token for c in stopped.completions)
    strings = sampler(url, max_new_tokens=24, stop_strings=(text,)).sample(ids(), 2, 1)
    for before, after, said in zip(
        free.completions, strings.completions, strings.texts, strict=True
    ):
        assert after == before[: len(after)]
        assert text not in said
    assert any(len(a) < len(b) for a, b in zip(strings.completions, free.completions, strict=False))


def test_an_early_stop_does_not_count(served):
    got = sampler(served[1], max_new_tokens=24, min_new_tokens=24).sample(ids(), 2, 1)
    assert not any(got.finished)
    assert any(c[-1] == 0 for c in got.completions)


def test_nothing_of_the_distribution_is_left_to_the_server(served):
    stub, url = served
    sampler(url, batch_size=2).sample(ids()[:1], 1, 0)
    sent = stub.requests[-1]
    assert sent["top_k"] == 0
    assert (sent["top_p"], sent["min_p"], sent["repetition_penalty"]) == (1.0, 0.0, 1.0)
    assert sent["ignore_eos"]
    assert sent["stop_token_ids"] == [0]


def test_a_prompt_without_room_is_refused_before_anything_is_sent(served):
    stub, url = served
    before = len(stub.requests)
    with pytest.raises(UserError) as caught:
        sampler(url).sample([[5] * 90], 1, 0)
    assert str(caught.value) == (
        "rollout.max_new_tokens=12 does not fit: the longest prompt has 90 tokens and the model 96 "
        "positions. Use at most 6. Set data.max_prompt_length to 84 or less."
    )
    assert len(stub.requests) == before


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("short", "ended a completion after 1 of 12 tokens for the reason 'abort'"),
        ("logps", "answered with 12 tokens and 12 log-probs to a request of 12"),
        ("ids", r"does not answer with token ids and log-probs \(KeyError: 'token_ids'\)"),
    ],
)
def test_answers_that_are_not_whole(served, monkeypatch, kind, said):
    monkeypatch.setenv("STUB_BAD", kind)
    with pytest.raises(Failed, match=said):
        sampler(served[1], batch_size=1).sample(ids()[:1], 1, [11])


def test_a_model_that_is_not_served(served):
    with pytest.raises(EngineDown, match=r"failed \(404 on /v1/completions\): .*`other`"):
        sampler(served[1], model="other").sample(ids(), 1, 0)


def test_an_adapter_that_a_restarted_server_has_yet_to_load_is_waited_for(served, tmp_path):
    """As another rank than the first sees it: the server is back before its adapter is."""
    stub, url = served
    late = sampler(url, model="late")
    back = partial(serves, late.served.http, "late")
    engine = Followed(back, tmp_path, RolloutServer(timeout_s=20))
    timer = threading.Timer(0.5, stub.adapters.update, [{"late": stub.model}])
    timer.start()
    try:
        got = Lasting(late, engine, lambda: False).sample(ids(), 1, 3)
    finally:
        timer.join()
        del stub.adapters["late"]
    assert got.completions == sampler(url).sample(ids(), 1, 3).completions


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def test_who_asks_before_the_adapter_is_there_waits_and_the_server_is_left_alone(
    tmp_path, monkeypatch
):
    """As the first rank sees it, which loads the adapter after the restart."""

    def launch(model, *, log, port, **_):
        words = [sys.executable, "-c", SERVER, str(port)]
        return Launch("vLLM", words, f"http://127.0.0.1:{port}", log)

    monkeypatch.setattr(vllm_server, "launch", launch)
    started, loaded = threading.Event(), threading.Event()

    def after_start() -> None:
        started.set()
        loaded.wait(20)

    settings = RolloutServer(python=sys.executable)
    engine = Managed(settings, tmp_path / "log", after_start=after_start)
    try:
        engine.start(tmp_path)
        engine.answered()
        os.killpg(engine._server.process.pid, signal.SIGKILL)
        assert started.wait(20)
        mark = engine.mark()
        threading.Timer(0.3, loaded.set).start()
        engine.recover(mark, EngineDown("the adapter is not there"), lambda: False)
        assert loaded.is_set()
        assert (engine.restarts, engine.mark()) == (1, mark + 1)
    finally:
        loaded.set()
        engine.close()


def test_an_engine_that_is_gone():
    with pytest.raises(
        EngineDown, match=r"the engine at http://127\.0\.0\.1:9 is gone: Connection"
    ):
        sampler("http://127.0.0.1:9").sample(ids(), 1, 0)


def test_it_stops_waiting_when_told_to(served, monkeypatch):
    monkeypatch.setenv("STUB_HANGS", "1")
    told = threading.Event()
    threading.Timer(0.3, told.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        sampler(served[1], interrupted=told.is_set).sample(ids(), 1, 0)
    assert time.monotonic() - start < 5
    monkeypatch.delenv("STUB_HANGS")
    assert len(sampler(served[1]).sample(ids(), 1, 0)) == 4


def test_links_are_kept(served):
    made = sampler(served[1], batch_size=3)
    made.sample(ids(), 2, 0)
    kept = list(made.served.http._idle)
    assert len(kept) == 3
    made.sample(ids(), 2, 1)
    assert made.served.http._idle == kept or set(made.served.http._idle) == set(kept)
