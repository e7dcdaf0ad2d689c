"""Chunked log-probs against the full computation, and what they hold in memory meanwhile."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from align.logprobs import chunk_count, default_chunk_tokens, token_logps

N, H, V = 24, 6, 40


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=g).to(dtype).requires_grad_()
    labels = torch.randint(V, (N,), generator=g)
    head = nn.Linear(H, V, bias=True)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return hidden, labels, head.to(dtype)


def full(hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module, adjust=lambda z: z):
    distribution = torch.distributions.Categorical(logits=adjust(head(hidden)))
    return distribution.log_prob(labels), distribution.entropy()


ADJUSTMENTS = [
    ({}, lambda z: z),
    ({"temperature": 0.7}, lambda z: z / 0.7),
    ({"softcap": 3.0}, lambda z: 3 * torch.tanh(z / 3)),
    ({"scale": 0.25}, lambda z: z * 0.25),
    (  # in that order
        {"scale": 2.0, "softcap": 3.0, "temperature": 0.5},
        lambda z: 3 * torch.tanh(2 * z / 3) / 0.5,
    ),
]


@pytest.mark.parametrize(("options", "adjust"), ADJUSTMENTS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 8, N, None])
def test_item_4_values_and_gradients_equal_full_logits(
    options: dict, adjust, chunk_tokens: int | None
) -> None:
    hidden, labels, head = problem()
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    parameters = [hidden, *head.parameters()]

    expected = full(hidden, labels, head, adjust)
    wanted = torch.autograd.grad(
        (weights * expected[0]).sum() + 0.3 * expected[1].sum(), parameters
    )
    actual = token_logps(
        hidden, labels, head, chunk_tokens=chunk_tokens, want_entropy=True, **options
    )
    torch.testing.assert_close(actual, expected)
    got = torch.autograd.grad((weights * actual[0]).sum() + 0.3 * actual[1].sum(), parameters)
    torch.testing.assert_close(got, wanted)


def test_by_hand() -> None:
    # Logits (0, ln 3): probabilities ¼ and ¾; entropy ¼·ln 4 + ¾·ln(4/3) = .56233514
    head = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))
    logps, entropy = token_logps(
        torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 1]), head, want_entropy=True
    )
    assert logps.tolist() == pytest.approx([-1.3862943611, -0.2876820725])
    assert entropy.tolist() == pytest.approx([0.5623351446] * 2)


def test_item_25_uniform_entropy_is_log_vocabulary() -> None:
    hidden, labels, head = problem(torch.float32)
    logps, entropy = token_logps(0 * hidden, labels, nn.Linear(H, V, bias=False), want_entropy=True)
    torch.testing.assert_close(entropy, torch.full((N,), math.log(V)))
    torch.testing.assert_close(logps, torch.full((N,), -math.log(V)))
    assert token_logps(hidden, labels, head)[1] is None


def test_masked_vocabulary_entries_have_no_nan() -> None:
    hidden, labels, head = problem()
    labels = labels % 30

    def masked(rows: torch.Tensor) -> torch.Tensor:
        return head(rows).masked_fill(torch.arange(V) >= 30, float("-inf"))

    logps, entropy = token_logps(hidden, labels, masked, chunk_tokens=5, want_entropy=True)
    kept, kept_entropy = full(hidden, labels, lambda rows: head(rows)[:, :30])
    torch.testing.assert_close(logps, kept)
    torch.testing.assert_close(entropy, kept_entropy)
    (logps.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


def test_half_precision_weights_accumulate_in_float32() -> None:
    hidden, labels, head = problem(torch.bfloat16)
    logps, entropy = token_logps(hidden, labels, head, chunk_tokens=5, want_entropy=True)
    assert logps.dtype == entropy.dtype == torch.float32
    expected, expected_entropy = full(hidden, labels, lambda rows: head(rows).double())
    torch.testing.assert_close(logps.double(), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=5e-6, rtol=5e-6)
    logps.sum().backward()
    assert head.weight.grad.dtype == torch.bfloat16


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("want_entropy", [False, True])
def test_no_tensor_is_larger_than_one_chunk_of_logits(want_entropy: bool) -> None:
    tokens, width, vocab, chunk = 64, 4, 500, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    labels = torch.randint(vocab, (tokens,))
    head = nn.Linear(width, vocab, bias=False)
    with Largest() as seen:
        logps, entropy = token_logps(
            hidden, labels, head, chunk_tokens=chunk, want_entropy=want_entropy
        )
        (logps.sum() if entropy is None else logps.sum() + entropy.sum()).backward()
    assert seen.numel == chunk * vocab
    with Largest() as seen:  # the measure does see what it is meant to see
        token_logps(hidden, labels, head, chunk_tokens=tokens)[0].sum().backward()
    assert seen.numel == tokens * vocab


def test_nothing_of_vocabulary_size_is_kept_for_the_backward_pass() -> None:
    tokens, vocab, chunk = 64, 500, 8
    hidden = torch.randn(tokens, 4, requires_grad=True)
    head = nn.Linear(4, vocab, bias=False)
    saved: list[int] = []

    def remember(t: torch.Tensor) -> torch.Tensor:
        if t is not head.weight and t.shape != (4, vocab):
            saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        token_logps(hidden, torch.zeros(tokens, dtype=torch.long), head, chunk_tokens=chunk)
    assert max(saved, default=0) < chunk * vocab


@pytest.mark.parametrize("min_chunks", [1, 3])
def test_no_tokens_keep_the_graph(min_chunks: int) -> None:
    hidden, labels, head = problem()
    logps, entropy = token_logps(
        hidden[:0], labels[:0], head, want_entropy=True, min_chunks=min_chunks
    )
    assert logps.shape == entropy.shape == (0,)
    (logps.sum() + entropy.sum()).backward()  # DDP and ZeRO need a gradient from every rank
    assert (hidden.grad == 0).all()
    assert (head.weight.grad == 0).all()


def test_the_head_is_called_once_per_chunk_on_every_rank() -> None:
    hidden, labels, head = problem()
    rows: list[int] = []
    head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        whole, _ = token_logps(hidden, labels, head, chunk_tokens=10)
        assert rows == [10, 10, 4]
        rows.clear()
        padded, _ = token_logps(hidden, labels, head, chunk_tokens=10, min_chunks=5)
    assert rows == [10, 10, 4, 0, 0]
    assert torch.equal(whole, padded)
    assert chunk_count(N, head, 10) == 3
    assert chunk_count(0, head, 10) == 1


def test_dropout_in_the_head_is_the_same_in_the_recomputation() -> None:
    hidden, labels, head = problem()
    noisy = nn.Sequential(nn.Dropout(0.5), head)

    def gradient(chunk_tokens: int) -> torch.Tensor:
        torch.manual_seed(5)
        logps, _ = token_logps(hidden, labels, noisy, chunk_tokens=chunk_tokens)
        torch.manual_seed(6)  # the backward pass meets another RNG state
        return torch.autograd.grad(logps[:12].sum(), hidden)[0][:12]

    torch.manual_seed(5)
    logps, _ = full(hidden[:12], labels[:12], noisy)
    torch.testing.assert_close(gradient(12), torch.autograd.grad(logps.sum(), hidden)[0][:12])


def test_chunk_size_follows_the_vocabulary() -> None:
    # 256 MiB / (4 bytes · 151936) = 441.7
    assert default_chunk_tokens(nn.Linear(1, 151936, bias=False, device="meta")) == 441
    assert default_chunk_tokens(nn.Embedding(1000, 2, device="meta")) == 67108
    assert default_chunk_tokens(lambda x: x) == 256  # 2^18 entries assumed
    assert default_chunk_tokens(nn.Linear(1, 100, device="meta"), chunk_bytes=10) == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_input_is_refused(temperature: float) -> None:
    hidden, labels, head = problem()
    with pytest.raises(ValueError, match=r"temperature=.* must be > 0"):
        token_logps(hidden, labels, head, temperature=temperature)
    with pytest.raises(ValueError, match=r"\(24, 6\) does not fit labels \(23,\)"):
        token_logps(hidden, labels[1:], head)


# The written-out gradient of a plain linear head


@pytest.mark.parametrize("chunk_tokens", [1, 7, N, None])
@pytest.mark.parametrize("trained", [(), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_by_finite_differences(trained, chunk_tokens, temperature) -> None:
    hidden, labels, head = problem()
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name in trained)
    parameters = [p for n, p in head.named_parameters() if n in trained]

    def logps(hidden, *_):
        return token_logps(
            hidden, labels, head, chunk_tokens=chunk_tokens, temperature=temperature, scale=0.5
        )[0]

    assert torch.autograd.gradcheck(logps, (hidden, *parameters))


@pytest.mark.parametrize("trained", [True, False])
def test_written_out_equals_recomputed(trained) -> None:
    """A subclass of Linear takes the general way."""

    class Other(nn.Linear):
        pass

    hidden, labels, head = problem()
    head.requires_grad_(trained)
    other = Other(H, V, dtype=torch.float64).requires_grad_(trained)
    other.load_state_dict(head.state_dict())
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    found = []
    for one in (head, other):
        logps, _ = token_logps(hidden, labels, one, chunk_tokens=5)
        wanted = [hidden, *one.parameters()] if trained else [hidden]
        found.append((logps, *torch.autograd.grad((weights * logps).sum(), wanted)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("trained", [True, False])
def test_under_autocast_the_gradient_is_that_of_the_narrow_products(trained) -> None:
    hidden, labels, head = problem(torch.float32)
    head.requires_grad_(trained)

    class Other(nn.Linear):
        pass

    other = Other(H, V).requires_grad_(trained)
    other.load_state_dict(head.state_dict())
    found = []
    for one in (head, other):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logps, _ = token_logps(hidden, labels, one, chunk_tokens=5)
        assert logps.dtype == torch.float32
        wanted = [hidden, *one.parameters()] if trained else [hidden]
        found.append((logps, *torch.autograd.grad(logps.sum(), wanted)))
    torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0.02)


def test_a_frozen_head_keeps_nothing_of_vocabulary_size() -> None:
    hidden, labels, head = problem(torch.float32)
    head.requires_grad_(False)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        token_logps(hidden, labels, head)
    assert N * V not in kept
    assert max(kept) <= max(N * H, V * H)


@pytest.mark.parametrize("chunk_tokens", [5, None])
def test_asking_for_the_entropy_does_not_change_a_bit_of_the_log_probs(chunk_tokens) -> None:
    """PPO's KL before the first step is 0 because policy and reference are summed alike."""
    hidden, labels, head = problem(torch.float32)
    with torch.no_grad():
        alone, _ = token_logps(hidden, labels, head, chunk_tokens=chunk_tokens, temperature=0.7)
        logps, entropy = token_logps(
            hidden, labels, head, chunk_tokens=chunk_tokens, temperature=0.7, want_entropy=True
        )
        expected = full(hidden, labels, head, lambda z: z / 0.7)
    assert torch.equal(alone, logps)
    torch.testing.assert_close((logps, entropy), expected)
