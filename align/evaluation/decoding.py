"""Completing prompts with transformers' `generate`: seeds by row, penalties, text as it comes.

A token is drawn as the arg max of logits plus Gumbel noise, which is a sample of their softmax
(Maddison et al. 2014, arXiv:1411.0030). Each completion has a noise of its own, from the seed, the
number of its prompt and its own: the batch that it happens to be in decides nothing, and the global
random state is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from align.checkpoints import max_positions
from align.config_errors import UserError
from align.rollout.prefill import left_pad

PARTIAL = "\ufffd"
"""What decoders write for bytes that are no whole character (yet)."""
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_LEAD_BYTE = "<0xE4>"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 takes the likeliest. top_k, top_p: 0 and 1 are off.

    repetition_penalty: divides positive and multiplies negative logits of every token that stands
    in prompt or completion already (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_samples: int = 1
    batch_size: int = 16


@dataclass(frozen=True)
class Completion:
    """A sample. prompt, sample: numbers, from 0. ids: without the stop. finished: a stop came."""

    prompt: int
    sample: int
    ids: list[int]
    text: str
    finished: bool


class RowChoice(LogitsProcessor):
    """Puts each row's next token on top: penalty, temperature, top-k, top-p, noise of the row."""

    def __init__(self, how: Sampling, starts: Sequence[int], rows: Sequence[tuple[int, int]]):
        self.how, self.starts = how, starts
        self.drawn = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence([how.seed, *row]).generate_state(1, np.uint64)[0] >> 1)
            )
            for row in rows
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """input_ids (R, T), scores (R, V); returns (R, V)."""
        how, unread = self.how, input_ids
        scores = scores.float()
        if how.repetition_penalty != 1:
            scores = scores.clone()
            for r, start in enumerate(self.starts):  # padding is no repetition
                seen = input_ids[r, start:].unique()
                z = scores[r, seen]
                penalty = how.repetition_penalty
                scores[r, seen] = torch.where(z > 0, z / penalty, z * penalty)
        if how.temperature == 0:
            return scores
        scores = scores / how.temperature
        if how.top_k:
            scores = TopKLogitsWarper(min(how.top_k, scores.shape[-1]))(unread, scores)
        if how.top_p < 1:
            scores = TopPLogitsWarper(how.top_p)(unread, scores)
        width = scores.shape[-1]
        uniform = torch.stack(
            [torch.rand(width, generator=g, dtype=torch.float64) for g in self.drawn]
        )
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
        return scores + noise.to(scores.device, scores.dtype)


class TextStream(BaseStreamer):
    """Hands the text of one completion on as soon as its characters are whole.

    emit: called with each new part. prompt: ids before the completion, so that a space between the
    two is not lost. strip: leave out white space at the start.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], emit: Callable[[str], Any], *,
        skip: Sequence[int] = (), strip: bool = False,
    ) -> None:  # fmt: skip
        self.tokenizer, self.prompt, self.emit = tokenizer, list(prompt), emit
        self.skip, self.strip = set(skip), strip
        self.ids: list[int] = []
        self._shown, self._seen_prompt = 0, False
        # Decoders that fall back to bytes turn a whole run of them into marks while its last
        # character is not complete: with such a byte behind the ids it shows what may still change.
        self._probe = tokenizer.get_vocab().get(_LEAD_BYTE)

    def put(self, value: Any) -> None:
        """Take the next token; the first call brings the prompt."""
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        self.ids += [i for i in value.flatten().tolist() if i not in self.skip]
        text = self._text(self.ids)
        ready = len(text)
        if self._probe is not None:
            probed = self._text([*self.ids, self._probe])
            pairs = enumerate(zip(text, probed, strict=False))
            ready = next((i for i, (a, b) in pairs if a != b), min(len(text), len(probed)))
        # Of other decoders' marks at most three can still become a character.
        first = 0 if self._probe is not None else len(text) - _LONGEST_CHARACTER + 1
        while ready > max(self._shown, first) and text[ready - 1] == PARTIAL:
            ready -= 1
        self._show(text, ready)

    def end(self) -> None:
        """Show what is left, be it whole or not."""
        text = self._text(self.ids)
        self._show(text, len(text))

    def _text(self, ids: Sequence[int]) -> str:
        return complete_text(self.tokenizer, self.prompt, ids, self.strip)

    def _show(self, text: str, ready: int) -> None:
        if ready > self._shown:
            self.emit(text[self._shown : ready])
            self._shown = ready


def complete_text(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], strip: bool = False
) -> str:
    """What the ids add to the text of the prompt's last tokens."""
    tail = list(prompt[-8:])

    def decoded(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before = decoded(tail)
    text = decoded([*tail, *ids])[len(before) :]
    return text.lstrip() if strip else text


@torch.inference_mode()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    stops: Sequence[int],
    *,
    first: int = 0,
    strip: bool = False,
    stream: TextStream | None = None,
) -> list[Completion]:
    """num_samples completions of each prompt, prompt after prompt.

    first: number of the first prompt, which seeds depend on. stream: for one completion alone.
    Raises UserError for a prompt that leaves no room for max_new_tokens.
    """
    _check_room(model, prompts, how.max_new_tokens)
    rows = [(i, s) for i in range(len(prompts)) for s in range(how.num_samples)]
    # Rows of like length together: less padding.
    order = sorted(range(len(rows)), key=lambda r: (-len(prompts[rows[r][0]]), r))
    found: dict[int, Completion] = {}
    settings = GenerationConfig(
        max_new_tokens=how.max_new_tokens, do_sample=False, num_beams=1, repetition_penalty=1.0,
        eos_token_id=list(stops), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    for at in range(0, len(order), how.batch_size):
        part = order[at : at + how.batch_size]
        chosen = [list(prompts[rows[r][0]]) for r in part]
        ids, mask, _ = left_pad(chosen, 0, model.device)
        starts = [ids.shape[1] - len(p) for p in chosen]
        numbers = [(first + rows[r][0], rows[r][1]) for r in part]
        out: Tensor = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, streamer=stream,
            logits_processor=LogitsProcessorList([RowChoice(how, starts, numbers)]),
        )  # fmt: skip
        for r, row, prompt in zip(part, out[:, ids.shape[1] :].tolist(), chosen, strict=True):
            end = next((i for i, t in enumerate(row) if t in stops), len(row))
            text = complete_text(tokenizer, prompt, row[:end], strip)
            found[r] = Completion(*rows[r], row[:end], text, end < len(row))
    return [found[r] for r in range(len(rows))]


def _check_room(model: Any, prompts: Sequence[Sequence[int]], new: int) -> None:
    limit = max_positions(model)
    longest = max((len(p) for p in prompts), default=0)
    if any(not p for p in prompts):
        raise UserError("--prompt", "", "has no token", "Write something to complete")
    if limit and longest + new > limit:
        reason = f"does not fit: the longest prompt has {longest} tokens, the model {limit} places"
        fix = f"Use at most {limit - longest}" if longest < limit else "Shorten the prompt"
        raise UserError("--max_new_tokens", new, reason, fix)
