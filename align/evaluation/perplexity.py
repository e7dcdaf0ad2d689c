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
    packed: bool = False,
) -> Likelihood:
    """Token-weighted likelihood of documents; every token counts once, whatever its document.

    Each text is encoded without special tokens and preceded by the BOS token where the tokenizer
    has one (else its first token is not scored, for nothing predicts it). Texts longer than
    `window` (default: the model's positions, at most 1024) are read in windows that advance by
    `stride` (default: half a window), each scoring only tokens no earlier window has scored.
    packed: all texts are one stream, EOS after each, and the ends of texts are scored too: the
    convention of pre-training rows. Ranks share the texts; ValueError if no text has two tokens.
    """
    rows = text_likelihoods(
        model, tokenizer, list(texts), window=window, stride=stride, max_tokens=max_tokens,
        packed=packed,
    )  # fmt: skip
    total = together(rows)
    if not total.tokens:
        raise ValueError("no text has two tokens")
    return total


def together(rows: Iterable[Likelihood]) -> Likelihood:
    """The sum over texts; those of which no token was scored are not counted."""
    kept = [row for row in rows if row.tokens]
    return Likelihood(
        math.fsum(row.nll for row in kept), sum(row.tokens for row in kept),
        sum(row.chars for row in kept), sum(row.texts for row in kept),
    )  # fmt: skip


def text_likelihoods(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int = 4096,
    packed: bool = False,
) -> list[Likelihood]:
    """As `perplexity`, one for each text; packed: one for the whole stream."""
    from align.evaluation.ranks import in_chunks

    limit = max_positions(model) or 1024
    window = min(window or 1024, limit)
    stride = stride or max(1, window // 2)
    if not 0 < stride < window:
        raise ValueError(f"stride={stride} must lie between 1 and window - 1 = {window - 1}")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [start + tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    sizes = [(len(text), 1) for text in texts]
    if packed:
        rows = [[i for row in rows for i in (*row, tokenizer.eos_token_id)]]
        sizes = [(sum(len(text) for text in texts), len(texts))]
    parts = [
        (i, part) for i, ids in enumerate(rows) if len(ids) > 1
        for part in windows(ids, window, stride)
    ]  # fmt: skip

    def work(chunk: list[int]) -> list[float]:
        pairs = [parts[k][1] for k in chunk]
        logps = completion_logps(
            model, [c for c, _ in pairs], [t for _, t in pairs], max_tokens=max_tokens
        )
        return [-math.fsum(row) for row in logps]

    each = max(1, max_tokens // window)
    sums = in_chunks([len(c) + len(t) for _, (c, t) in parts], each, work)
    nll, tokens = [0.0] * len(rows), [0] * len(rows)
    for (i, (_, target)), value in zip(parts, sums, strict=True):
        nll[i] += value
        tokens[i] += len(target)
    return [
        Likelihood(*row, *size)
        for row, size in zip(zip(nll, tokens, strict=True), sizes, strict=True)
    ]


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


def logps_of(
    completions: Sequence[str], prompts: Sequence[str], *models: Any
) -> list[list[list[float]]]:
    """Log-probabilities of the tokens of completions under each of several models, nats.

    models: folders, or (model, tokenizer); the first's tokenizer and template render all. The end
    of the turn is scored too. ValueError where two models read other tokens.
    """
    from align.chat import render_completion
    from align.checkpoints import load_causal_lm
    from align.evaluation.compare_measure import same_tokens
    from align.records import parse_messages

    loaded = [m if isinstance(m, tuple) else load_causal_lm(m) for m in models]
    tokenizer = loaded[0][1]
    if not all(same_tokens(tokenizer, other) for _, other in loaded[1:]):
        raise ValueError("the models have other tokenizers or templates: log-probs do not compare")
    rows = [
        render_completion(tokenizer, parse_messages(p), c)[:2]
        for p, c in zip(prompts, completions, strict=True)
    ]
    ids, targets = [r[0] for r in rows], [r[1] for r in rows]
    return [completion_logps(model, ids, targets) for model, _ in loaded]
