"""What a run leaves is what `from_pretrained` reads, whole or not at all."""

from __future__ import annotations

import json

import pytest
import tiny_policies as tiny
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

LORA = {"lora": {"r": 4}}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


def trained_policy(method: str, path: str, tmp_path, **more):
    """A policy whose weights have moved, as after training."""
    policy = tiny.load(method, path, tmp_path / "run", **more)
    tiny.disturb(policy.module)
    return policy


def classifier(path):
    return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied llama"])
@pytest.mark.parametrize("adapters", [{}, LORA])
def test_a_saved_policy_gives_the_same_logits(kind, adapters, tmp_path):
    tied = {"tie_word_embeddings": True} if "tied" in kind else {}
    path = tiny.save(tmp_path / "m", kind.split()[-1], **tied)
    policy = trained_policy("dpo", path, tmp_path, policy=adapters)
    final = tmp_path / "final"
    policy.save(final, tiny.state(policy))
    saved = tiny.causal(final)
    assert tiny.close(tiny.own_logps(saved), tiny.ask(policy), 3e-5)
    assert not tiny.close(tiny.own_logps(saved), tiny.own_logps(tiny.causal(path)), 1e-2)
    if kind != "llama":
        assert saved.lm_head.weight is saved.get_input_embeddings().weight
    assert not list(final.glob("*.bin"))
    assert AutoTokenizer.from_pretrained(final).get_vocab() == policy.tokenizer.get_vocab()


def test_an_adapter_lies_beside_the_merged_weights(base, tmp_path):
    policy = trained_policy("dpo", base, tmp_path, policy=LORA)
    policy.save(tmp_path / "final", tiny.state(policy))
    folder = tmp_path / "final" / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (base, 4)
    on_base = PeftModel.from_pretrained(tiny.causal(base), str(folder)).eval()
    assert tiny.close(tiny.own_logps(on_base), tiny.ask(policy), 2e-5)
    by_name = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()
    assert tiny.close(tiny.own_logps(by_name), tiny.ask(policy), 2e-5)
    assert not any(".default" in n for n in load_file(folder / "adapter_model.safetensors"))
    assert "lora" not in "".join(load_file(tmp_path / "final" / "model.safetensors"))


def test_what_is_saved_are_the_weights_handed_over(base, tmp_path):
    # Under ZeRO the module's own parameters are empty, and an average is saved the same way.
    for name, adapters in (("full", {}), ("lora", LORA)):
        policy = trained_policy("dpo", base, tmp_path, policy=adapters)
        handed, expected = tiny.state(policy), tiny.ask(policy)
        tiny.disturb(policy.module, seed=8)
        policy.save(tmp_path / name, handed)
        assert tiny.close(tiny.own_logps(tiny.causal(tmp_path / name)), expected, 3e-5)
        assert not tiny.close(tiny.ask(policy), expected, 1e-2)


def test_saving_changes_nothing_in_the_policy(base, tmp_path):
    policy = trained_policy("ppo", base, tmp_path, policy=LORA, critic=True)
    before, names = tiny.ask(policy, "logps", "ref_logps", "values"), tiny.trained(policy)
    policy.save(tmp_path / "final", tiny.state(policy))
    after = tiny.ask(policy, "logps", "ref_logps", "values")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert tiny.trained(policy) == names
    assert policy.module.config.use_cache is False


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapters", [{}, LORA])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_saved_reward_model_gives_the_same_scores(kind, adapters, heads, tmp_path):
    path = tiny.save(tmp_path / "m", kind)
    policy = trained_policy("reward", path, tmp_path, policy=adapters, reward={"heads": heads})
    policy.save(tmp_path / "final", tiny.state(policy))
    saved = classifier(tmp_path / "final")
    assert saved.config.num_labels == heads
    assert saved.config.pad_token_id == policy.pad_id
    assert tiny.close(tiny.own_scores(saved), tiny.ask(policy, "scores"), 3e-5)
    assert (tmp_path / "final" / "adapter").is_dir() is bool(adapters)


def test_the_next_stage_starts_where_this_one_ended(base, tmp_path):
    sft = trained_policy("sft", base, tmp_path, policy=LORA)
    final = tmp_path / "final"
    sft.save(final, tiny.state(sft))
    for start in (final, final / "adapter"):
        dpo = tiny.load("dpo", str(start), tmp_path / f"dpo-{start.name}", policy=LORA)
        logps, reference = tiny.ask(dpo, "logps", "ref_logps")
        assert torch.equal(logps, reference)
        assert tiny.close(reference, tiny.ask(sft), 3e-5)


def test_a_stage_on_a_merged_adapter_saves_all_of_it(base, tmp_path):
    start = tiny.adapter(tmp_path / "sft", base)
    policy = trained_policy("dpo", start, tmp_path, policy=LORA)
    policy.save(tmp_path / "final", tiny.state(policy))
    saved = tiny.causal(tmp_path / "final")
    assert tiny.close(tiny.own_logps(saved), tiny.ask(policy), 3e-5)


def test_an_adapter_that_training_went_on_from_is_merged_once(base, tmp_path):
    start = tiny.adapter(tmp_path / "a", base)
    policy = trained_policy("sft", base, tmp_path, policy={"lora": {"r": 4, "path": start}})
    policy.save(tmp_path / "final", tiny.state(policy))
    saved = tiny.causal(tmp_path / "final")
    assert tiny.close(tiny.own_logps(saved), tiny.ask(policy), 3e-5)


def test_generation_stops_at_the_end_of_a_turn(base, tmp_path):
    policy = trained_policy("sft", base, tmp_path)
    policy.save(tmp_path / "final", tiny.state(policy))
    settings = GenerationConfig.from_pretrained(tmp_path / "final")
    turn_end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end in settings.eos_token_id
    assert policy.tokenizer.eos_token_id in settings.eos_token_id
    assert settings.pad_token_id == policy.pad_id


def test_numbers_beside_the_parameters_are_saved(tmp_path):
    shape = {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }  # fmt: skip
    path = tiny.save(tmp_path / "m", "deepseek_v3", **shape)
    policy = trained_policy("sft", path, tmp_path)
    bias = policy.module.lm.model.layers[1].mlp.gate.e_score_correction_bias
    bias.copy_(torch.tensor([3.0, -1.0, 2.0, 0.5]))  # a buffer: no gradient, but part of the model
    policy.save(tmp_path / "final", tiny.state(policy))
    saved = tiny.causal(tmp_path / "final")
    assert torch.equal(saved.model.layers[1].mlp.gate.e_score_correction_bias, bias)
    assert tiny.close(tiny.own_logps(saved), tiny.ask(policy), 3e-5)


# Critics


def test_a_separate_critic_is_saved_as_a_classifier(base, tmp_path):
    policy = trained_policy("ppo", base, tmp_path, critic=True)
    policy.save(tmp_path / "final", tiny.state(policy))
    critic = classifier(tmp_path / "final" / "critic")
    ends = tiny.ask(policy, "end_values")
    assert ends.abs().max() > 1e-2
    assert tiny.close(tiny.own_scores(critic)[:, 0], ends, 3e-5)
    again = tiny.load(
        "ppo", base, tmp_path / "next", critic=True,
        ppo={"critic_path": str(tmp_path / "final" / "critic")},
    )  # fmt: skip
    assert tiny.close(tiny.ask(again, "values"), tiny.ask(policy, "values"), 3e-5)


@pytest.mark.parametrize("kind", ["adapter", "separate", "shared"])
def test_other_critics_leave_their_own_weights(kind, base, tmp_path):
    policy = trained_policy(
        "ppo", base, tmp_path, critic=True, policy=LORA, ppo={"critic": kind}
    )  # fmt: skip
    handed = tiny.state(policy)
    policy.save(tmp_path / "final", handed)
    held = load_file(tmp_path / "final" / "critic" / "critic.safetensors")
    own = {id(p) for p in policy.module.critic_parameters()}
    expected = {n for n, p in policy.module.named_parameters() if id(p) in own}
    assert held.keys() == expected
    assert all(torch.equal(held[n], handed[n]) for n in held)
    # The policy beside it holds nothing of the critic.
    saved = tiny.causal(tmp_path / "final")
    assert tiny.close(tiny.own_logps(saved), tiny.ask(policy), 3e-5)
    names = load_file(tmp_path / "final" / "adapter" / "adapter_model.safetensors")
    assert not any("critic" in n for n in names)


def test_without_a_critic_there_is_no_critic_folder(base, tmp_path):
    policy = trained_policy("sft", base, tmp_path)
    policy.save(tmp_path / "final", tiny.state(policy))
    assert not (tmp_path / "final" / "critic").exists()


# Whole or not at all


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_error_midway_leaves_the_old_folder(base, tmp_path):
    policy = trained_policy("reward", base, tmp_path, policy=LORA)
    folder = tmp_path / "out" / "final"
    policy.save(folder, tiny.state(policy))
    before = contents(folder)
    tiny.disturb(policy.module, seed=9)
    without_head = {n: t for n, t in tiny.state(policy).items() if "score" not in n}
    with pytest.raises(RuntimeError, match="head's weight is not in the checkpoint"):
        policy.save(folder, without_head)  # the adapter has been written by then
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["final"]


def test_an_error_at_the_first_save_leaves_nothing(base, tmp_path):
    policy = trained_policy("reward", base, tmp_path, policy=LORA)
    folder = tmp_path / "out" / "final"
    without_head = {n: t for n, t in tiny.state(policy).items() if "score" not in n}
    with pytest.raises(RuntimeError, match="head's weight"):
        policy.save(folder, without_head)
    assert list(folder.parent.iterdir()) == []


def test_a_later_save_replaces_the_whole_folder(base, tmp_path):
    folder = tmp_path / "out" / "final"
    adapted = trained_policy("sft", base, tmp_path / "a", policy=LORA)
    adapted.save(folder, tiny.state(adapted))
    (folder / "notes.txt").write_text("old")
    full = trained_policy("sft", base, tmp_path / "b")
    full.save(folder, tiny.state(full))
    assert not (folder / "adapter").exists()
    assert not (folder / "notes.txt").exists()
    assert tiny.close(tiny.own_logps(tiny.causal(folder)), tiny.ask(full), 3e-5)
    assert [p.name for p in folder.parent.iterdir()] == ["final"]
