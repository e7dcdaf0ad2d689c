"""What the policy is compared with: the starting model, never the one below it by accident."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny_policies as tiny
import torch

from align.config_errors import UserError

LORA = {"r": 4}
MODES = {
    "adapter_off": {"lora": LORA, "reference": "adapter_off"},
    "frozen": {"reference": "frozen"},
    "frozen under adapters": {"lora": LORA, "reference": "frozen"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("mode", MODES)
def test_the_kl_is_zero_at_the_start_and_the_reference_stays(mode, base, tmp_path):
    policy = tiny.load("dpo", base, tmp_path, policy=MODES[mode])
    own = tiny.own_logps(tiny.causal(base))
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert torch.equal(logps, reference)
    assert tiny.close(reference, own, 2e-5)
    tiny.disturb(policy.module)
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(reference, own, 2e-5)
    assert not tiny.close(logps, own, 1e-2)


def test_auto_is_adapter_off_with_adapters_and_frozen_without(base, tmp_path):
    off = tiny.load("ppo", base, tmp_path, policy={"lora": LORA})
    frozen = tiny.load("ppo", base, tmp_path)
    assert (off.reference, off.module.reference) == ("adapter_off", None)
    assert frozen.reference == "frozen"
    # One base under adapters, two without.
    count = sum(p.numel() for p in tiny.causal(base).parameters())
    held = sum(p.numel() for p in frozen.module.parameters())
    assert held == 2 * count
    assert sum(p.numel() for p in off.module.parameters()) < 1.2 * count


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("sft", {}),
        ("orpo", {}),
        ("dpo", {"dpo": {"loss_type": "simpo"}}),
        ("dpo", {"policy": {"reference": "cached"}}),
    ],
)
def test_without_a_reference_asking_for_it_raises(method, more, base, tmp_path):
    policy = tiny.load(method, base, tmp_path, **more)
    assert policy.module.reference is None
    with pytest.raises(RuntimeError, match="loaded without a reference"):
        tiny.ask(policy, "ref_logps")


def test_a_frozen_reference_stays_in_evaluation_mode_without_gradients(base, tmp_path):
    policy = tiny.load("dpo", base, tmp_path)
    module = policy.module
    module.train()
    assert module.lm.training
    assert not module.reference.training
    assert not any(p.requires_grad for p in module.reference.parameters())
    out = module(policy.collate(tiny.groups()), want=("logps", "ref_logps"))
    assert out["logps"].requires_grad
    assert not out["ref_logps"].requires_grad
    ignored = set(module._keys_to_ignore_on_save)
    assert {n for n in module.state_dict() if n.startswith("reference.")} <= ignored
    assert not ignored & tiny.trained(policy)


def test_the_reference_is_measured_at_the_same_temperature(base, tmp_path):
    policy = tiny.load("ppo", base, tmp_path, policy={"lora": LORA})
    logps, reference = tiny.ask(policy, "logps", "ref_logps", temperature=0.5)
    assert torch.equal(logps, reference)
    assert not tiny.close(reference, tiny.ask(policy, "ref_logps"), 1e-2)


def test_measuring_the_reference_leaves_the_adapters_trainable_and_active(base, tmp_path):
    policy = tiny.load("dpo", base, tmp_path, policy={"lora": LORA})
    before = tiny.trained(policy)
    tiny.disturb(policy.module)
    logps = tiny.ask(policy)
    tiny.ask(policy, "ref_logps")
    assert tiny.trained(policy) == before
    assert torch.equal(tiny.ask(policy), logps)


# policy.path is the adapter of an earlier stage


@pytest.mark.parametrize("now", [{"lora": LORA}, {}])
def test_an_sft_adapter_is_merged_before_anything_is_compared_with_it(now, base, tmp_path):
    adapter = tiny.adapter(tmp_path / "sft", base)
    from peft import PeftModel

    tuned = tiny.own_logps(PeftModel.from_pretrained(tiny.causal(base), adapter).eval())
    untuned = tiny.own_logps(tiny.causal(base))
    assert not tiny.close(tuned, untuned, 1e-2)
    shutil.copy(f"{base}/tokenizer.json", adapter)
    shutil.copy(f"{base}/tokenizer_config.json", adapter)
    shutil.copy(f"{base}/chat_template.jinja", adapter)
    policy = tiny.load("dpo", adapter, tmp_path / "run", policy=now)
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert torch.equal(logps, reference)
    assert tiny.close(reference, tuned, 2e-5)
    tiny.disturb(policy.module)
    assert tiny.close(tiny.ask(policy, "ref_logps"), tuned, 2e-5)
    assert policy.path == str(tmp_path / "run" / "base")


def test_the_tokenizer_may_be_the_bases(base, tmp_path):
    adapter = tiny.adapter(tmp_path / "sft", base)
    policy = tiny.load("dpo", adapter, tmp_path / "run", policy={"lora": LORA})
    assert len(policy.tokenizer) == tiny.VOCAB


def test_another_adapter_in_the_same_run_directory_is_merged_anew(base, tmp_path):
    adapter = tmp_path / "sft"
    tiny.adapter(adapter, base, seed=3)
    first = tiny.load("dpo", str(adapter), tmp_path / "run")
    again = tiny.load("dpo", str(adapter), tmp_path / "run")
    assert again.fingerprint == first.fingerprint
    shutil.rmtree(adapter)
    tiny.adapter(adapter, base, seed=4)
    other = tiny.load("dpo", str(adapter), tmp_path / "run")
    assert other.fingerprint != first.fingerprint
    assert not tiny.close(tiny.ask(other), tiny.ask(first), 1e-2)


def test_an_adapter_whose_base_is_gone_is_refused(base, tmp_path):
    adapter = tiny.adapter(tmp_path / "sft", base)
    file = tmp_path / "sft" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be loaded on its base") as error:
        tiny.load("dpo", adapter, tmp_path / "run")
    assert error.value.field == "policy.path"


# policy.lora.path is an adapter to go on from


def test_a_frozen_reference_takes_in_the_adapter_that_training_goes_on_from(base, tmp_path):
    adapter = tiny.adapter(tmp_path / "a", base)
    now = {"lora": {"r": 4, "path": adapter}, "reference": "frozen"}
    policy = tiny.load("dpo", base, tmp_path, policy=now)
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(logps, reference, 2e-5)
    assert not tiny.close(reference, tiny.own_logps(tiny.causal(base)), 1e-2)


def test_adapter_off_compares_with_the_model_below_that_adapter(base, tmp_path):
    # The trainer refuses this before the first step: AlignTrainer.check_reference.
    adapter = tiny.adapter(tmp_path / "a", base)
    now = {"lora": {"r": 4, "path": adapter}, "reference": "adapter_off"}
    policy = tiny.load("dpo", base, tmp_path, policy=now)
    logps, reference = tiny.ask(policy, "logps", "ref_logps")
    assert tiny.close(reference, tiny.own_logps(tiny.causal(base)), 2e-5)
    assert not tiny.close(logps, reference, 1e-2)
