"""Whoever takes a score (scoring, evaluation, serving, PPO) refuses a mismatch by its name."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_rewards as tiny

from align.config_errors import UserError
from align.rewards.base import make_reward
from reward_models.__main__ import main
from reward_models.contract import make_contract
from reward_models.model import complete_adapter

# Another reading than the model's, and what no reader could use.
MISMATCHES = {
    "template_hash": "0" * 64,
    "tokenizer_hash": "0" * 64,
    "eos_rule": "last_token",
    "padding_side": "left",
    "heads": 3,
}
DAMAGED = {
    "max_length": 0,
    "max_prompt_length": "many",
    "truncation": "middle",
    "score_mean": None,
    "score_std": 0.0,
    "head_means": [0.0, 1.0, 2.0],
    "attributes": ["helpfulness"],  # without weights
    "attribute_weights": [1.0],
    "attribute_mean": [1.0],
    "attribute_std": [-1.0],
    "data_fingerprint": 7,
    "held_out_accuracy": "high",
    "base_fingerprint": 7,
}
# What a list of attributes without its weights is called: the list that does not fit.
NAMED = {"attributes": "attribute_weights"}


def score(folder, tmp_path):
    output = tmp_path / "scored.jsonl"
    words = ["score", "--model", str(folder), "--input", str(tmp_path / "in.jsonl")]
    return [*words, "--output", str(output)]


def evaluate(folder, tmp_path):
    return ["evaluate", "--model", str(folder), "--input", str(tmp_path / "in.jsonl")]


def compare(folder, tmp_path):
    words = ["compare", "--model", str(folder), "--model", str(folder)]
    return [*words, "--input", str(tmp_path / "in.jsonl")]


def serve(folder, tmp_path):
    return ["serve", "--model", str(folder), "--port", "0"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("rm") / "final", heads=2)


@pytest.fixture
def folder(saved, tmp_path):
    """The checkpoint with a contract that a test may change."""
    row = {"prompt": "写一条酒店评论", "chosen": "房间很干净。", "rejected": "太差了。"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    before = (saved / "contract.json").read_text()
    yield saved
    (saved / "contract.json").write_text(before)


def change(folder, field, value):
    file = folder / "contract.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))


@pytest.mark.parametrize(("field", "value"), [*MISMATCHES.items(), *DAMAGED.items()])
@pytest.mark.parametrize("command", [score, evaluate, compare, serve])
def test_a_command_refuses_and_names_the_field(folder, tmp_path, capsys, command, field, value):
    change(folder, field, value)
    assert main(command(folder, tmp_path)) == 2
    error = capsys.readouterr().err
    assert f"contract.{NAMED.get(field, field)}" in error
    assert str(folder) in error
    assert not (tmp_path / "scored.jsonl").exists()


@pytest.mark.parametrize(("field", "value"), [*MISMATCHES.items(), *DAMAGED.items()])
def test_ppo_refuses_and_names_the_field(folder, field, value):
    change(folder, field, value)
    with pytest.raises(UserError) as caught:
        make_reward([{"kind": "model", "path": str(folder)}])
    assert caught.value.field == "rewards.0.path"
    assert f"contract.{NAMED.get(field, field)}" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_unchanged_contract_is_taken(folder, tmp_path, capsys):
    assert main(score(folder, tmp_path)) == 0
    assert len(make_reward([{"kind": "model", "path": str(folder)}]).rewards) == 1


def test_every_field_has_a_case():
    fields = json.loads(json.dumps(make_contract(tiny.tokenizer()).__dict__)).keys()
    assert fields - MISMATCHES.keys() - DAMAGED.keys() == {"version"}


def test_a_tokenizer_that_was_exchanged_is_seen(folder, tmp_path, capsys):
    from align.data.tokenizer import train_tokenizer

    shutil.copytree(folder, tmp_path / "rm")
    other = train_tokenizer(tiny.TEXTS, tiny.VOCAB - 8, chat_template="chatml")
    other.save_pretrained(tmp_path / "rm")
    assert main(score(tmp_path / "rm", tmp_path)) == 2
    assert "contract.tokenizer_hash" in capsys.readouterr().err


def test_an_adapter_on_another_base_is_refused(tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    from align.files import fingerprint

    base = tmp_path / "base"
    tiny.model(seed=3).save_pretrained(base)
    model = type(tiny.model()).from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    adapted = get_peft_model(model, config)
    words = tiny.tokenizer()
    contract = make_contract(words, base_fingerprint=fingerprint(base))
    adapted.save_pretrained(tmp_path / "adapter")
    head = {"weight": tiny.model(seed=5).score.weight}
    complete_adapter(tmp_path / "adapter", "score", head, words, contract)
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "q", "completion": "a"}\n')
    assert main(score(tmp_path / "adapter", tmp_path)) == 0
    capsys.readouterr()
    shutil.rmtree(base)
    tiny.model(seed=4).save_pretrained(base)
    assert main(score(tmp_path / "adapter", tmp_path)) == 2
    error = capsys.readouterr().err
    assert "contract.base_fingerprint" in error
    assert f"of {base}, the base model of {tmp_path / 'adapter'}" in error
