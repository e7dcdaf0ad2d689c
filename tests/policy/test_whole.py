"""A plain copy of a sharded policy: its weights, adapters added, gathered a chunk at a time."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny_policies as tiny
import torch

from align import whole
from align.policy_module import base_model

LORA = {"lora": {"r": 4}}


@pytest.fixture
def watched(monkeypatch):
    """Sizes in bytes of what is gathered together."""
    sizes = []

    @contextmanager
    def gathered(parameters):
        sizes.append([p.nbytes for p in parameters])
        yield

    monkeypatch.setattr(whole, "gathered", gathered)
    monkeypatch.setattr(whole, "sharded", lambda lm: True)
    return sizes


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapters", [{}, LORA])
def test_the_copy_computes_what_the_policy_computes(kind, adapters, tmp_path, watched):
    path = tiny.save(tmp_path / "m", kind)
    policy = tiny.load("dpo", path, tmp_path, policy=adapters)
    tiny.disturb(policy.module)
    ids = torch.randint(0, tiny.VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    with whole.whole_lm(policy.module.lm, "cpu", 1) as copied, torch.no_grad():
        assert not hasattr(copied, "peft_config")
        got, expected = copied(input_ids=ids).logits, policy.module.lm(input_ids=ids).logits
    assert torch.allclose(got, expected, atol=1e-5)
    assert not any(p.requires_grad for p in copied.parameters())


def test_what_is_gathered_at_once_is_bounded(tmp_path, watched):
    path = tiny.save(tmp_path / "m")
    policy = tiny.load("dpo", path, tmp_path)
    copied = whole.plain_copy(policy.module.lm, "cpu")
    whole.fill(copied, policy.module.lm, 16_000)
    weights = [p.nbytes for p in base_model(policy.module.lm).parameters()]
    assert max(weights) > 16_000  # the embedding, which comes alone
    assert all(sum(part) <= 16_000 or len(part) == 1 for part in watched)
    assert sorted(size for part in watched for size in part) == sorted(weights)
    assert len(watched) < len(weights) / 2


def test_what_is_not_sharded_is_not_copied(tmp_path):
    policy = tiny.load("dpo", tiny.save(tmp_path / "m"), tmp_path)
    with whole.whole_lm(policy.module.lm, "cpu", 1) as lm:
        assert lm is policy.module.lm
