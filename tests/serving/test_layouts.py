"""Servers that are not started here: the files and fields of an export that they read.

What each reads was taken from its source: see docs/serving.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chain_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chain_model.save_chain(tmp_path_factory.mktemp("export"))


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_weights_that_tgi_lists(folder):
    """It takes every .safetensors at the top, but for names with args, adapter or training."""
    files = [p.name for p in folder.glob("*.safetensors")]
    assert files
    assert not any(w in f for f in files for w in ("arguments", "args", "adapter", "training"))
    assert not list(folder.glob("*.bin"))


def test_the_template_where_tgi_looks(folder):
    """Its router reads tokenizer_config.json alone, no chat_template.jinja (TGI issue 3247)."""
    config = read(folder, "tokenizer_config.json")
    assert "<|im_start|>" in config["chat_template"]
    assert config["chat_template"] == (folder / "chat_template.jinja").read_text("utf-8")
    assert isinstance(config["eos_token"], str)


def test_names_that_transformers_4_knows(folder):
    """TGI and older web interfaces are built on it: TokenizersBackend is transformers 5's."""
    assert read(folder, "tokenizer_config.json")["tokenizer_class"] != "TokenizersBackend"
    assert (folder / "tokenizer.json").is_file()


def test_stop_tokens_where_tgi_looks(folder):
    """generation_config.json's eos_token_id as a list: the template's end of turn is in it."""
    tokens = {t["id"]: t["content"] for t in read(folder, "tokenizer.json")["added_tokens"]}
    stops = read(folder, "generation_config.json")["eos_token_id"]
    assert {tokens[i] for i in stops} == {"<|im_end|>", "<|endoftext|>"}


def test_what_the_web_interface_finds(folder):
    """The loader is Transformers: no .gguf beside, no name of another format; then the template."""
    assert not list(folder.glob("*.gguf"))
    assert not any(word in folder.name.lower() for word in ("exl2", "exl3", "gguf", "-awq"))
    assert read(folder, "config.json")["max_position_embeddings"] == chain_model.POSITIONS
    template = (folder / "chat_template.jinja").read_text("utf-8")
    assert "add_generation_prompt" in template
    # It puts its own <s> and </s> where these are missing, so a template must not ask for them.
    config = read(folder, "tokenizer_config.json")
    assert all(config.get(name) or name not in template for name in ("bos_token", "eos_token"))
