"""PPO whose rollouts come from a server: weights pushed, checked, and the server brought back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rollout"))
import ppo_models as tiny
import vllm_stub

from align.config_errors import Failed, UserError
from align.train.runner import callbacks, run_training

LORA = {"policy": {"lora": {"r": 4, "alpha": 8.0, "target_modules": "all-linear"}}}


@pytest.fixture
def there(request):
    """A stand-in that runs already, in this process: (stub, the `rollout` keys that name it)."""
    stub, server = vllm_stub.start(tiny.base(), positions=96, **getattr(request, "param", {}))
    url = f"http://127.0.0.1:{server.server_address[1]}"
    yield stub, {"engine": "vllm_server", "server": {"url": url, "timeout_s": 30}}
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(tmp_path):
    """The `rollout` keys of a server that the run starts: the stand-in."""
    python = vllm_stub.interpreter(tmp_path)
    return {"engine": "vllm_server", "server": {"python": python, "timeout_s": 120}}


def run(folder: Path, rollout: dict, *, steps: int = 3, **sections):
    """A run of a few updates of one step each, with what `ppo.train` does around it."""
    train = {"max_steps": steps, "learning_rate": 1e-2, **sections.pop("train", {})}
    settings = tiny.config(folder, rollout=rollout, train=train, **sections)
    made = tiny.trainer(settings, callbacks=callbacks(settings))
    try:
        run_training(made, settings)
    finally:
        made.collector.draws.close()
    return made


@pytest.mark.parametrize("there", [{}, {"lora": True}], indirect=True, ids=["reload", "lora"])
def test_each_update_samples_with_the_weights_it_is_measured_with(tmp_path, there):
    stub, rollout = there
    sync, more = ("lora", LORA) if stub.lora else ("auto", {})
    made = run(tmp_path, {**rollout, "sync": sync}, **more)
    gaps = tiny.logged(made, "sampler_gap")
    assert len(gaps) == 3
    assert max(gaps) < 1e-4
    assert tiny.logged(made, "engine_restarts") == [0.0] * 3
    assert not (tmp_path / "run" / ".rollout_weights").exists()
    if stub.lora:
        assert len(stub.loaded) == 1  # the base it was started on
        assert len(stub.adapters) == 1  # those before were dropped
    else:
        assert [Path(f).name for f in stub.loaded[1:]] == ["weights-1", "weights-0", "weights-1"]


@pytest.mark.slow
def test_sampling_ahead_is_one_update_old_and_corrected(tmp_path, there):
    made = run(tmp_path, {**there[1], "async": 1}, steps=4)
    assert tiny.logged(made, "staleness") == [0.0, 1.0, 1.0, 1.0]
    gaps = tiny.logged(made, "sampler_gap")
    assert gaps[0] < 1e-4
    assert min(gaps[1:]) > 1e-3  # of weights before a step at this learning rate


@pytest.mark.slow
@pytest.mark.parametrize("there", [{"lora": True}], indirect=True)
def test_the_merged_adapter_is_what_is_reloaded(tmp_path, there):
    made = run(tmp_path, there[1], **LORA)
    assert max(tiny.logged(made, "sampler_gap")) < 1e-4


@pytest.mark.slow
def test_held_out_prompts_are_sampled_from_the_weights_of_their_step(tmp_path, there):
    rows = tmp_path / "held_out.jsonl"
    rows.write_text('{"prompt": "写一条酒店评论"}\n{"prompt": "The food"}\n', encoding="utf-8")
    evaluates = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    made = run(tmp_path, there[1], train=evaluates, eval={"prompts": str(rows)}, steps=2)
    assert len(tiny.logged(made, "eval_score/mean")) == 3
    assert (tmp_path / "run" / "samples.jsonl").is_file()


def test_a_push_that_the_server_does_not_take_ends_the_run(tmp_path, there, monkeypatch):
    monkeypatch.setenv("STUB_DEAF", "1")
    with pytest.raises(Failed) as caught:
        run(tmp_path, there[1])
    said = str(caught.value)
    assert "the server samples with other weights than the trainer's: right after a sync" in said
    assert "more than rollout.max_sampler_gap=0.001" in said
    assert "checkpoint-1: the same command" in said or "--train.resume auto goes on at" in said
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


@pytest.mark.slow
def test_a_server_of_somebody_else_that_is_gone_ends_the_run_with_its_state(
    tmp_path, there, monkeypatch
):
    stub, rollout = there
    answer = stub.complete

    def failing(body):
        if stub.completions > 12:
            raise ConnectionError
        return answer(body)

    monkeypatch.setattr(stub, "complete", failing)
    with pytest.raises(Failed) as caught:
        run(tmp_path, rollout)
    assert "The run did not start it (rollout.server.url): start it again and resume" in str(
        caught.value
    )
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
    monkeypatch.setattr(stub, "complete", answer)
    made = run(tmp_path, rollout, train={"resume": "auto"})
    assert made.state.global_step == 3
    assert tiny.logged(made, "sampler_gap")[-1] < 1e-4


@pytest.mark.parametrize(
    ("there", "rollout", "sections", "said"),
    [
        ({"dev": False}, {}, {}, "has no development endpoints, by which weights are pushed"),
        ({}, {"sync": "lora"}, LORA, "takes no adapters. Start it with: VLLM_SERVER_DEV_MODE=1 "
         "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve"),
        ({"lora": True}, {"sync": "lora"}, {"policy": {"lora": {"r": 64}}},
         "takes adapters of rank 16, and policy.lora.r is 64"),
    ],
    indirect=["there"],
)  # fmt: skip
def test_a_server_that_cannot_take_weights(tmp_path, there, rollout, sections, said):
    with pytest.raises(UserError) as caught:
        run(tmp_path, {**there[1], **rollout}, **sections)
    assert said in str(caught.value)


def test_a_server_with_other_log_probs(tmp_path, there, monkeypatch):
    monkeypatch.setenv("STUB_LOGPROBS", "raw_logprobs")
    with pytest.raises(UserError) as caught:
        run(tmp_path, there[1])
    assert "has --logprobs-mode raw_logprobs: what it draws from would not be" in str(caught.value)
    assert "--generation-config vllm --logprobs-mode processed_logprobs." in str(caught.value)


def test_no_server_at_the_url(tmp_path):
    server = {"url": "http://127.0.0.1:9", "timeout_s": 5}
    with pytest.raises(UserError, match=r"rollout.server.url='http://127.0.0.1:9' does not answer"):
        run(tmp_path, {"engine": "vllm_server", "server": server})


@pytest.mark.slow
def test_a_server_of_the_run_is_started_again_and_gives_the_same_samples(
    tmp_path, engine, monkeypatch
):
    monkeypatch.setenv("STUB_DIES_AFTER", "14")  # the probe and 8 of each update: in the second
    monkeypatch.setenv("STUB_DIED", str(tmp_path / "died"))
    made = run(tmp_path, engine, steps=2)
    assert (tmp_path / "died").exists()
    assert tiny.logged(made, "engine_restarts") == [0.0, 0.0]
    assert made.collector.draws.engine.server.restarts == 1
    assert max(tiny.logged(made, "sampler_gap")) < 1e-4
    log = (tmp_path / "run" / "logs" / "vllm.log").read_text()
    assert log.count("stub: --model") == 2
    monkeypatch.delenv("STUB_DIES_AFTER")
    (tmp_path / "again").mkdir()
    undisturbed = run(tmp_path / "again", engine, steps=2)
    assert tiny.logged(undisturbed, "score/mean") == tiny.logged(made, "score/mean")


@pytest.mark.slow
def test_a_server_that_keeps_dying_ends_the_run_which_resumes(tmp_path, engine, monkeypatch):
    monkeypatch.setenv("STUB_DIES_AFTER", "14")
    limited = {**engine, "server": {**engine["server"], "restarts": 0}}
    with pytest.raises(Failed, match="vLLM ended with code 3") as caught:
        run(tmp_path, limited)
    assert "checkpoint-1" in str(caught.value)
    monkeypatch.delenv("STUB_DIES_AFTER")
    made = run(tmp_path, limited, train={"resume": "auto"})
    assert made.state.global_step == 3


def test_a_folder_that_the_server_does_not_see(tmp_path, there, monkeypatch):
    def load(folder):
        raise OSError("no such folder")

    monkeypatch.setattr(there[0], "load", load)
    with pytest.raises(Failed, match=r"no such folder. It must see .*weights-1 under this path"):
        run(tmp_path, there[1])


@pytest.mark.slow
def test_a_server_that_dies_of_its_first_request_is_not_started_again(
    tmp_path, engine, monkeypatch
):
    monkeypatch.setenv("STUB_DIES_AFTER", "0")
    with pytest.raises(Failed, match="had not answered a single request, and would not on another"):
        run(tmp_path, engine)
    assert (tmp_path / "run" / "logs" / "vllm.log").read_text().count("stub: --model") == 1


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such device; exit 4\n")
    python.chmod(0o755)
    server = {"python": str(python), "timeout_s": 20}
    with pytest.raises(Failed, match=r"vLLM ended with code 4(?s:.)*no such device"):
        run(tmp_path, {"engine": "vllm_server", "server": server})
