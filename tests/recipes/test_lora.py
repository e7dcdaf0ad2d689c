"""LoRA through overrides: every method, from a plain model and from an earlier adapter."""

from __future__ import annotations

import json

import pytest
import recipe_runs as rr
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

LORA = ["--policy.lora.r", "4", "--policy.lora.alpha", "8"]
METHODS = ("sft", "reward", "dpo", "orpo", "ppo")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, data, and every method trained with adapters on it."""
    folder = tmp_path_factory.mktemp("lora")
    rr.tiny_model(folder / "model")
    prefs = rr.write_rows(folder / "pairs.jsonl", rr.pair_rows())
    sft = rr.write_rows(
        folder / "sft.jsonl", [{"instruction": p, "output": c} for p, c, _ in rr.PAIRS]
    )
    rr.settings(
        folder,
        data={"sft": str(sft), "preferences": str(prefs)},
        train={"learning_rate": 1e-2},
    )
    for method in METHODS:
        assert run(folder, method, method, *LORA) == 0
    return folder


def run(folder, recipe, name, *words):
    out = ["--train.output_dir", str(folder / "runs" / name)]
    return rr.main_of(recipe)(["--config", str(folder / "config.yaml"), *out, *words])


def logits(model, text="春天有哪些花？ Name three fruits."):
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(model.name_or_path)(text, return_tensors="pt")
        return model.eval()(input_ids=ids["input_ids"]).logits


@pytest.mark.parametrize("method", [m for m in METHODS if m != "reward"])
def test_final_is_base_plus_adapter(place, method):
    final = AutoModelForCausalLM.from_pretrained(place / "runs" / method / "final")
    assert not any("lora" in name for name in final.state_dict())
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    start = logits(base)
    adapted = PeftModel.from_pretrained(base, str(place / "runs" / method / "final" / "adapter"))
    with torch.no_grad():
        ids = AutoTokenizer.from_pretrained(place / "model")(
            "春天有哪些花？ Name three fruits.", return_tensors="pt"
        )["input_ids"]
        apart = adapted.eval()(input_ids=ids).logits
    torch.testing.assert_close(logits(final), apart, atol=1e-5, rtol=1e-5)
    assert (apart - start).abs().max() > 1e-3


def test_adapters_are_named_and_sized_as_asked(place):
    adapter = place / "runs" / "dpo" / "final" / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    # Seven linear layers in each of two blocks, A and B of each, nothing else.
    assert len(shapes) == 2 * 7 * 2
    assert all(4 in shape for shape in shapes.values())


def test_the_reward_model_keeps_its_head(place):
    final = place / "runs" / "reward" / "final"
    model = AutoModelForSequenceClassification.from_pretrained(final)
    assert model.score.weight.abs().max() > 0
    scores = logits(model)
    assert scores.shape[-1] == 1
    assert torch.isfinite(scores).all()
    assert (final / "contract.json").is_file()


def test_ppo_holds_one_base(place):
    final = place / "runs" / "ppo" / "final"
    with safe_open(final / "critic" / "critic.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(".critic." in name for name in names)
    assert any("value_head" in name for name in names)
    assert not (final / "critic" / "config.json").exists()
    with safe_open(final / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert not any("critic" in name for name in file.keys())  # noqa: SIM118


def test_reference_of_dpo_is_the_base(place):
    first = rr.rows(place / "runs" / "dpo" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert first["rewards/chosen"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("recipe", ["dpo", "ppo"])
def test_an_adapter_is_merged_before_it_becomes_the_base(place, recipe):
    """The SFT run's adapter as policy.path: the reference must be the SFT model, not its base."""
    adapter = place / "runs" / "sft" / "final" / "adapter"
    name = f"{recipe}-on-adapter"
    assert run(place, recipe, name, "--policy.path", str(adapter), *LORA) == 0
    base = AutoModelForCausalLM.from_pretrained(place / "runs" / name / "base")
    sft = AutoPeftModelForCausalLM.from_pretrained(adapter)
    ids = torch.tensor([[5, 9, 300, 301, 302]])
    with torch.no_grad():
        merged = base.eval()(input_ids=ids).logits
        apart = sft.eval()(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(place / "model").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, apart, atol=1e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-3
    first = rr.rows(place / "runs" / name / "metrics.jsonl")[0]
    known = {"dpo": ("rewards/margins", 0.0), "ppo": ("kl/sum", 0.0)}[recipe]
    assert first[known[0]] == pytest.approx(known[1], abs=1e-5)


def test_another_adapter_in_the_same_folder_is_merged_anew(place):
    """A base that an earlier try left behind must not stand in for the model asked for."""
    adapters = [place / "runs" / m / "final" / "adapter" for m in ("sft", "orpo")]
    bases = []
    for adapter in adapters:
        words = ["--policy.path", str(adapter), *LORA]
        assert run(place, "dpo", "twice", *words) == 0
        model = AutoModelForCausalLM.from_pretrained(place / "runs" / "twice" / "base")
        bases.append(model.model.layers[0].mlp.up_proj.weight)
    assert (bases[0] - bases[1]).abs().max() > 1e-4


def test_the_next_stage_goes_on_from_a_merged_final(place):
    final = place / "runs" / "sft" / "final"
    assert run(place, "dpo", "after-sft", "--policy.path", str(final), *LORA) == 0
    found = rr.manifest(place / "runs" / "after-sft")["inputs"]["policy.path"]
    assert found["path"] == str(final)
