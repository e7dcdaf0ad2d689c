"""The sampler over vLLM in this process, against a stand-in for its module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from align.config_errors import Failed
from align.rollout import Interrupted
from align.rollout.vllm import Served, VllmSampler
from align.rollout.vllm_http import EngineDown, EngineRefused, VllmHttp
from align.rollout.vllm_local import VllmLocal, start

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny
import vllm_fake
import vllm_stub

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["写一条酒店评论", "Write a review of a hotel", "早餐", "The staff"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny.model("llama_gqa").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return str(place)


@pytest.fixture
def fake(monkeypatch):
    return vllm_fake.install(monkeypatch)


@pytest.fixture
def local(fake, folder):
    made = VllmLocal(*start({}, model=folder, max_model_len=96), "policy")
    yield made
    made.close()


def sampler(link, **fields) -> VllmSampler:
    model = Served(link, fields.pop("model", "policy"), 96)
    return VllmSampler(
        model, tiny.tokenizer(), {0}, **({"max_new_tokens": 12, "want_logps": True} | fields)
    )


def ids() -> list[list[int]]:
    return [tiny.tokenizer()(p)["input_ids"] for p in PROMPTS]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_the_models_own(local, temperature):
    model = tiny.model("llama_gqa")
    got = sampler(local, temperature=temperature).sample(ids(), 2, 7)
    assert got.prompt_ids == [i for i in ids() for _ in range(2)]
    for prompt, completion, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].double()
        scaled = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
        own = scaled.gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert (own - torch.tensor(logps)).abs().max() < 1e-4


def test_a_server_draws_the_same(local, folder):
    _, server = vllm_stub.start(folder)
    link = VllmHttp(f"http://127.0.0.1:{server.server_address[1]}", 20.0)
    text = tiny.tokenizer().decode([sampler(link).sample(ids()[:1], 1, 3).completions[0][4]])
    for fields in ({}, {"stop_strings": (text,)}, {"temperature": 0.5, "top_p": 0.8, "top_k": 9}):
        here = sampler(local, **fields).sample(ids(), 3, 3)
        assert here == sampler(link, **fields).sample(ids(), 3, 3)
        assert len({tuple(c) for c in here.completions[:3]}) > 1
    server.shutdown()


def test_each_completion_has_its_own_seed_whatever_is_under_way(local):
    seeds = [5, 6, 7, 8]
    together = sampler(local, batch_size=3).sample(ids(), 1, seeds)
    assert local.llm.llm_engine.largest == 3
    alone = [sampler(local).sample([i], 1, [s]) for i, s in zip(ids(), seeds, strict=True)]
    assert together.completions == [a.completions[0] for a in alone]
    assert together.completions != sampler(local).sample(ids(), 1, [6, 7, 8, 9]).completions


def test_it_stops_between_two_steps_when_told_to(local, fake):
    told = lambda: fake.log.count("step") >= 2  # noqa: E731
    with pytest.raises(Interrupted):
        sampler(local, interrupted=told).sample(ids(), 1, 0)
    assert fake.log.count("step") == 2
    assert not local.llm.llm_engine.waiting
    again = sampler(local).sample(ids(), 1, 0)
    assert len(again) == 4


def test_a_failure_is_said_and_a_signal_is_none(local, fake):
    fake.faults.dies_after = 1
    with pytest.raises(Failed) as caught:
        sampler(local).sample(ids(), 1, 0)
    assert str(caught.value) == (
        "vLLM in this process failed while sampling: RuntimeError: EngineCore encountered an issue."
        " 引擎出错. What it said is above"
    )
    answers = iter([False, True])  # its processes die of Ctrl-C too
    with pytest.raises(Interrupted):
        sampler(local, interrupted=lambda: next(answers)).sample(ids(), 1, 0)


def test_a_call_that_waits_for_a_dead_engine_is_given_up(local, fake, monkeypatch):
    class Dead:
        pid, exitcode = 1, -9

        def is_alive(self):
            return False

    monkeypatch.setattr("align.rollout.vllm_local.DYING_S", 0.2)
    monkeypatch.setattr(local._own, "children", [Dead()])
    monkeypatch.setattr(local.llm, "reset_prefix_cache", threading.Event().wait)
    with pytest.raises(EngineDown, match="RuntimeError: its process ended with code -9"):
        local.ask("POST", "/reset_prefix_cache")


def test_what_is_no_whole_sample(local, fake):
    fake.faults.finish_reason = "abort"
    short = ids()[:1]
    with pytest.raises(Failed, match=r"vLLM in this process ended a completion after \d+ of 64"):
        sampler(local, max_new_tokens=64).sample(short, 8, 1)
    with pytest.raises(EngineRefused, match="vLLM in this process has no model 'other'"):
        sampler(local, model="other").sample(ids(), 1, 0)


def test_a_reload_that_fails(local):
    body = {"method": "reload_weights", "kwargs": {"weights_path": "/no/folder"}}
    with pytest.raises(EngineDown, match=r"vLLM in this process failed \(/collective_rpc\)"):
        local.ask("POST", "/collective_rpc", body)
    assert local.healthy()
    local.close()
    assert not local.healthy()


def test_its_memory_is_free_until_it_is_asked_again(fake, folder):
    local = VllmLocal(*start({}, model=folder, max_model_len=96), "policy", sleeps=True)
    for _ in range(2):  # a second time changes nothing
        local.sleep()
    assert fake.log == ["sleep 1"]
    sampler(local).sample(ids()[:1], 1, 0)
    local.ask("POST", "/reset_prefix_cache")
    assert fake.log[1:] == ["wake_up", "step", "reset_prefix_cache"]
    VllmLocal(local.llm, local._own, "policy").sleep()  # on a CPU there is nothing to give back
    assert fake.log[-1] == "reset_prefix_cache"
    local.close()


def test_its_processes_are_no_ranks_of_this_run(fake, folder, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    llm, own = start({"CUDA_VISIBLE_DEVICES": "3"}, model=folder, max_model_len=96)
    own.end()
    seen = llm.environment
    assert dict(os.environ) == before
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & {*seen}
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["PATH"]) == ("3", before["PATH"])
    fake.faults.start = "no memory 内存不足"
    with pytest.raises(Failed, match="vLLM did not start in this process: RuntimeError: no memory"):
        start({}, model=folder, max_model_len=96)
    assert dict(os.environ) == before


@pytest.mark.slow
def test_its_processes_end_with_this_one_and_hear_no_signal_for_it(tmp_path):
    """A killed run leaves nothing; a signal for the process group does not reach the engine."""
    script = tmp_path / "run.py"
    script.write_text(
        "import multiprocessing, os, signal, subprocess, sys, time, types\n"
        "from align.rollout import vllm_local\n"
        "def serve():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open(sys.argv[1] + '~', 'w').write(f'{os.getpid()} {worker.pid}')\n"
        "    os.rename(sys.argv[1] + '~', sys.argv[1])\n"
        "    time.sleep(600)\n"
        "class LLM:\n"
        "    def __init__(self):\n"
        "        multiprocessing.get_context('spawn').Process(target=serve, daemon=True).start()\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['vllm'] = types.SimpleNamespace(LLM=LLM)\n"
        "    vllm_local.start({})\n"
        "    while not os.path.exists(sys.argv[1]): time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        encoding="utf-8",
    )
    note = tmp_path / "pid"
    done = subprocess.run([sys.executable, script, note], check=False, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    left, end = [Path("/proc") / pid for pid in note.read_text().split()], time.monotonic() + 10
    while any(place.exists() for place in left) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(left) == 2
    assert not [place for place in left if place.exists()]
