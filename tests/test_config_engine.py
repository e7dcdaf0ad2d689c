"""Rules of rollout.engine, and that they are said before torch is imported."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.config import UserError, load_config
from align.config_engine import max_lora_rank

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["--config", str(ROOT / "recipes" / "configs" / "smoke.yaml")]
PYTHON = ["--rollout.server.python", sys.executable]
SERVER = ["--rollout.engine", "vllm_server", *PYTHON]
LORA = ["--policy.lora", "{r: 4}", "--ppo.critic", "separate", "--rollout.sync", "lora"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rollout.top_p", "0.9"], "rollout.top_p=0.9 cannot be used with rollout.engine="
         "vllm_server: its log-probs would be of the truncated distribution, and not of the policy"
         ". Use 1.0, or engine: hf."),
        (["--rollout.top_k", "5"], "rollout.top_k=5 cannot be used with rollout.engine=vllm"),
        (["--rollout.sync", "lora"], "rollout.sync='lora' needs policy.lora. Use reload."),
        (["--rollout.sync", "nccl", "--train.use_cpu", "true"],
         "rollout.sync='nccl' needs CUDA in trainer and server. Use reload, or lora."),
        ([*LORA, "--policy.lora.r", "600"], "policy.lora.r=600 is above 512"),
        ([*LORA, "--policy.lora.target_modules", "[q_proj, embed_tokens]"],
         "has embed_tokens, whose adapter vLLM does not add"),
        (["--rollout.server.args", "[--port, '1']"], "has --port, which the run sets itself"),
        (["--rollout.server.python", "/no/python"], "rollout.server.python='/no/python' does not "
         "exist. Give the bin/python of vLLM's venv."),
        (["--rollout.server.url", "http://h:1"], "rollout.server.python='"),
        (["--rollout.server.python", "null", "--rollout.server.url", "h:1"],
         "rollout.server.url='h:1'"),
    ],
)  # fmt: skip
def test_what_a_server_cannot_do(words, said):
    with pytest.raises(UserError) as caught:
        load_config("ppo", [*SMOKE, *SERVER, *words])
    assert said in str(caught.value)


def test_quantised_weights_are_not_sent(monkeypatch):
    monkeypatch.setattr("align.config_checks.find_spec", lambda name: object())
    quantised = ["--policy.quantization", "4bit", "--policy.lora", "{r: 4}"]
    with pytest.raises(UserError, match="k-bit weights are not sent"):
        load_config("ppo", [*SMOKE, *SERVER, *quantised])


def colocated(monkeypatch, *words: str, vllm: object = object()):
    monkeypatch.setattr("align.config_engine.find_spec", lambda name: vllm)
    return load_config("ppo", [*SMOKE, "--rollout.engine", "vllm_colocate", *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rollout.server.port", "80"], "rollout.server.port=80 is of a server, and rollout."
         "engine=vllm_colocate has none. Remove one of the two."),
        (["--rollout.sync", "nccl"], "rollout.sync='nccl' sends weights to a server, and "
         "vllm_colocate has none. Use reload, or lora."),
        (["--rollout.top_p", "0.9"], "cannot be used with rollout.engine=vllm_colocate"),
        (["--rollout.sync", "lora"], "rollout.sync='lora' needs policy.lora. Use reload."),
        (["--rollout.gpu_memory_utilization", "1.5"], "rollout.gpu_memory_utilization=1.5"),
    ],
)  # fmt: skip
def test_what_colocation_cannot_do(monkeypatch, words, said):
    with pytest.raises(UserError) as caught:
        colocated(monkeypatch, *words)
    assert said in str(caught.value)


def test_colocation_needs_vllm_where_it_trains(monkeypatch):
    with pytest.raises(UserError) as caught:
        colocated(monkeypatch, vllm=None)
    assert str(caught.value) == (
        "rollout.engine='vllm_colocate' needs vllm in the environment that trains. Make one: python"
        " recipes/setup_engine.py vllm-train, and start the recipe with its bin/python; or use "
        "vllm_server."
    )
    assert colocated(monkeypatch).rollout.gpu_memory_utilization == 0.3


def test_other_methods_read_the_same_file():
    assert load_config("dpo", [*SMOKE, *SERVER, "--rollout.top_p", "0.9"]).rollout.top_p == 0.9


def test_an_engine_that_is_not_there_is_said_at_once(tmp_path):
    argv = [sys.executable, "recipes/ppo.py", *SMOKE, "--rollout.engine", "vllm_server"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "ALIGN_ENGINES": str(tmp_path)}
    start = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "is needed: vLLM is neither here nor in an environment of its own" in done.stderr
    assert "Make one: python recipes/setup_engine.py vllm" in done.stderr
    assert time.monotonic() - start < 20  # no torch; the machine may be busy


def test_ranks_of_adapters():
    assert [max_lora_rank(r) for r in (1, 8, 9, 200, 512)] == [8, 8, 16, 256, 512]
