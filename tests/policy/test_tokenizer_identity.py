"""Adapters and critics belong to the tokenizer that they were trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_policies as tiny
from transformers import AutoTokenizer

from align.checkpoints import load_causal_lm
from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer
from align.tokenizer_identity import check_trained_with, record_tokenizer, tokenizer_fingerprint

ANOTHER = [text[::-1] for text in tiny.TEXTS]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A model of the same shape whose tokenizer has as many entries and other ones."""
    folder = tiny.save(tmp_path_factory.mktemp("other"), seed=3)
    train_tokenizer(ANOTHER, tiny.VOCAB, chat_template="chatml").save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """The adapter of a finished run on base."""
    policy = tiny.load("sft", base, tmp_path / "run", policy={"lora": {"r": 4}})
    state = {n: p.detach() for n, p in policy.module.named_parameters() if p.requires_grad}
    policy.save(tmp_path / "final", state)
    return tmp_path / "final" / "adapter"


def test_fingerprint_is_of_ids_not_of_the_template(tmp_path):
    first, second = tiny.words(), tiny.words(template="inst")
    mark = tokenizer_fingerprint(first)
    assert len(mark) == 16
    assert tokenizer_fingerprint(second) == mark
    first(["a b", "c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(first) == mark
    first.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path)) == mark
    again = AutoTokenizer.from_pretrained(tmp_path)
    again.add_tokens(["<new>"])
    assert tokenizer_fingerprint(again) != mark
    assert tokenizer_fingerprint(tiny.words(300)) != mark


def test_an_adapter_goes_on_on_its_own_base(base, adapter, tmp_path):
    said = json.loads((adapter / "tokenizer_identity.json").read_text("utf-8"))
    mark = tokenizer_fingerprint(tiny.words())
    assert said == {"fingerprint": mark, "entries": tiny.VOCAB}
    policy = tiny.load("sft", base, tmp_path / "more", policy={"lora": {"path": str(adapter)}})
    assert tiny.trained(policy)


def test_an_adapter_on_another_tokenizer_is_refused(base, other, adapter, tmp_path):
    with pytest.raises(UserError, match="was trained with another tokenizer") as caught:
        tiny.load("sft", other, tmp_path / "more", policy={"lora": {"path": str(adapter)}})
    error = caught.value
    assert error.field == "policy.lora.path"
    theirs = tokenizer_fingerprint(AutoTokenizer.from_pretrained(other))
    assert {tokenizer_fingerprint(tiny.words()), theirs} <= set(
        error.reason.replace("(", " ").replace(",", " ").split()
    )
    assert "Use the model that it was trained on" in str(error)


def test_an_adapter_whose_base_got_another_tokenizer_is_refused(base, other, adapter, tmp_path):
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": other}
    file.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="another tokenizer") as caught:
        tiny.load("dpo", str(adapter), tmp_path / "dpo")
    assert caught.value.field == "policy.path"
    with pytest.raises(UserError, match="another tokenizer"):
        load_causal_lm(adapter)


def test_without_a_record_sizes_are_compared(base, adapter, tmp_path):
    (adapter / "tokenizer_identity.json").unlink()
    lora = {"lora": {"path": str(adapter)}}
    assert tiny.load("sft", base, tmp_path / "a", policy=lora)  # made elsewhere: goes on
    tiny.words(300).save_pretrained(adapter)
    with pytest.raises(UserError, match=r"not recorded, 300 entries.*320 entries"):
        tiny.load("sft", base, tmp_path / "b", policy=lora)


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    record_tokenizer(tmp_path, tiny.words())
    check_trained_with(tmp_path, tiny.words(), "policy.lora.path")
    (tmp_path / "tokenizer_identity.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        check_trained_with(tmp_path, tiny.words(), "policy.lora.path")


def test_a_critic_says_its_tokenizer_too(base, tmp_path):
    policy = tiny.load("ppo", base, tmp_path / "run", critic=True)
    state = {n: p.detach() for n, p in policy.module.named_parameters() if p.requires_grad}
    policy.save(tmp_path / "final", state)
    assert (tmp_path / "final" / "critic" / "tokenizer_identity.json").is_file()
