"""HFSampler against `generate` and against plain forward passes, for four model families."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny

from align.chat import completion_text, render_prompt, stop_ids
from align.config_errors import UserError
from align.config_schema import Rollout
from align.records import Message
from align.rollout import Interrupted, make_sampler
from align.rollout.hf import HFSampler

# Lengths out of order, so that sorting by length moves every row.
LENGTHS = (3, 11, 1, 7, 11, 5)
STOPS = tuple(range(0, 40))  # frequent enough that completions end at different steps


def prompts(*lengths: int, seed: int = 3) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randint(1, tiny.VOCAB, (n,), generator=drawn).tolist() for n in lengths]


def sampler(model, **fields) -> HFSampler:
    defaults = {"stop_ids": STOPS, "max_new_tokens": 12, "want_logps": True}
    return HFSampler(model, tiny.tokenizer(), **(defaults | fields))


def by_generate(model, prompt: list[int], stops, steps: int) -> list[int]:
    """Greedy completion of one prompt by transformers, its stop token included."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=steps, eos_token_id=list(stops), pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request):
    return tiny.model(request.param)


def test_item02_greedy_equals_generate_token_by_token(model):
    rows = prompts(*LENGTHS)
    got = sampler(model, temperature=0.0, batch_size=4).sample(rows, 1, seed=0)
    assert got.completions == [by_generate(model, p, STOPS, 12) for p in rows]
    assert len({len(c) for c in got.completions}) > 1  # some ended early and left the batch
    assert got.finished == [c[-1] in STOPS for c in got.completions]
    for prompt, ids, logps in zip(rows, got.completions, got.logps, strict=True):
        assert logps == pytest.approx(tiny.full_logps(model, prompt, ids), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_item04_logps_are_those_of_logits_over_temperature(model, temperature):
    rows = prompts(*LENGTHS)
    got = sampler(model, temperature=temperature, batch_size=5).sample(rows, 2, seed=1)
    assert got.prompt_ids == [p for p in rows for _ in range(2)]
    for prompt, ids, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        expected = tiny.full_logps(model, prompt, ids, temperature)
        assert logps == pytest.approx(expected, abs=1e-5)


def test_item02_a_sample_depends_on_no_other_row(model):
    rows = prompts(*LENGTHS)
    whole = sampler(model, batch_size=64).sample(rows, 2, seed=5)
    assert len({len(c) for c in whole.completions}) > 1
    for size in (1, 3):
        assert sampler(model, batch_size=size).sample(rows, 2, seed=5).completions == (
            whole.completions
        )
    # Other prompts beside it, much longer (more padding) or fewer of them.
    others = prompts(40, 2, 30, seed=9)
    mixed = sampler(model).sample([rows[0], others[0], rows[2], others[1], others[2]], 2, seed=5)
    assert mixed.completions[0:2] == whole.completions[0:2]
    assert mixed.completions[4:6] == whole.completions[4:6]
    assert sampler(model).sample(rows[:1], 2, seed=5).completions == whole.completions[:2]
    for row in (0, 1, 4, 5):
        assert mixed.logps[row] == pytest.approx(whole.logps[row], abs=1e-5)


def test_greedy_follows_the_order_of_the_prompts(model):
    rows = prompts(*LENGTHS)
    order = [4, 2, 0, 5, 3, 1]
    greedy = sampler(model, temperature=0.0)
    there = greedy.sample(rows, 1, seed=0).completions
    assert greedy.sample([rows[i] for i in order], 1, seed=0).completions == [
        there[i] for i in order
    ]


def test_n_completions_of_a_prompt_differ_and_are_all_right(model):
    rows = prompts(4, 9)
    got = sampler(model, batch_size=3, stop_ids=()).sample(rows, 4, seed=2)
    assert len(got) == 8
    assert len({tuple(c) for c in got.completions[:4]}) == 4
    assert len({tuple(c) for c in got.completions[4:]}) == 4
    for prompt, ids, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        assert logps == pytest.approx(tiny.full_logps(model, prompt, ids), abs=1e-5)


def test_item05_seeds_and_the_global_random_state(model):
    rows = prompts(3, 6)
    draw = sampler(model)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw.sample(rows, 2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert draw.sample(rows, 2, seed=7) == first
    assert draw.sample(rows, 2, seed=7 + 100_003).completions != first.completions


def test_item03_pad_equal_to_eos_and_eos_inside_the_prompt(model):
    tokenizer = tiny.tokenizer()
    eos = tokenizer.eos_token_id
    assert eos == 0  # what the batch is padded with, too
    plain = prompts(5, 9, 2)
    rows = [[*plain[0][:2], eos, *plain[0][2:]], plain[1] + [eos], [eos, eos, *plain[2]]]
    got = sampler(model, stop_ids=[eos], temperature=0.0).sample(rows, 1, seed=0)
    assert got.completions == [by_generate(model, p, [eos], 12) for p in rows]
    drawn = sampler(model, stop_ids=[eos]).sample(rows, 3, seed=0)
    for prompt, ids, logps in zip(drawn.prompt_ids, drawn.completions, drawn.logps, strict=True):
        assert logps == pytest.approx(tiny.full_logps(model, prompt, ids), abs=1e-5)
        assert eos not in ids[:-1]


@pytest.mark.parametrize("template", ["chatml", "zh_instruction", "inst"])
def test_texts_are_what_a_reward_model_should_be_shown(template):
    tokenizer = tiny.tokenizer(template)
    asked = ("写一条酒店评论", "Write a review", "评价房间")
    rows = [render_prompt(tokenizer, [Message("user", text)]) for text in asked]
    made = make_sampler(Rollout(max_new_tokens=10), tiny.model("llama_gqa"), tokenizer)
    got = made.sample(rows, 8, seed=0)
    assert got.texts == [completion_text(tokenizer, ids) for ids in got.completions]
    assert got.logps is None


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("很好。END", "END", "很好。"),
        ("服务很好，下次", "很好，", "服务"),
        ("Bad fo\nUser", "\nUs", "Bad fo"),
    ],
)
def test_stop_strings_end_a_completion(text, stop, kept):
    tokenizer = tiny.tokenizer()
    ids = tokenizer(text + "再评", add_special_tokens=False)["input_ids"]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    model = tiny.parrot([start, *ids, stop_ids(tokenizer)[0]])
    told = make_sampler(
        Rollout(stop=[stop], max_new_tokens=40), model, tokenizer, temperature=0.0, want_logps=True
    )
    got = told.sample([[start]], 1, seed=0)
    assert got.texts == [kept]
    assert got.finished == [True]
    assert got.completions[0] == ids[: len(got.completions[0])]
    assert stop in tokenizer.decode(got.completions[0])
    assert stop not in tokenizer.decode(got.completions[0][:-1])
    assert len(got.logps[0]) == len(got.completions[0])
    without = replace(told, stop_strings=()).sample([[start]], 1, seed=0)
    assert without.texts == [text + "再评"]
    assert without.finished == [True]


def test_item08_a_stop_before_the_minimum_is_sampled_and_counts_as_missing():
    tokenizer = tiny.tokenizer()
    start, end = tokenizer.convert_tokens_to_ids("<|im_start|>"), stop_ids(tokenizer)[0]
    ids = tokenizer("太差了", add_special_tokens=False)["input_ids"]
    model = tiny.parrot([start, *ids, end])
    for minimum, finished in ((len(ids), True), (len(ids) + 1, False)):
        rollout = Rollout(min_new_tokens=minimum, max_new_tokens=32)
        got = make_sampler(rollout, model, tokenizer, temperature=0.0).sample([[start]], 1, seed=0)
        assert got.completions == [[*ids, end]]
        assert got.finished == [finished]
        assert got.texts == ["太差了"]


PROBABILITIES = (0.5, 0.25, 0.15, 0.1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PROBABILITIES),
        # p² over the sum of squares, 0.345.
        ({"temperature": 0.5}, (0.724638, 0.181159, 0.065217, 0.028986)),
        ({"top_k": 2}, (0.666667, 0.333333, 0, 0)),
        ({"top_p": 0.7}, (0.666667, 0.333333, 0, 0)),  # 0.5 is not enough, 0.75 is
        ({"top_p": 0.8}, (0.555556, 0.277778, 0.166667, 0)),
        ({"top_k": 3, "top_p": 0.6}, (0.666667, 0.333333, 0, 0)),
    ],
)
def test_item04_tokens_are_drawn_with_their_probabilities(fields, expected):
    model, n = tiny.constant(PROBABILITIES), 4000
    made = sampler(model, stop_ids=(), max_new_tokens=1, batch_size=4000, **fields)
    got = made.sample([[2]], n, seed=11)
    drawn = [ids[0] for ids in got.completions]
    counts = [drawn.count(token) for token in range(4)]
    assert sum(counts) == n
    kept = [(c, p * n) for c, p in zip(counts, expected, strict=True) if p]
    assert all(c == 0 for c, p in zip(counts, expected, strict=True) if not p)
    # 16.27: exceeded once in a thousand with three degrees of freedom.
    assert sum((c - e) ** 2 / e for c, e in kept) < 16.27
    # The trainer's distribution, whatever was filtered out of it.
    if "temperature" not in fields:
        by_token = {0: -0.693147, 1: -1.386294, 2: -1.897120, 3: -2.302585}
        assert got.logps == [[pytest.approx(by_token[t], abs=1e-5)] for t in drawn]


def test_item04_successive_tokens_are_independent_draws():
    """Both columns and their pairs: one row of uniforms is not used twice."""
    model, n = tiny.constant((0.5, 0.5)), 2000
    got = sampler(model, stop_ids=(), max_new_tokens=2, batch_size=500).sample([[1]], n, seed=3)
    pairs = [tuple(ids) for ids in got.completions]
    counts = [pairs.count((a, b)) for a in (0, 1) for b in (0, 1)]
    assert sum((c - 500) ** 2 / 500 for c in counts) < 16.27


@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_p": 0.4}, {"top_k": 4, "top_p": 0.6}])
def test_filters_let_only_the_likeliest_tokens_through(model, fields):
    rows = prompts(3, 8)
    got = sampler(model, stop_ids=(), **fields).sample(rows, 4, seed=0)
    top_k, top_p = fields.get("top_k", tiny.VOCAB), fields.get("top_p", 1.0)
    for prompt, ids, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        probabilities = logits.double().softmax(-1)
        for token, row in zip(ids, probabilities, strict=True):
            likelier = row[row > row[token]]
            assert len(likelier) < top_k
            if "top_k" not in fields:
                assert likelier.sum() < top_p  # the nucleus was not full before it
        assert logps == pytest.approx(tiny.full_logps(model, prompt, ids), abs=1e-5)


def test_item04_the_models_own_generation_settings_are_not_used():
    model = tiny.model("llama_gqa")
    plain = sampler(model).sample(prompts(4, 6), 2, seed=0)
    model.generation_config.update(top_k=1, repetition_penalty=5.0, temperature=0.1, do_sample=True)
    assert sampler(model).sample(prompts(4, 6), 2, seed=0) == plain


def test_item06_no_dropout_and_every_module_keeps_its_mode():
    model = tiny.model("gpt2", dropout=0.5)
    still = sampler(model).sample(prompts(4, 6), 2, seed=0)
    model.train()
    model.transformer.h[0].eval()  # a frozen part of a model in training
    modes = [m.training for m in model.modules()]
    assert len(set(modes)) == 2
    assert sampler(model).sample(prompts(4, 6), 2, seed=0) == still
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(UserError):
        sampler(model).sample(prompts(95), 1, seed=0)
    assert [m.training for m in model.modules()] == modes


def test_sampling_is_given_up_after_the_token_at_which_it_is_told_to():
    model = tiny.model(tiny.FAMILIES[0]).train()
    steps = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    one = sampler(model, stop_ids=(), interrupted=lambda: len(steps) == 3)
    with pytest.raises(Interrupted):
        one.sample(prompts(4, 2), 1, seed=0)
    handle.remove()
    assert len(steps) == 3
    assert model.training
    model.eval()


def test_no_gradient_is_recorded_and_none_is_lost():
    model = tiny.model("qwen3")
    model.requires_grad_(True)
    model(torch.tensor([[3, 4]])).logits.sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    sampler(model).sample(prompts(4), 2, seed=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["gpt2", "llama_gqa"])
def test_lora_wrapped_model(family):
    from peft import LoraConfig, get_peft_model

    base = tiny.model(family)
    rows = prompts(*LENGTHS)
    plain = sampler(base, temperature=0.0).sample(rows, 1, seed=0)
    # Not initialised to a no-op, so that the adapter shows.
    modules = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    config = LoraConfig(
        r=4, target_modules=modules, init_lora_weights=False, lora_dropout=0.5,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    torch.manual_seed(0)
    wrapped = get_peft_model(base, config)
    wrapped.train()
    got = sampler(wrapped, batch_size=4).sample(rows, 2, seed=1)
    assert wrapped.training
    wrapped.eval()
    for prompt, ids, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        assert logps == pytest.approx(tiny.full_logps(wrapped, prompt, ids), abs=1e-5)
    greedy = sampler(wrapped, temperature=0.0).sample(rows, 1, seed=0)
    assert greedy.completions != plain.completions
    assert greedy.completions == [by_generate(wrapped, p, STOPS, 12) for p in rows]
    with wrapped.disable_adapter():
        without = sampler(wrapped, temperature=0.0).sample(rows, 1, seed=0)
    assert without.completions == plain.completions


def test_under_autocast_only_the_models_numbers_are_rough():
    model, rows = tiny.model("llama_gqa"), prompts(4, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sampler(model, top_k=20).sample(rows, 3, seed=0)
    for prompt, ids, logps in zip(got.prompt_ids, got.completions, got.logps, strict=True):
        # bfloat16 has eight bits: logits of about ten are off by a few hundredths.
        assert logps == pytest.approx(tiny.full_logps(model, prompt, ids), abs=0.3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_diverged_logits_are_an_error(value, temperature):
    model = tiny.model("gpt2")
    model.train()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(value)
    with pytest.raises(FloatingPointError, match="the policy has diverged"):
        sampler(model, temperature=temperature).sample(prompts(3), 1, seed=0)
    assert model.training


def test_a_forbidden_token_is_no_divergence():
    model = tiny.constant((0.5, 0.25, 0.25))
    with torch.no_grad():
        model.lm_head.weight[1, 0] = -torch.inf
        model.transformer.ln_f.bias[1:] = 1.0  # −inf · 1 + 0 · 1, never −inf · 0
    got = sampler(model, stop_ids=(), max_new_tokens=1, batch_size=500).sample([[0]], 500, seed=0)
    assert {ids[0] for ids in got.completions} == {0, 2}


def test_a_prompt_that_leaves_no_room_is_refused():
    model = tiny.model("gpt2", positions=32)
    made = sampler(model, max_new_tokens=12)
    assert len(made.sample(prompts(20), 1, seed=0)) == 1  # 20 + 12 just fit
    with pytest.raises(UserError) as caught:
        made.sample(prompts(3, 21), 1, seed=0)
    assert str(caught.value) == (
        "rollout.max_new_tokens=12 does not fit: the longest prompt has 21 tokens and the model 32 "
        "positions. Use at most 11. Set data.max_prompt_length to 20 or less."
    )
    with pytest.raises(UserError) as caught:
        made.sample(prompts(40), 1, seed=0)
    assert "Use at most" not in str(caught.value)
    assert "Set data.max_prompt_length to 20 or less." in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "rollout.temperature=-1.0 is negative"),
        ({"temperature": float("nan")}, "rollout.temperature=nan is negative"),
        ({"max_new_tokens": 0}, "rollout.max_new_tokens=0 is below 1"),
        ({"batch_size": 0}, "rollout.batch_size=0 is below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(UserError) as caught:
        sampler(tiny.constant((0.5, 0.5)), **fields)
    assert message in str(caught.value)


def test_nothing_to_do_and_an_empty_prompt():
    made = sampler(tiny.constant((0.5, 0.5)))
    empty = made.sample([], 4, seed=0)
    assert len(empty) == 0
    assert empty.texts == []
    with pytest.raises(ValueError, match="a prompt without tokens"):
        made.sample([[1], []], 1, seed=0)


def test_item04_make_sampler_reads_the_rollout_section():
    tokenizer, model = tiny.tokenizer(), tiny.model("gpt2")
    default: HFSampler = make_sampler(Rollout(), model, tokenizer)
    assert (default.temperature, default.top_k, default.top_p) == (1.0, 0, 1.0)
    assert tuple(default.stop_ids) == stop_ids(tokenizer)
    section = Rollout(max_new_tokens=9, min_new_tokens=2, temperature=0.7, top_p=0.9, top_k=5,
                      stop=["。"], batch_size=3)  # fmt: skip
    made: HFSampler = make_sampler(section, model, tokenizer, temperature=0.0, want_logps=True)
    assert (made.max_new_tokens, made.min_new_tokens, made.top_p, made.top_k) == (9, 2, 0.9, 5)
    assert (made.stop_strings, made.batch_size) == (("。",), 3)
    assert (made.temperature, made.want_logps) == (0.0, True)
