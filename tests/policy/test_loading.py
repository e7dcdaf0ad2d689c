"""Where weights come from, what is refused, and dropout off everywhere but in pre-training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny_policies as tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from align.config_errors import UserError
from align.policy import Policy

LORA = {"lora": {"r": 4}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_a_local_model_gives_its_own_log_probs(kind, tmp_path):
    path = tiny.save(tmp_path / "m", kind, **({"head_dim": 8} if kind == "qwen3" else {}))
    policy = tiny.load("dpo", path, tmp_path)
    assert policy.layout == "grouped"
    assert policy.path == path
    assert policy.module.config.use_cache is False
    assert tiny.close(tiny.ask(policy), tiny.own_logps(tiny.causal(path)), 2e-5)


@pytest.mark.parametrize(
    ("asked", "given"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)],
)
def test_dtype(base, tmp_path, asked, given):
    policy = tiny.load("dpo", base, tmp_path, policy={"dtype": asked})
    assert {p.dtype for p in policy.module.parameters()} == {given}
    assert tiny.ask(policy).dtype == torch.float32


def test_attention_implementation(base, tmp_path):
    kinds = [
        tiny.load("sft", base, tmp_path, policy={"attn_implementation": asked})
        for asked in ("eager", "sdpa", None)
    ]
    assert [p.module.config._attn_implementation for p in kinds] == ["eager", "sdpa", "sdpa"]
    with pytest.raises(UserError, match="cannot be used") as error:
        tiny.load("sft", base, tmp_path, policy={"attn_implementation": "slow_attention"})
    assert error.value.field == "policy.attn_implementation"


def copied(base: str, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_folder_without_weights_is_refused(base, tmp_path):
    folder = copied(base, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"policy\.path=.* cannot be loaded"):
        tiny.load("sft", str(folder), tmp_path)


def test_weights_that_lack_a_layer_are_refused_and_not_drawn_at_random(base, tmp_path):
    folder = copied(base, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj"):
        tiny.load("sft", str(folder), tmp_path)


def test_a_reward_model_is_no_policy(tmp_path):
    path = tiny.save(tmp_path / "m", heads=1)
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights \(lm_head"):
        tiny.load("sft", path, tmp_path)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    path = tiny.save(tmp_path / "m", vocab_size=300)
    with pytest.raises(UserError, match="id 319, but the model knows 300 tokens"):
        tiny.load("sft", path, tmp_path)


def test_a_missing_tokenizer_is_refused(base, tmp_path):
    folder = copied(base, tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="has no usable tokenizer"):
        tiny.load("sft", str(folder), tmp_path)


def test_only_pre_training_needs_no_chat_template(base, tmp_path):
    folder = copied(base, tmp_path)
    (folder / "chat_template.jinja").unlink()
    assert tiny.load("pretrain", str(folder), tmp_path).pad_id == 1
    with pytest.raises(UserError, match="no chat template"):
        tiny.load("sft", str(folder), tmp_path)
    named = {"max_length": 64, "chat_template": "chatml"}
    assert tiny.load("sft", str(folder), tmp_path, data=named).tokenizer.chat_template


def test_without_bitsandbytes_quantising_names_the_install_line(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it raises ImportError
    with pytest.raises(UserError, match=r"needs bitsandbytes.*pip install 'align\[quantize\]'"):
        tiny.load("sft", base, tmp_path, policy={**LORA, "quantization": "4bit"})


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_under_adapters(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    path = tiny.save(tmp_path / "m", hidden_size=64, intermediate_size=128)
    policy = tiny.load("dpo", path, tmp_path, policy={**LORA, "quantization": bits})
    assert policy.module.config.quantization_config.load_in_4bit is (bits == "4bit")
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(logps, reference, 1e-3)
    assert all("lora_" in name for name in tiny.trained(policy))
    # What is saved is the adapter on the whole weights.
    tiny.disturb(policy.module)
    policy.save(tmp_path / "final", tiny.state(policy))
    assert "quantization_config" not in json.loads((tmp_path / "final/config.json").read_text())
    whole = PeftModel.from_pretrained(tiny.causal(path), str(tmp_path / "final/adapter")).eval()
    assert tiny.close(tiny.own_logps(tiny.causal(tmp_path / "final")), tiny.own_logps(whole), 3e-5)


# A model from nothing

FRESH = {"n_embd": 32, "n_layer": 1, "n_head": 4, "block_size": 32}


def fresh(run_dir: Path, words: str, seed: int = 1, **shape) -> Policy:
    pretrain = {**FRESH, "tokenizer": words, **shape}
    return tiny.load("pretrain", None, run_dir, pretrain=pretrain, train={"seed": seed})


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen3"])
def test_no_path_makes_a_model_that_depends_on_the_seed_alone(arch, base, tmp_path):
    torch.manual_seed(11)
    first = fresh(tmp_path / "a", base, arch=arch)
    torch.manual_seed(12)
    again, other = fresh(tmp_path / "b", base, arch=arch), fresh(tmp_path / "c", base, 2, arch=arch)
    assert first.module.config.model_type == arch
    assert first.module.config.vocab_size == len(first.tokenizer) == tiny.VOCAB
    assert torch.equal(tiny.ask(first), tiny.ask(again))
    assert not torch.allclose(tiny.ask(first), tiny.ask(other), atol=1e-3)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_fresh_model_is_kept_while_the_settings_are_the_same(base, tmp_path):
    first = fresh(tmp_path, base)
    stamp = (tmp_path / "init" / "model.safetensors").stat().st_mtime_ns
    assert fresh(tmp_path, base).fingerprint == first.fingerprint
    assert (tmp_path / "init" / "model.safetensors").stat().st_mtime_ns == stamp
    assert fresh(tmp_path, base, n_layer=2).module.config.n_layer == 2
    assert fresh(tmp_path, base, seed=5).fingerprint != first.fingerprint


def test_without_a_tokenizer_one_is_trained_on_the_methods_own_data(tmp_path):
    file = tmp_path / "sft.jsonl"
    row = {"instruction": "写一条酒店评论", "output": "房间很干净，服务很好。"}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n" * 1, encoding="utf-8")
    data = {"sft": str(file), "max_length": 48, "chat_template": "chatml"}
    shape = {"kind": "char_bpe", "vocab_size": 270, "min_frequency": 1}
    policy = tiny.load("sft", None, tmp_path / "run", data=data, tokenizer=shape, pretrain=FRESH)
    words = policy.tokenizer
    assert len(words) == policy.module.config.vocab_size == 270
    assert words.decode(words("房间很干净")["input_ids"]) == "房间很干净"
    assert policy.module.config.n_positions == 48


# Dropout

GPT2_DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3}
BIOGPT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2,
          "activation_dropout": 0.1,
          "layerdrop": 0.5}  # fmt: skip


def repeats(policy: Policy, *want: str) -> bool:
    """Whether two passes in training mode give the same numbers."""
    policy.module.train()
    first, second = tiny.ask(policy, *want), tiny.ask(policy, *want)
    both = zip(first, second, strict=True) if len(want) > 1 else [(first, second)]
    return all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize(("kind", "rates"), [("gpt2", GPT2_DROPOUT), ("biogpt", BIOGPT)])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_dropout_is_off_in_policy_reference_and_critic(kind, rates, lora, tmp_path):
    path = tiny.save(tmp_path / "m", kind, **rates)
    policy = tiny.load("ppo", path, tmp_path, critic=True, policy={"lora": lora})
    assert repeats(policy, "logps", "ref_logps", "values")
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(logps, reference, 1e-6)


def test_dropout_is_off_in_sft_and_reward_models(tmp_path):
    path = tiny.save(tmp_path / "m", "gpt2", **GPT2_DROPOUT)
    assert repeats(tiny.load("sft", path, tmp_path))
    assert repeats(tiny.load("reward", path, tmp_path), "scores")


@pytest.mark.parametrize(("rate", "same"), [(0.0, True), (0.4, False)])
def test_pre_training_takes_its_own_rate_and_files_keep_theirs(rate, same, tmp_path):
    path = tiny.save(tmp_path / "m", "gpt2", **GPT2_DROPOUT)
    policy = tiny.load("pretrain", path, tmp_path, pretrain={"dropout": rate})
    assert repeats(policy) is same
    policy.save(tmp_path / "final", tiny.state(policy))
    saved = json.loads((tmp_path / "final" / "config.json").read_text())
    assert {name: saved[name] for name in GPT2_DROPOUT} == GPT2_DROPOUT
    assert saved["use_cache"] is True
    assert policy.module.config.resid_pdrop == rate  # the model in training is as it was


def test_layers_are_never_dropped_in_pre_training(tmp_path):
    path = tiny.save(tmp_path / "m", "biogpt", **BIOGPT)
    policy = tiny.load("pretrain", path, tmp_path, pretrain={"dropout": 0.25})
    shape = policy.module.config
    assert (shape.layerdrop, shape.hidden_dropout_prob, shape.activation_dropout) == (0, 0.25, 0.25)


# Fingerprint


def test_the_fingerprint_is_of_the_weights_and_not_of_the_place(base, tmp_path):
    folder = copied(base, tmp_path)
    first = tiny.load("sft", base, tmp_path).fingerprint
    assert first is not None
    assert tiny.load("sft", str(folder), tmp_path).fingerprint == first
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert tiny.load("sft", str(folder), tmp_path).fingerprint != first
