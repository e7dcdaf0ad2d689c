"""What a step costs on paper, against what runs of small models do and hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

from align import cost
from align.cost import Work, group_work
from align.dry_run_cost import shape_of
from align.logprobs import token_logps
from align.policy_module import base_model, body_of

VOCABULARY, TOKENS, ROWS = 96, 128, 2
WIDTHS = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**WIDTHS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDTHS, head_dim=24, tie_word_embeddings=False),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, n_positions=256,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
}  # fmt: skip
SHAPES = {  # (query, key_value, body) by hand
    "llama": (64, 32, 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)),
    "qwen3": (96, 48, 3 * (2 * 64 * 96 + 2 * 64 * 48 + 3 * 64 * 176)),
    "gpt2": (64, 64, 3 * (4 * 64 * 64 + 2 * 64 * 256)),
}


def model(name: str, lora: bool = False, attention: str = "eager"):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    if lora:
        settings = LoraConfig(r=4, target_modules="all-linear", exclude_modules="lm_head")
        made = get_peft_model(made, settings)
    return made


def batch() -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))


def log_probs(lm, ids: torch.Tensor) -> torch.Tensor:
    hidden = body_of(lm)(input_ids=ids, use_cache=False).last_hidden_state
    head = base_model(lm).get_output_embeddings()
    return token_logps(hidden.flatten(0, 1), ids.flatten(), head)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_widths_by_hand(name):
    shape = shape_of(model(name))
    assert (shape.query, shape.key_value, shape.body) == SHAPES[name]
    assert (shape.hidden, shape.layers, shape.vocabulary) == (64, 3, VOCABULARY)
    assert shape.trained == shape.parameters == sum(p.numel() for p in model(name).parameters())


def test_a_token_passes_the_experts_it_is_routed_to():
    config = MixtralConfig(**WIDTHS, num_local_experts=8, num_experts_per_tok=2)
    shape = shape_of(AutoModelForCausalLM.from_config(config))
    attention = 3 * (2 * 64 * 64 + 2 * 64 * 32)
    assert shape.body == attention + 3 * 64 * 8 + 3 * 2 * 3 * 64 * 176
    assert shape.mlp == 2 * 176


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_products_of_a_step(name, lora):
    lm, ids = model(name, lora), batch()
    # Eager attention makes whole score matrices, forth and (twice as many products) back.
    seen = Work(ROWS * TOKENS, ROWS * TOKENS**2, ROWS * TOKENS)
    shape = shape_of(lm)
    with FlopCounterMode(display=False) as forth:
        out = log_probs(lm, ids)
    expected = cost.forward(shape, seen, adapter=lora)
    if lora:  # the slope of a frozen head is made in the forward pass
        expected += 2 * shape.hidden * shape.vocabulary * seen.predicted
    assert forth.get_total_flops() == pytest.approx(expected, rel=0.02)
    with FlopCounterMode(display=False) as back:
        out.sum().backward()
    expected = cost.backward(shape, Work(seen.tokens, 0, seen.predicted), head=not lora)
    expected += 2 * 4 * shape.query * shape.layers * seen.pairs
    assert back.get_total_flops() == pytest.approx(expected, rel=0.15 if lora else 0.05)


def test_shared_prompts_are_read_once():
    shared, alone = group_work(100, [20, 30]), group_work(100, [20, 30], grouped=False)
    assert (shared.tokens, alone.tokens) == (150, 250)
    own = 20 * 100 + 20 * 21 / 2 + 30 * 100 + 30 * 31 / 2
    assert shared.pairs == 100 * 101 / 2 + own
    assert alone.pairs == 2 * 100 * 101 / 2 + own
    assert shared.predicted == alone.predicted == 50


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_kept_for_the_backward_pass(name, lora):
    lm, ids = model(name, lora, "sdpa"), batch()
    parameters = {p.untyped_storage().data_ptr() for p in lm.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    held_alive = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (held_alive.append(x), keep(x))[1], lambda x: x
    ):
        body_of(lm)(input_ids=ids, use_cache=False)
    counted = cost.held(shape_of(lm), tokens=ROWS * TOKENS).activations
    assert sum(kept.values()) == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("lora", [False, True])
def test_bytes_of_weights_gradients_and_moments(lora):
    lm = model("llama", lora)
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad])
    log_probs(lm, batch()).sum().backward()
    optimizer.step()
    held = cost.held(shape_of(lm))
    assert held.weights == sum(p.nbytes for p in lm.parameters())
    assert held.gradients == sum(p.grad.nbytes for p in lm.parameters() if p.grad is not None)
    moments = [s[k].nbytes for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert held.optimizer == sum(moments)


def test_zero_divides_what_its_stage_divides():
    shape = shape_of(model("llama"))
    p = shape.parameters
    by_stage = [
        cost.held(shape, stage=stage, world=4, weight_bytes=2.0) for stage in range(4)
    ]
    # Sixteen-bit weights and gradients, three float32 numbers of the optimiser.
    assert [(h.weights, h.gradients, h.optimizer) for h in by_stage] == [
        (2 * p, 2 * p, 12 * p),
        (2 * p, 2 * p, 3 * p),
        (2 * p, p / 2, 3 * p),
        (p / 2, p / 2, 3 * p),
    ]
    assert all(a.total >= b.total for a, b in pairwise(by_stage))
    # Stage 3 fetches two layers at a time: 2 · (12,288 + 33,792) weights of two bytes.
    assert [h.gathered for h in by_stage] == [0, 0, 0, 2 * 2 * (12_288 + 33_792)]


def test_bytes_sent_by_hand():
    shape = shape_of(model("llama"))
    size = 2 * shape.parameters  # bytes of all weights, and of all gradients
    sent = {
        stage: cost.sent(shape, stage=stage, world=4, weight_bytes=2.0) for stage in range(4)
    }
    # A ring's all-reduce is a reduce-scatter and an all-gather; stage 3 gathers weights twice.
    assert sent == {0: 1.5 * size, 1: 1.5 * size, 2: 1.5 * size, 3: 2.25 * size}
    assert cost.sent(shape, stage=3, world=1, weight_bytes=2.0) == 0
    twice = cost.sent(shape, stage=3, world=4, weight_bytes=2.0, passes=2)
    assert twice == 2 * sent[3]


def test_phases_of_a_ppo_update_by_hand():
    shape = cost.Shape(
        hidden=2, layers=1, query=2, key_value=2, mlp=4, inner_copies=4, vocabulary=10,
        body=100, parameters=120,
    )  # fmt: skip
    phases = cost.ppo_update(shape, 3, 2, prompts=5, n=1, epochs=4, critic="shared")
    work = Work(25, 5 * (3 * 4 / 2 + 2 * 3 + 2 * 3 / 2), 10)
    forward = 200 * 25 + 8 * work.pairs + 40 * 10
    assert phases["sampling"] == forward
    assert phases["scoring"] == 2 * forward  # policy and reference
    backward = 400 * 25 + 2.5 * 8 * work.pairs + 80 * 10
    assert phases["passes"] == 4 * (forward + backward)
    own = cost.ppo_update(shape, 3, 2, prompts=5, n=1, epochs=4, critic="separate")
    assert own["scoring"] == 2 * forward + forward - 400  # one more body, no vocabulary
