"""Log-likelihood of text under a model: completions given prompts, and whole documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.checkpoints import max_positions


@dataclass(frozen=True)
class Likelihood:
    """Sum over scored tokens. nll: nats, −Σ log p. chars: code points of the texts."""

    nll: float
    tokens: int
    chars: int
    texts: int

    def to_json(self) -> dict[str, float | int]:
        """Token-weighted mean, perplexity, and a figure that does not depend on the tokenizer."""
        per_token = self.nll / self.tokens
        return {
            "nll_per_token": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),
            "nll_per_char": self.nll / self.chars,
            "tokens": self.tokens,
            "chars": self.chars,
            "texts": self.texts,
        }


@torch.no_grad()
def completion_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    max_tokens: int = 4096,
) -> list[list[float]]:
    """Log-probability of each completion token given prompt and earlier tokens, nats.

    prompts, completions: R lists of ids, prompts not empty. The model's own forward gives the
    logits, so that soft caps and scales of its head are in. max_tokens: padded tokens a forward
    pass. Rows are sorted by length and right-padded with an explicit mask; order is restored.
    """
    rows = [list(p) + list(c) for p, c in zip(prompts, completions, strict=True)]
    if any(not p for p in prompts):
        raise ValueError("a completion needs at least one prompt token to be predicted from")
    out: list[list[float]] = [[] for _ in rows]
    for batch in _batches([len(r) for r in rows], max_tokens):
        logits = _forward(model, [rows[i] for i in batch])
        for k, i in enumerate(batch):
            start, end = len(prompts[i]), len(rows[i])
            if start == end:
                continue
            picked = logits[k, start - 1 : end - 1].float() / temperature
            labels = torch.tensor(rows[i][start:end], device=picked.device)
            out[i] = (-torch.nn.functional.cross_entropy(picked, labels, reduction="none")).tolist()
    return out


def perplexity(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int = 4096,
) -> Likelihood:
    """Token-weighted likelihood of documents; every token counts once, whatever its document.

    Each text is encoded without special tokens and preceded by the BOS token where the tokenizer
    has one (else its first token is not scored, for nothing predicts it). Texts longer than
    `window` (default: the model's positions, at most 1024) are read in windows that advance by
    `stride` (default: half a window), each scoring only tokens no earlier window has scored.
    """
    limit = max_positions(model) or 1024
    window = min(window or 1024, limit)
    stride = stride or max(1, window // 2)
    if not 0 < stride < window:
        raise ValueError(f"stride={stride} must lie between 1 and window - 1 = {window - 1}")
    contexts: list[list[int]] = []
    targets: list[list[int]] = []
    chars = count = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        if len(ids) < 2:
            continue
        count, chars = count + 1, chars + len(text)
        for context, target in windows(ids, window, stride):
            contexts.append(context)
            targets.append(target)
    if not targets:
        raise ValueError("no text has two tokens")
    logps = completion_logps(model, contexts, targets, max_tokens=max_tokens)
    nll = -math.fsum(x for row in logps for x in row)
    return Likelihood(nll, sum(len(t) for t in targets), chars, count)


def windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, scored tokens) pairs that score every token but the first exactly once."""
    done = 1
    end = min(window, len(ids))
    while True:
        start = max(0, end - window)
        yield list(ids[start:done]), list(ids[done:end])
        if end == len(ids):
            return
        done, end = end, min(end + stride, len(ids))


def _forward(model: Any, rows: list[list[int]]) -> Tensor:
    """(B, T, V) logits of right-padded rows; padding is masked, its logits are meaningless."""
    width = max(len(r) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
        mask[k, : len(row)] = 1
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Row indices by falling length, as many a batch as fit in max_tokens padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for i in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
