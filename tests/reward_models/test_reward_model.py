"""Finding and initialising the head; a saved checkpoint gives the same scores, or an error."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_rewards as tiny
import torch
from torch import nn

from align.config_errors import UserError
from align.records import Message
from reward_models.contract import make_contract, read_contract
from reward_models.model import (
    base_of,
    find_head,
    init_head,
    load_reward_model,
    plain,
    save_reward_model,
)
from reward_models.scorer import Scorer

KINDS = ("llama", "qwen2", "gpt2")
PROMPTS = [[Message("user", "写一条酒店评论")], [Message("user", "Write a review of a hotel")]] * 2
ANSWERS = ["房间很干净。", "The room was clean.", "太差了", ""]


@pytest.mark.parametrize(
    ("kind", "body"), [("llama", "model"), ("qwen2", "model"), ("gpt2", "transformer")]
)
def test_the_head_is_the_linear_layer_beside_the_body(kind, body):
    model = tiny.model(kind, heads=3)
    name, head = find_head(model)
    assert (name, head.in_features, head.out_features) == ("score", 32, 3)
    assert head is model.score
    assert base_of(model) is getattr(model, body)


def test_a_model_without_a_scalar_head_is_refused():
    from transformers import GPT2Config, GPT2Model

    with pytest.raises(UserError, match="has no body under a head"):
        find_head(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8)))
    model = tiny.model()
    model.score = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 1))
    with pytest.raises(UserError, match="no single linear head"):
        find_head(model)


def test_the_initial_head_gives_scores_of_variance_one():
    model = tiny.model(heads=2000)
    head = find_head(model)[1]
    assert head.weight.std().item() == pytest.approx(0.17408, rel=0.02)  # 1/√33
    assert head.weight.mean().abs() < 0.005
    hidden = torch.randn(500, 32, generator=torch.Generator().manual_seed(1))
    assert head(hidden).var().item() == pytest.approx(1.0, abs=0.06)


def test_the_initial_head_depends_on_the_seed_alone():
    first, second, third = tiny.model(seed=0), tiny.model(seed=5), tiny.model(seed=0)
    init_head(first, seed=7)
    init_head(second, seed=7)
    init_head(third, seed=8)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, third.score.weight)


def test_a_bias_starts_at_zero():
    model = tiny.model()
    model.score = nn.Linear(32, 1, bias=True)
    init_head(model)
    assert model.score.bias.tolist() == [0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_checkpoint_gives_the_same_scores(kind, tmp_path):
    made = tiny.loaded(kind, heads=2, max_length=48)
    before = Scorer(loaded=made).score(PROMPTS, ANSWERS)
    save_reward_model(tmp_path / "final", *made)
    model, words, contract = load_reward_model(tmp_path / "final")
    assert not model.training
    assert contract == made[2]
    assert Scorer(loaded=(model, words, contract)).score(PROMPTS, ANSWERS) == before
    assert len({round(score, 4) for score in before}) == 4


def lora(tmp_path):
    """A reward model with a random adapter; its base is saved in tmp_path."""
    from peft import LoraConfig, get_peft_model

    tiny.model(seed=3).save_pretrained(tmp_path / "base")
    base = type(tiny.model()).from_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False
    )
    return get_peft_model(base, config)


def test_an_adapter_folder_gives_the_same_scores(tmp_path):
    model = lora(tmp_path)
    init_head(plain(model), seed=11)  # trained: other than the base's
    words = tiny.tokenizer()
    contract = make_contract(words)
    before = Scorer(loaded=(model, words, contract)).score(PROMPTS, ANSWERS)
    save_reward_model(tmp_path / "adapter", model, words, contract)
    assert not (tmp_path / "adapter" / "config.json").exists()
    after = Scorer(tmp_path / "adapter").score(PROMPTS, ANSWERS)
    assert after == pytest.approx(before, abs=1e-5)
    base = Scorer(loaded=(tiny.model(seed=3), words, contract)).score(PROMPTS, ANSWERS)
    assert max(abs(a - b) for a, b in zip(after, base, strict=True)) > 0.01


def test_find_head_sees_pefts_trained_copy(tmp_path):
    model = plain(lora(tmp_path))
    head = find_head(model)[1]
    assert isinstance(head, nn.Linear)
    assert head.weight.requires_grad
    assert head is model.score.modules_to_save["default"]


def _without_head(folder, keep):
    from safetensors.torch import load_file, save_file

    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).exists():
            weights = load_file(folder / name)
            kept = {k: v for k, v in weights.items() if keep(k)}
            assert len(kept) < len(weights)
            save_file(kept, folder / name, metadata={"format": "pt"})


def test_an_adapter_without_a_head_is_an_error(tmp_path):
    model, words = lora(tmp_path), tiny.tokenizer()
    save_reward_model(tmp_path / "adapter", model, words, make_contract(words))
    _without_head(tmp_path / "adapter", lambda key: "score" not in key)
    with pytest.raises(UserError, match=r"no trained reward head .score is not in the adapter"):
        load_reward_model(tmp_path / "adapter")


def test_a_causal_adapter_on_a_language_model_is_an_error(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**tiny.BODY)).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="no trained reward head"):
        load_reward_model(tmp_path / "adapter")


def test_an_adapter_whose_base_is_gone_is_an_error(tmp_path):
    model, words = lora(tmp_path), tiny.tokenizer()
    save_reward_model(tmp_path / "adapter", model, words, make_contract(words))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=r"adapter whose base .*base is not a reward checkpoint"):
        load_reward_model(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names no base model"):
        load_reward_model(tmp_path / "adapter")


def test_a_language_model_is_no_reward_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**tiny.BODY)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no trained reward head.*score.weight.*recipes/reward.py"):
        load_reward_model(tmp_path)


def test_a_body_weight_that_is_missing_is_an_error(tmp_path):
    folder = tiny.save(tmp_path / "final")
    _without_head(folder, lambda key: "layers.1.mlp.up_proj" not in key)
    with pytest.raises(UserError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_reward_model(folder)


def test_heads_of_contract_and_model_must_agree(tmp_path):
    folder = tiny.save(tmp_path / "final", heads=2)
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps({**contract, "heads": 1}))
    with pytest.raises(UserError, match=r"contract\.heads=1 does not match 2"):
        load_reward_model(folder)
    (folder / "contract.json").unlink()
    assert load_reward_model(folder)[2].heads == 2


def test_unusable_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_reward_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a reward checkpoint"):
        load_reward_model(tmp_path / "empty")
    folder = tiny.save(tmp_path / "final")
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="is not a reward checkpoint"):
        load_reward_model(tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_reward_model(folder)


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    folder = tiny.save(tmp_path / "final")
    words = tiny.tokenizer()
    words.chat_template = None
    words.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="without a chat template"):
        load_reward_model(folder)


def test_saving_again_leaves_no_contract_of_an_earlier_model(tmp_path):
    folder = tiny.save(tmp_path / "final", max_length=48)

    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_reward_model(folder, Broken(), tiny.tokenizer(), make_contract(tiny.tokenizer()))
    assert read_contract(folder) is None
