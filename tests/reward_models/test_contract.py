"""contract.json: what it says, and that every mismatch names its field."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import tiny_rewards as tiny

from align.config_errors import UserError
from reward_models.contract import (
    Contract,
    check_contract,
    make_contract,
    moments,
    read_contract,
    tokenizer_hash,
    write_contract,
)


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def test_moments_by_hand():
    assert moments([1.0, 3.0, 5.0]) == (3.0, math.sqrt(8 / 3))
    assert moments([]) == (0.0, 1.0)
    assert moments([2.5, 2.5]) == (2.5, 1.0)


def test_a_matching_contract_passes(words):
    contract = make_contract(words, max_length=64, heads=2, scores=[0.0, 2.0])
    check_contract(contract, words, heads=2, max_length=64)
    assert (contract.score_mean, contract.score_std) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("template_hash", "0" * 64),
        ("tokenizer_hash", "0" * 64),
        ("eos_rule", "last_token"),
        ("padding_side", "left"),
        ("heads", 3),
    ],
)
def test_each_mismatch_is_an_error_that_names_the_field(words, field, other):
    contract = dataclasses.replace(make_contract(words, heads=1), **{field: other})
    with pytest.raises(UserError, match=f"contract.{field}") as caught:
        check_contract(contract, words, path="runs/reward/final", heads=1)
    assert "runs/reward/final" in str(caught.value)
    assert caught.value.fix


def test_a_longer_max_length_than_trained_is_an_error(words):
    contract = make_contract(words, max_length=64)
    check_contract(contract, words, max_length=10)
    with pytest.raises(UserError, match="max_length=65 is over the contract's 64"):
        check_contract(contract, words, max_length=65)


def test_the_template_and_the_vocabulary_count_but_padding_does_not():
    contract = make_contract(tiny.tokenizer())
    padded = tiny.tokenizer(pad_is_eos=True)
    padded.padding_side = "left"
    padded(["a", "a longer text"], padding=True, truncation=True, max_length=8)
    assert tokenizer_hash(padded) == contract.tokenizer_hash

    other = tiny.tokenizer()
    other.chat_template = other.chat_template.replace("user", "human") + " "
    with pytest.raises(UserError, match=r"contract\.template_hash"):
        check_contract(contract, other)

    grown = tiny.tokenizer()
    grown.add_tokens(["新词"])
    with pytest.raises(UserError, match=r"contract\.tokenizer_hash"):
        check_contract(contract, grown)


def test_saving_a_tokenizer_does_not_change_its_hash(words, tmp_path):
    from transformers import AutoTokenizer

    words.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_hash(words)


def test_write_and_read(words, tmp_path):
    contract = make_contract(
        words,
        max_length=128,
        max_prompt_length=96,
        truncation="keep_start",
        scores=[-1.5, 2.25],
        data_fingerprint="数据",
        held_out_accuracy=0.75,
        base_fingerprint="b",
    )
    write_contract(tmp_path, contract)
    assert read_contract(tmp_path) == contract
    assert [p.name for p in tmp_path.iterdir()] == ["contract.json"]
    assert read_contract(tmp_path / "elsewhere") is None


def test_a_diverged_model_gets_no_contract(words):
    with pytest.raises(ValueError, match="not finite"):
        make_contract(words, scores=[0.5, float("nan")])


GOOD = {"template_hash": "t", "tokenizer_hash": "k"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "lacks template_hash"),
        (json.dumps({"template_hash": "t"}), "lacks template_hash or tokenizer_hash"),
        (json.dumps({**GOOD, "colour": 1}), "unknown fields.*colour.*update"),
        (json.dumps({**GOOD, "version": 2}), "version 2.*update"),
        (json.dumps({**GOOD, "heads": 0}), "contract.heads=0"),
        (json.dumps({**GOOD, "heads": True}), "contract.heads=true"),
        (json.dumps({**GOOD, "score_std": 0.0}), "contract.score_std=0.0"),
        (json.dumps({**GOOD, "score_mean": float("nan")}), "contract.score_mean=nan"),
        (json.dumps({**GOOD, "held_out_accuracy": "high"}), "contract.held_out_accuracy"),
        (json.dumps({**GOOD, "max_length": 12.5}), "contract.max_length=12.5"),
        (json.dumps({**GOOD, "truncation": "middle"}), "contract.truncation='middle'"),
        (json.dumps({**GOOD, "padding_side": None}), "contract.padding_side=null"),
    ],
)
def test_damaged_contracts_are_user_errors(tmp_path, text, message):
    (tmp_path / "contract.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_contract(tmp_path)


def test_fields_may_be_missing_that_have_a_default(tmp_path):
    (tmp_path / "contract.json").write_text(json.dumps(GOOD))
    assert read_contract(tmp_path) == Contract("t", "k")
