"""vLLM, in its own environment, behind `serve_model.py`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chain_model
import client_checks as checks
from serve_process import serving

from align.engines.venvs import find_python

pytest.importorskip("openai")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_python("vllm") is None, reason="no vllm in ALIGN_ENGINES"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain_model.save_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    with serving(model, tmp_path_factory.mktemp("logs"), "--engine", "vllm") as running:
        yield running


@pytest.mark.parametrize("check", [*checks.EVERY_ENGINE, checks.check_unknown_model])
def test_client(served, check):
    check(served)


def test_several_answers_and_metrics(served):
    got = checks.ask(served, max_tokens=60, n=8, temperature=1, seed=1)
    assert {c.message.content for c in got.choices} == checks.ANSWERS
    assert checks.get(served, "/metrics") == 200


def adapter(base: Path, folder: Path, word: str) -> None:
    """A LoRA that answers `word` again and again, in both of an answer's languages.

    Attention adds, whatever it looks at, the state of the token before `word`, 3.5 times as long as
    that of the token that was read: each factor of 0.05 and √512 is worked out below.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    targets = ["v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    made = AutoTokenizer.from_pretrained(base)
    (wanted,) = made(word, add_special_tokens=False)["input_ids"]
    way = next(way for way in chain_model.paths(made) if wanted in way)
    before = way[way.index(wanted) - 1]
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "o_proj.lora_B" in name:
                weight.zero_()
                weight[before] = 0.15  # 4 · 0.15 · 5.8 = 3.5
            elif "lora_" in name:
                # v: A 0.05 · √512 = 1.13, B 4 · 0.05 · 1.13 = 0.23; o: A 512 · 0.05 · 0.23 = 5.8
                weight.fill_(0.05)
    tuned.save_pretrained(folder)


def test_a_key_covers_every_path_and_the_stop_is_clean(model, tmp_path):
    env = {**os.environ, "SERVE_KEY": "sesam"}
    with serving(model, tmp_path, "--engine", "vllm", "--api_key_env", "SERVE_KEY", env=env) as it:
        assert checks.get(it, "/health") == 200
        asked = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
        for path in ("/v1/chat/completions", "/invocations", "/tokenize"):
            assert checks.post(it, path, asked) == 401
        key = {"Authorization": "Bearer sesam"}
        assert checks.post(it, "/v1/chat/completions", asked, **key) == 200
        assert checks.post(it, "/invocations", asked, **key) == 404
        assert it.end(signal.SIGTERM) == 0
    assert "sesam" not in (tmp_path / "command.txt").read_text()
    assert "sesam" not in (tmp_path / "server.log").read_text()


def test_adapters_are_served_by_name(model, tmp_path):
    """Three names; each adapter answers as it was made to, the base as before."""
    folders = pytest.importorskip("align.export.adapter_folder")
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "base").symlink_to(model, target_is_directory=True)
    words = {"view": " view", "zh": "服务很好"}
    for name, word in words.items():
        adapter(model, folder / "adapters" / name, word)
    folders.write_adapters(folder, "base", [(name, f"adapters/{name}", 4) for name in words])
    with serving(folder, tmp_path / "logs", "--served_model_name", "base") as running:
        assert sorted(running.names) == ["base", "view", "zh"]
        assert sorted(m.id for m in running.client().models.list()) == ["base", "view", "zh"]
        checks.check_answer(running)
        for name, word in words.items():
            got = checks.ask(running, model=name, max_tokens=3)
            assert got.choices[0].message.content.strip() == (word * 3).strip()
