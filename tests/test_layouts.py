"""Rows that share a prompt, packed rows and plain rows compute the same, and what cannot is found.

The oracle is the transformers model itself: one unpadded row at a time, no mask, no positions.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from align import config_schema as schema
from align.config import Config
from align.config_errors import UserError
from align.data.tokenizer import train_tokenizer
from align.groups import TokenGroup, collate
from align.layouts import check_layout
from align.policy import Policy
from align.policy_loading import layout as choose_layout
from align.policy_module import PolicyModule

VOCAB = 60
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
GEMMA2 = {"head_dim": 8, "sliding_window": 40, "query_pre_attn_scalar": 8,
          "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}  # fmt: skip
FAMILIES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gpt2": ("gpt2", GPT2),
    "mistral": ("mistral", {"sliding_window": 40}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", GEMMA2),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "granite": ("granite", {"logits_scaling": 3.0}),
}
# Gemma-2's soft cap inside attention exists in the eager kernel alone.
CASES = [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if (f, a) != ("gemma2", "sdpa")]
SCORERS = [c for c in CASES if c[0] not in ("cohere", "granite")]


def build(kind: str, more: dict, attention: str | None = None, heads: int = 0, dtype=torch.float64):
    """A random model that is far from uniform, in float64."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **more})
    if heads:
        config.num_labels = heads
    auto = AutoModelForSequenceClassification if heads else AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=attention).to(dtype)


def groups() -> list[TokenGroup]:
    """Two prompts, with three and two candidates."""
    drawn = torch.Generator().manual_seed(1)

    def some(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=drawn).tolist()

    return [
        TokenGroup(some(5), [some(3), some(6), some(4)]),
        TokenGroup(some(7), [some(2), some(5)], masks=[[1, 1], [1, 0, 1, 1, 0]]),
    ]


def rows() -> list[tuple[int, list[int], list[int]]]:
    """(prompt length, whole row, loss mask of the completion) of each candidate."""
    return [
        (len(g.prompt_ids), g.prompt_ids + c, g.masks[k] if g.masks else [1] * len(c))
        for g in groups()
        for k, c in enumerate(g.completions)
    ]


def own_logps(model) -> torch.Tensor:
    """Log-probs of the learned tokens, one forward pass of the model itself for each candidate."""
    found = []
    for start, ids, mask in rows():
        row = torch.tensor([ids])
        logps = model(input_ids=row, use_cache=False).logits[0].log_softmax(-1)
        chosen = logps[start - 1 : -1].gather(1, row[0, start:, None])[:, 0]
        found.append(chosen[torch.tensor(mask).bool()])
    return torch.cat(found)


def total(logps: torch.Tensor) -> torch.Tensor:
    return logps.sum()


def dpo(logps: torch.Tensor) -> torch.Tensor:
    """Candidate 1 over 0 and 1 over 2 in the first group, 0 over 1 in the second; beta 0.3."""
    sums = torch.stack([part.sum() for part in logps.split([3, 6, 4, 2, 3])])
    reference = torch.tensor([-12.0, -30.0, -17.0, -9.0, -14.0], dtype=logps.dtype)
    ratio = sums - reference
    return -logsigmoid(0.3 * (ratio[[1, 1, 3]] - ratio[[0, 2, 4]])).sum()


def with_gradient(model, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of all parameters as one vector."""
    model.zero_grad()
    loss.backward()
    used = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(used)


def same(a, b, tolerance: float = 1e-5) -> bool:
    """Equal to the tolerance, relative to the largest entry (absolute below 1)."""
    return all(
        x.shape == y.shape and (x - y).abs().max() <= tolerance * x.abs().max().clamp(min=1.0)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_losses_and_gradients_are_those_of_the_model_itself(family, attention):
    kind, more = FAMILIES[family]
    model = build(kind, more, attention)
    module = PolicyModule(model)
    for loss in (total, dpo):
        expected = with_gradient(model, loss(own_logps(model)))
        assert expected[1].norm() > 1e-2
        for layout in ("plain", "grouped"):
            logps = module(collate(groups(), 0, layout))["logps"]
            assert same(with_gradient(model, loss(logps)), expected), (loss.__name__, layout)


@pytest.mark.parametrize(("family", "attention"), SCORERS)
def test_scores_and_gradients_are_those_of_the_classifier_itself(family, attention):
    kind, more = FAMILIES[family]
    model = build(kind, more, attention, heads=2)
    module = PolicyModule(model, scorer=True)
    weight = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)

    own = torch.cat([model(input_ids=torch.tensor([ids])).logits for _, ids, _ in rows()])
    expected = with_gradient(model, (own * weight).sum())
    for layout in ("plain", "grouped"):
        scores = module(collate(groups(), 0, layout), want=("scores",))["scores"]
        assert scores.shape == (5, 2)
        assert same((scores,), (own,))
        assert same(with_gradient(model, (scores * weight).sum()), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma"])
def test_packed_documents_equal_documents_alone(family, attention):
    model = build(*FAMILIES[family], attention)
    module = PolicyModule(model)
    documents = [TokenGroup(ids[:n], [ids[n:]]) for n, ids, _ in rows()]
    packed = collate(documents, 0, "packed", row_length=26)
    assert packed.input_ids.shape == (2, 26)
    expected = with_gradient(model, total(module(collate(documents, 0, "plain"))["logps"]))
    assert same(with_gradient(model, total(module(packed)["logps"])), expected)


@pytest.mark.parametrize("layout", ["grouped", "packed"])
def test_nothing_flows_between_candidates_or_documents(layout):
    model = build("llama", {})
    first, second = [5, 6, 7], [8, 9, 10]
    if layout == "grouped":
        batch = collate([TokenGroup([3, 4], [first, second])], 0)
    else:
        batch = collate([TokenGroup([3], [first]), TokenGroup([4], [second])], 0, layout, 16)
    table = model.get_input_embeddings()
    seen = []
    table.register_forward_hook(lambda _, __, out: seen.append(out) or out.retain_grad())
    logps = PolicyModule(model)(batch)["logps"]
    logps[3:].sum().backward()  # the second's three tokens
    moved = seen[0].grad[0].abs().sum(-1) > 0
    read = batch.input_ids[0, moved].tolist()
    # Its last token, 10, is only predicted, never read from.
    assert sorted(read) == ([3, 4, 8, 9] if layout == "grouped" else [4, 8, 9])


# What cannot share rows


@functools.cache
def words():
    return train_tokenizer(["写一条酒店评论", "Write a review"] * 3, 290)


def policy_of(
    model, layout: str = "auto", *, packing: bool = False, scorer: bool = False
) -> Policy:
    """A policy around a model in memory, its layout chosen but not yet checked."""
    config = Config(
        method="sft" if packing else "dpo",
        policy=schema.Policy(layout=layout),
        data=schema.Data(max_length=32),
        sft=schema.Sft(packing=packing),
    )
    module = PolicyModule(model, scorer=scorer)
    chosen = choose_layout(model, config)
    return Policy(module, words(), path="nowhere", config=config, layout=chosen)


NEXT = {
    "head_dim": 8, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
CONV = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 6,
       "num_heads": 4, "intermediate_size": 48}  # fmt: skip
GROUPLESS = {
    "window": ("mistral", {"sliding_window": 8}, "window of 8 tokens is shorter"),
    "some layers slide": ("gemma2", {**GEMMA2, "sliding_window": 8}, "window of 8 tokens"),
    "linear attention": ("qwen3_next", NEXT, "kind linear_attention"),
    "convolution": ("lfm2", CONV, "kind conv"),
    "state space": ("mamba", {"state_size": 4, "intermediate_size": 64}, "linear_attention"),
    "local attention": ("gpt_neo", NEO, "kind local"),
    "recurrence": ("rwkv", {"attention_hidden_size": 32}, "takes no position_ids"),
}


@pytest.mark.parametrize("case", GROUPLESS)
def test_a_model_that_cannot_share_rows_is_seen_in_its_configuration(case):
    kind, more, reason = GROUPLESS[case]
    model = build(kind, more, dtype=torch.float32).eval()
    policy = policy_of(model)
    assert policy.layout == "plain"
    assert check_layout(policy) is None
    with torch.no_grad():
        logps = policy.module(policy.collate(groups()))["logps"]
        assert same((logps,), (own_logps(model),), 1e-4)
    with pytest.raises(UserError, match=reason) as error:
        policy_of(model, "grouped")
    assert error.value.field == "policy.layout"
    with pytest.raises(UserError, match=reason) as error:
        policy_of(model, packing=True)
    assert error.value.field == "sft.packing"


def test_a_window_as_long_as_the_rows_is_no_obstacle():
    assert policy_of(build("mistral", {"sliding_window": 32})).layout == "grouped"
    # Qwen2 carries a window that it does not use.
    qwen = build("qwen2", {"use_sliding_window": False, "sliding_window": 4})
    assert policy_of(qwen).layout == "grouped"
    assert policy_of(qwen, "plain").layout == "plain"


# What only the measurement finds


def deaf(model):
    """The same model with a body that drops the mask it is given."""
    inner = model.model.forward
    model.model.forward = lambda input_ids, attention_mask=None, position_ids=None, **more: inner(
        input_ids=input_ids, position_ids=position_ids, **more
    )
    return model


class Doubled(LlamaForCausalLM):
    """A Llama whose logits are not its head's output."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def llama(kind: type, **more):
    torch.manual_seed(0)
    return kind(LlamaConfig(**SHAPE, **more)).double()


@pytest.mark.parametrize(
    ("kind", "scorer"), [(LlamaForCausalLM, False), (LlamaForSequenceClassification, True)]
)
def test_a_model_that_ignores_the_mask_falls_back(kind, scorer):
    policy = policy_of(deaf(llama(kind)), scorer=scorer)
    assert policy.layout == "grouped"
    note = check_layout(policy)
    assert note is not None
    assert "share a row differ" in note
    assert policy.layout == "plain"
    with pytest.raises(RuntimeError, match=r"policy\.layout=grouped cannot be used: cand"):
        check_layout(policy_of(deaf(llama(kind)), "grouped", scorer=scorer))


@pytest.mark.parametrize("layout", ["auto", "plain"])
def test_packing_needs_a_model_that_heeds_the_mask(layout):
    with pytest.raises(RuntimeError, match=r"sft\.packing=true cannot be used"):
        check_layout(policy_of(deaf(llama(LlamaForCausalLM)), layout, packing=True))
    assert check_layout(policy_of(llama(LlamaForCausalLM), layout, packing=True)) is None


def test_a_model_that_fails_on_the_mask_falls_back():
    model = build("falcon", {"alibi": True, "hidden_dropout": 0.0, "attention_dropout": 0.0})
    policy = policy_of(model)
    note = check_layout(policy)
    assert note is not None
    assert "takes no 4-D mask" in note
    assert policy.layout == "plain"
    assert same((policy.module(policy.collate(groups()))["logps"],), (own_logps(model),))


def test_logits_that_are_not_the_heads_output_are_refused():
    with pytest.raises(RuntimeError, match="Doubled computes logits in a way"):
        check_layout(policy_of(llama(Doubled), "plain"))
    # A real one: its head has a dense layer and a norm before the output embedding.
    decoder = build("modernbert-decoder", {"cls_token_id": 1, "sep_token_id": 2})
    with pytest.raises(RuntimeError, match="ModernBertDecoderForCausalLM computes logits"):
        check_layout(policy_of(decoder, "plain"))


def test_a_kernel_without_masks_takes_plain_rows_and_is_not_run_on_a_cpu():
    # Like flash attention, flex attention is for accelerators.
    policy = policy_of(build("llama", {}, "flex_attention"))
    assert policy.layout == "plain"
    policy.module.lm.model.forward = None  # would fail
    assert check_layout(policy) is None
    with pytest.raises(UserError, match="flex_attention takes no mask of its own"):
        policy_of(build("llama", {}, "flex_attention"), "grouped")


def test_weights_that_are_not_numbers_are_refused():
    model = llama(LlamaForCausalLM)
    nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(RuntimeError, match="nan"):
        check_layout(policy_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_pass_in_training_and_evaluation_mode(family):
    model = build(*FAMILIES[family], dtype=torch.float32)
    policy = policy_of(model)
    policy.module.train()
    assert policy.layout == "grouped"
    assert check_layout(policy) is None
    assert policy.layout == "grouped"
    assert policy.module.training
