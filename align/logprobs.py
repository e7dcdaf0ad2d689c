"""Log-probs and entropy of tokens from hidden states, without a logits tensor of all tokens.

At a vocabulary of 150,000 the float32 logits of 8,192 tokens are 5 GB, and their gradient as much
again. Only N numbers of those N·V are wanted, so the head is applied to a few rows at a time. For a
plain linear head the gradient is written out (`align.head_gradient`); for any other each chunk is
recomputed in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.head_gradient import linear_entropy, linear_logps, linear_logps_lse, writes_out

CHUNK_BYTES = 256 * 2**20
"""Float32 logits of one chunk. The backward pass holds about three tensors of that size."""

_UNKNOWN_VOCAB = 2**18  # larger than any vocabulary in use: a chunk too small is only slower


def token_logps(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    want_entropy: bool = False,
    softcap: float | None = None,
    scale: float | None = None,
    min_chunks: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each label, and the entropy of the distribution it was drawn from.

        z = softcap·tanh(scale·head(h)/softcap) / temperature,   log p(y) = z_y − logsumexp(z)

    hidden: (N, H). labels: (N,) int. head: (n, H) → (n, V), called once per chunk, as a module, so
    that its hooks fire (LoRA on the head, ZeRO-3 gathering). chunk_tokens: rows per chunk; None
    takes what fits in CHUNK_BYTES. softcap: Gemma-2's final_logit_softcapping. scale: multiplies
    the logits (Cohere's logit_scale; for Granite 1/logits_scaling). min_chunks: at least so many
    head calls, the surplus over zero rows: under ZeRO-3 all ranks must gather the head equally
    often, so pass the maximum of `chunk_count` over the ranks.

    Everything after the head is float32 (float64 if hidden is). Returns logps (N,) and entropy (N,)
    or None, nats, both differentiable. N = 0 gives empty tensors that are still on the graph.
    Raises ValueError for temperature ≤ 0 and for unequal lengths.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be > 0; greedy sampling has no log-prob")
    if hidden.dim() != 2 or labels.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} does not fit labels {tuple(labels.shape)}")
    count = max(chunk_count(hidden.shape[0], head, chunk_tokens), min_chunks)
    size = chunk_tokens or default_chunk_tokens(head)
    if softcap is None and min_chunks == 1 and writes_out(head):
        factor = (scale or 1.0) / temperature
        if not want_entropy:
            return linear_logps(hidden, labels, head, factor, size), None
        if not torch.is_grad_enabled():
            return linear_entropy(hidden, labels, head, factor, size)

    def one_chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _chunk_logps(head(rows), targets, temperature, want_entropy, softcap, scale)

    recompute = count > 1 and torch.is_grad_enabled()
    logps, entropy = [], []
    for i in range(count):
        rows, targets = hidden[i * size : (i + 1) * size], labels[i * size : (i + 1) * size]
        if recompute:
            lp, ent = checkpoint(one_chunk, rows, targets, use_reentrant=False)
        else:
            lp, ent = one_chunk(rows, targets)
        logps.append(lp)
        entropy.append(ent)
    return torch.cat(logps), torch.cat(entropy) if want_entropy else None


def token_logps_lse(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    min_chunks: int = 1,
) -> tuple[Tensor, Tensor]:
    """`token_logps` at temperature 1, and logsumexp(z) of each token, both (N,) and differentiable.

    Arguments as there; no logits of all tokens here either.
    """
    count = max(chunk_count(hidden.shape[0], head, chunk_tokens), min_chunks)
    size = chunk_tokens or default_chunk_tokens(head)
    if softcap is None and min_chunks == 1 and writes_out(head) and head.weight.requires_grad:
        return linear_logps_lse(hidden, labels, head, scale or 1.0, size)

    def one_chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        z = _logits(head(rows), 1.0, softcap, scale)
        normaliser = z.logsumexp(-1)
        return z.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser, normaliser

    found = []
    for i in range(count):
        rows, targets = hidden[i * size : (i + 1) * size], labels[i * size : (i + 1) * size]
        if count > 1 and torch.is_grad_enabled():
            found.append(checkpoint(one_chunk, rows, targets, use_reentrant=False))
        else:
            found.append(one_chunk(rows, targets))
    return torch.cat([logps for logps, _ in found]), torch.cat([lse for _, lse in found])


def chunk_count(
    tokens: int, head: Callable[[Tensor], Tensor], chunk_tokens: int | None = None
) -> int:
    """How often `token_logps` will call the head for so many tokens; at least once."""
    size = chunk_tokens or default_chunk_tokens(head)
    return max(1, -(-tokens // size))


def default_chunk_tokens(head: Callable[[Tensor], Tensor], chunk_bytes: int = CHUNK_BYTES) -> int:
    """Rows whose float32 logits fit in chunk_bytes.

    The vocabulary is read from head.out_features first: under ZeRO-3 a partitioned weight has no
    rows.
    """
    vocab = getattr(head, "out_features", None)
    if not isinstance(vocab, int):
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            vocab = weight.shape[0]
        else:
            vocab = _UNKNOWN_VOCAB
    return max(1, chunk_bytes // (4 * vocab))


def _chunk_logps(
    logits: Tensor,
    labels: Tensor,
    temperature: float,
    want_entropy: bool,
    softcap: float | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """(n, V) logits to (n,) log-probs and (n,) entropy (empty when not wanted)."""
    logits = _logits(logits, temperature, softcap, scale)
    normaliser = logits.logsumexp(-1)
    logps = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - normaliser
    if not want_entropy:
        return logps, logps.new_empty(0)
    # A masked vocabulary entry is −inf, and 0·(−inf) is NaN: read it as the lowest finite number.
    finite = logits.clamp(min=torch.finfo(logits.dtype).min)
    entropy = normaliser - (logits.softmax(-1) * finite).sum(-1)
    return logps, entropy


def _logits(
    logits: Tensor, temperature: float, softcap: float | None, scale: float | None
) -> Tensor:
    """What the softmax is taken of, in float32 (float64 as it is)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    if scale is not None:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature if temperature != 1.0 else logits
