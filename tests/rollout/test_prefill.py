"""Prompts read in pieces: what is drawn does not depend on the pieces."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import rollout_models as tiny

from align.rollout import hf
from align.rollout.hf import HFSampler
from align.rollout.prefill import pieces

LENGTHS = (3, 11, 1, 7, 11, 5)


def draw(model, monkeypatch, budget: int, n: int, temperature: float):
    """Samples, and the shapes of the forward calls that read more than one token a row."""
    drawn = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, tiny.VOCAB, (k,), generator=drawn).tolist() for k in LENGTHS]
    monkeypatch.setattr(hf, "CPU_TOKENS", budget)
    read: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sampler = HFSampler(
        model, tiny.tokenizer(), stop_ids=range(40), max_new_tokens=12, want_logps=True,
        temperature=temperature,
    )  # fmt: skip
    samples = sampler.sample(prompts, n, seed=5)
    hook.remove()
    return samples, read


@pytest.mark.parametrize("family", [x for x in tiny.FAMILIES if x != "mistral_window"])
@pytest.mark.parametrize("n", [1, 3])
def test_pieces_draw_what_one_batch_draws(family, n, monkeypatch):
    model = tiny.model(family)
    whole, read = draw(model, monkeypatch, 10_000, n, 0.0)
    assert read[0] == (6, 11)
    cut, read = draw(model, monkeypatch, 12, n, 0.0)
    # Longest first, at most 12 tokens each: 11 | 11 | 7 | 5, 3 | 1.
    assert read[:5] == [(1, 11), (1, 11), (1, 7), (2, 5), (1, 1)]
    assert cut.completions == whole.completions
    for a, b in zip(cut.logps, whole.logps, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_what_keeps_a_window_is_read_at_once(monkeypatch):
    model = tiny.model("mistral_window")
    _, read = draw(model, monkeypatch, 12, 1, 1.0)
    assert read[0] == (6, 11)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30).map(lambda x: sorted(x, reverse=True)),
    st.integers(1, 100),
)
def test_pieces_cover_all_prompts_within_the_budget(lengths, budget):
    parts = pieces([[0] * k for k in lengths], budget)
    assert [i for part in parts for i in part] == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= budget
    for a, b in itertools.pairwise(parts):  # none could have taken one more
        assert lengths[a.start] * (len(a) + 1) > budget
        assert b.start == a.stop
