"""recipes/iterate.py before the first round: what is refused, and the plan."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import iterate_runs as it

from align.config import build, load_config
from align.config_yaml import load_yaml
from align.iteration import plans
from align.iteration.iterate import run_iterate


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def words(tmp_path, model, *extra):
    return it.words(it.prepare(tmp_path), model, tmp_path / "run", *extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--iterate.judge", "null"], "iterate.judge=null is needed: the reward alone rises"),
        (["--iterate.judge", "no/such"], "iterate.judge='no/such' no such file or folder"),
        (["--iterate.judge", "functions.py:none"], "iterate.judge='functions.py' does not exist"),
        (["--iterate.rounds", "0"], "iterate.rounds=0"),
        (["--iterate.n", "1"], "iterate.n=1"),
        (["--iterate.method", "ppo"], "iterate.method='ppo'"),
        (["--iterate.roundz", "2"], "Did you mean 'iterate.rounds'?"),
        (["--iterate.stop.patience", "0"], "iterate.stop.patience=0"),
        (["--policy.path", "null"], "policy.path=null is needed: nothing would be sampled"),
        (["--eval.prompts", "null"], "eval.prompts=null is needed"),
        (["--rewards", "[]"], "rewards=[] is empty"),
        (["--rollout.engine", "vllm_colocate"], "rollout.engine"),
        (["--rollout.engine", "vllm_server", "--rollout.server.url", "http://h:1"],
         "rollout.server.url"),
        (["--rollout.engine", "vllm_server", "--rollout.server.python", "/no/python"],
         "rollout.server.python"),
        (["--dpo.loss_type", "exo"], "dpo.label_smoothing=0.0 must be above 0 for exo"),
        (["--dpo.bta", "1"], "Did you mean 'dpo.beta'?"),
    ],
)
def test_what_is_refused_before_anything_is_written(tmp_path, model, capsys, extra, message):
    assert run_iterate(words(tmp_path, model, *extra)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_to_go_on_from_is_refused(tmp_path, model, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert run_iterate(words(tmp_path, model, "--policy.lora.path", adapter)) == 2
    assert "cannot be used here: every round has an adapter" in capsys.readouterr().err


def test_the_folder_of_another_run_is_refused(tmp_path, model, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text('{"method": "ppo"}')
    assert run_iterate(words(tmp_path, model)) == 2
    assert "holds a run of 'ppo'. Give another folder" in capsys.readouterr().err


def test_the_dry_run_shows_the_plan_and_writes_nothing(tmp_path, model, capsys):
    assert (
        run_iterate([*words(tmp_path, model, "--iterate.prompts_per_round", 5), "--dry_run"]) == 0
    )
    printed = capsys.readouterr().out
    assert "prompts.jsonl, 5 a round" in printed
    assert "4 answers a prompt, best_worst, then dpo against the previous policy" in printed
    assert "--data.preferences DATA --data.validation null" in printed
    assert "Nothing was trained or written." in printed
    assert not (tmp_path / "run").exists()


def test_help_and_config(tmp_path, model, capsys):
    assert run_iterate(["--help"]) == 0
    assert "usage: recipes/iterate.py" in capsys.readouterr().out
    assert run_iterate([*words(tmp_path, model), "--print_config"]) == 0
    assert "iterate:\n  method: dpo\n" in capsys.readouterr().out


def test_prompts_of_the_rounds_go_round(tmp_path, model):
    config = load_config("iterate", words(tmp_path, model, "--iterate.prompts_per_round", 10))
    made = [plans.round_prompts(config, plans.as_ppo(config), k) for k in (1, 2, 3)]
    texts = [[row["prompt"][0]["content"] for row in rows] for rows in made]
    assert [len(rows) for rows in texts] == [10, 10, 10]
    # Of 26 prompts the first two rounds share none; the third begins again with four.
    assert len({*texts[0], *texts[1]}) == 20
    assert texts[2][6:] == texts[0][:4]
    assert plans.round_prompts(config, plans.as_ppo(config), 1) == made[0]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("module:function", True), ("naive_bayes:judge.json", False), ("judge.json", False),
        ("llm:m@http://h/v1", False),
    ],
)  # fmt: skip
def test_functions_are_told_from_other_judges(path, wanted):
    assert plans.is_function(path) is wanted


def test_the_yaml_of_the_page_is_a_configuration():
    page = (it.ROOT / "docs" / "iteration.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    config = build("iterate", load_yaml(block))
    assert config.iterate.prompts_per_round == 512
    assert config.iterate.stop.patience == 2
