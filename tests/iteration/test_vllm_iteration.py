"""best_of_n and iterate over a server: the same files, and a killed run goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "rollout"))
sys.path.insert(0, str(Path(__file__).parents[1] / "iteration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import eval_models
import iterate_runs as runs
import vllm_stub

from align.tools import run_tool

REWARD = """
def length(prompts, completions, finished=None, **kwargs):
    return [float(len(c)) for c in completions]
"""


@pytest.fixture
def words(tmp_path):
    eval_models.save(tmp_path / "run", 3)
    rows = [{"prompt": f"{eval_models.PROMPTS[i % 6]} {i}"} for i in range(20)]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (tmp_path / "prompts.jsonl").write_text(text, "utf-8")
    (tmp_path / "reward.py").write_text(REWARD, "utf-8")
    return [
        "--model", str(tmp_path / "run"), "--prompts", str(tmp_path / "prompts.jsonl"),
        "--reward", f"{tmp_path / 'reward.py'}:length", "--n", "3", "--max_new_tokens", "8",
        "--output", str(tmp_path / "out"), "--unfinished", "keep", "--engine", "vllm_server",
    ]  # fmt: skip


@pytest.mark.slow
def test_best_of_n_samples_from_a_server_and_goes_on_where_it_was_killed(words, tmp_path):
    python = ["--engine_python", vllm_stub.interpreter(tmp_path)]
    assert run_tool("best_of_n", [*words, *python]) == 0
    file = tmp_path / "out" / "samples.jsonl"
    whole = file.read_text("utf-8")
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 60
    assert len({row["completion"] for row in rows}) > 30
    assert not (tmp_path / "out" / ".served").exists()
    file.write_text("\n".join(whole.splitlines()[:50]) + "\n", "utf-8")  # in its second block
    assert run_tool("best_of_n", [*words, *python]) == 0
    again = file.read_text("utf-8")
    assert sorted(again.splitlines()) == sorted(whole.splitlines())
    assert run_tool("best_of_n", [*words, "--engine_python", "/no/python"]) == 2


@pytest.mark.slow
def test_iterate_samples_each_round_from_a_server_of_its_own(tmp_path):
    import small_runs

    folder = runs.prepare(tmp_path, prompts=8)
    argv = runs.words(
        folder, small_runs.base(), tmp_path / "out", "--iterate.rounds", "2",
        "--rollout.engine", "vllm_server",
        "--rollout.server.python", vllm_stub.interpreter(tmp_path),
    )  # fmt: skip
    said = runs.run(argv)
    assert said.count("starting vLLM at") == 2
    assert len(list((tmp_path / "out").glob("round-*/sample/logs/vllm.log"))) == 2 or said
