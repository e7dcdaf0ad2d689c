"""What is refused before anything is loaded: shapes, group sizes, architectures, packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.config_errors import UserError
from align.export import bnb, compressed, gguf_tokens, gptq, torchao_int8
from align.export.shapes import choose_group_size, read_facts, read_header


def folder(tmp_path: Path, shapes: dict[str, list[int]], **config) -> Path:
    """A model folder of zeros: a safetensors header and float32 places."""
    place, header, at = tmp_path / "model", {}, 0
    place.mkdir()
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + b"\0" * at
    (place / "model.safetensors").write_bytes(body)
    (place / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return place


def facts_of(tmp_path, inputs: list[int], **config):
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": [32, n] for i, n in enumerate(inputs)}
    shapes |= {"model.embed_tokens.weight": [8, 64], "model.norm.weight": [64]}
    facts = read_facts(folder(tmp_path, shapes, **config))
    assert facts is not None
    return facts


def test_facts_are_the_projections_and_no_tables(tmp_path):
    facts = facts_of(tmp_path, [64, 96], architectures=["LlamaForCausalLM"])
    assert facts.linears == {
        "model.layers.0.mlp.up_proj": (32, 64), "model.layers.1.mlp.up_proj": (32, 96),
    }  # fmt: skip
    assert (facts.architecture, facts.tied, facts.conv1d) == ("LlamaForCausalLM", True, False)
    assert facts.weight_bytes == 4 * (32 * 64 + 32 * 96 + 8 * 64 + 64)


def test_a_head_of_its_own_is_seen(tmp_path):
    found = read_facts(folder(tmp_path, {"lm_head.weight": [8, 64], "a.weight": [4, 4]}))
    assert found is not None
    assert not found.tied
    assert list(found.linears) == ["a"]


def test_conv1d_is_transposed(tmp_path):
    shapes = {"transformer.h.0.attn.c_attn.weight": [16, 48]}
    facts = read_facts(folder(tmp_path, shapes, model_type="gpt2"))
    assert facts is not None
    assert facts.linears == {"transformer.h.0.attn.c_attn": (48, 16)}


@pytest.mark.parametrize(
    ("inputs", "chosen"), [([4096, 11008], 128), ([576, 1536], 64), ([96, 160], 32)]
)
def test_the_largest_group_size_that_divides_all(tmp_path, inputs, chosen):
    assert choose_group_size(facts_of(tmp_path, inputs), None) == chosen


def test_a_group_size_that_does_not_divide_is_refused_with_the_one_that_does(tmp_path):
    facts = facts_of(tmp_path, [576, 1536])
    said = r"group_size=128 divides not all .*576, 1536.*layers.0.mlp.up_proj has 576.*size 64"
    with pytest.raises(UserError, match=said):
        choose_group_size(facts, 128)


def test_shapes_that_no_group_size_fits_name_another_form(tmp_path):
    with pytest.raises(UserError, match=r"group_size='auto' divides .*has 100. Use --to w8a8"):
        choose_group_size(facts_of(tmp_path, [100]), None)


def test_forms_of_groups_are_checked_before_their_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path / "none"))
    odd = facts_of(tmp_path, [100])
    for check in (compressed.check, gptq.check):
        with pytest.raises(UserError, match="divides not all"):
            check("gptq", odd, None)


def test_a_missing_environment_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_ENGINES", str(tmp_path / "none"))
    facts = facts_of(tmp_path, [64])
    for form in compressed.FORMS:
        with pytest.raises(UserError, match=r"setup_engine.py llmcompressor"):
            compressed.check(form, facts, None)
    with pytest.raises(UserError, match=r"setup_engine.py gptqmodel"):
        gptq.check("gptq", facts, None)


def test_conv1d_models_are_refused_where_they_would_stay_as_they_are(tmp_path):
    shapes = {"transformer.h.0.attn.c_attn.weight": [64, 64]}
    facts = read_facts(folder(tmp_path, shapes, model_type="gpt2"))
    for check in (
        lambda: torchao_int8.check_linear("int8", facts, "torchao"),
        lambda: compressed.check("awq", facts, None),
    ):
        with pytest.raises(UserError, match="gpt2 holds its projections as Conv1D"):
            check()


def test_four_bits_that_some_cpus_cannot_run(tmp_path):
    with pytest.raises(UserError, match=r"has 96 columns and 32 rows.*multiples of 64 and 32"):
        bnb.check("bnb-4bit", facts_of(tmp_path, [96]))
    bnb.check("bnb-8bit", read_facts(tmp_path / "model"))


def test_a_model_without_projections(tmp_path):
    facts = read_facts(folder(tmp_path, {"model.embed_tokens.weight": [8, 4]}))
    with pytest.raises(UserError, match="no linear projections"):
        bnb.check("bnb-8bit", facts)


def test_a_missing_package_names_its_install_line(monkeypatch):
    for module in (bnb, torchao_int8):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes. pip install 'align\[quantize\]'"):
        bnb.check("bnb-4bit", None)
    with pytest.raises(UserError, match=r"needs torchao. pip install 'align\[quantize\]'"):
        torchao_int8.check("int8", None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_broken_weights_file(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="no complete safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_an_adapter_is_known_by_its_base(tmp_path):
    base = folder(tmp_path, {"a.weight": [4, 64]})
    (tmp_path / "lora").mkdir()
    config = {"base_model_name_or_path": str(base)}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    facts = read_facts(tmp_path / "lora")
    assert facts is not None
    assert facts.folder == base
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/hub"}')
    assert read_facts(tmp_path / "lora") is None


BYTES = {"type": "ByteLevel"}
OWN = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": r"\p{Han}+| ?\p{L}+"}}, BYTES]}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "before", "kind"),
    [
        ({"type": "BPE"}, BYTES, "bytes"), ({"type": "BPE"}, OWN, "own"),
        ({"type": "BPE", "byte_fallback": True}, None, "pieces"),
        ({"type": "BPE", "byte_fallback": False}, None, "other"),
        ({"type": "Unigram"}, None, "unigram"), ({"type": "WordPiece"}, None, "other"),
    ],
)  # fmt: skip
def test_tokenizers_that_llama_cpp_reads_otherwise_are_refused(tmp_path, model, before, kind):
    content = {"model": model, "pre_tokenizer": before}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert gguf_tokens.kind_of(tmp_path) == kind
    if kind in ("bytes", "pieces"):
        gguf_tokens.check(tmp_path)
    else:
        with pytest.raises(UserError, match="--to='gguf' cannot be made"):
            gguf_tokens.check(tmp_path)
