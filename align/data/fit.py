"""Cutting a prompt and its completions to length.

The prompt's last ``header_len`` tokens (end of the user turn, assistant header) always stay:
without them the model would be trained on another question. A completion is never cut to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOO_LONG = "too_long"


@dataclass(frozen=True)
class Fitted:
    """One prompt and completion within the limits; masks as given, cut alike."""

    prompt_ids: list[int]
    completion_ids: list[int]
    completion_mask: list[int]
    prompt_truncated: bool
    completion_truncated: bool


@dataclass(frozen=True)
class FittedGroup:
    """A prompt cut once for all its candidates. completion_truncated: how many lost their end."""

    prompt_ids: list[int]
    completions: list[list[int]]
    masks: list[list[int]]
    prompt_truncated: bool
    completion_truncated: int


def fit(
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    completion_mask: Sequence[int],
    *,
    max_length: int | None,
    max_prompt_length: int | None = None,
    truncation: Literal["keep_start", "keep_end"] = "keep_start",
    header_len: int = 0,
) -> Fitted | str:
    """``fit_group`` for a single completion."""
    group = fit_group(
        prompt_ids,
        [completion_ids],
        [completion_mask],
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        truncation=truncation,
        header_len=header_len,
    )
    if isinstance(group, str):
        return group
    return Fitted(
        group.prompt_ids,
        group.completions[0],
        group.masks[0],
        group.prompt_truncated,
        bool(group.completion_truncated),
    )


def fit_group(
    prompt_ids: Sequence[int],
    completions: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]] | None = None,
    *,
    max_length: int | None,
    max_prompt_length: int | None = None,
    truncation: Literal["keep_start", "keep_end"] = "keep_start",
    header_len: int = 0,
) -> FittedGroup | str:
    """Cuts a group to ``max_length`` tokens a row, or returns the reason why it cannot.

    The prompt is first cut to max_prompt_length. What is then still too long loses, with
    "keep_start", the end of its completion (and with it EOS) and, only when the prompt alone fills
    the row, the prompt's end before the header; with "keep_end", the start of the prompt, and the
    end of a completion that does not fit beside the header. header_len: ``chat.header_len``.
    Every candidate sees the same prompt. Reason: too_long, when header and one token do not fit.
    """
    if truncation not in ("keep_start", "keep_end"):
        raise ValueError(f"truncation={truncation!r} is neither keep_start nor keep_end")
    if masks is None:
        masks = [[1] * len(c) for c in completions]
    longest = max(len(c) for c in completions)
    room = len(prompt_ids) if max_prompt_length is None else min(len(prompt_ids), max_prompt_length)
    if max_length is not None:
        wanted = longest if truncation == "keep_end" else 1
        room = min(room, max(max_length - wanted, min(header_len or 1, len(prompt_ids))))
    prompt = _cut_prompt(list(prompt_ids), room, truncation, header_len)
    if prompt is None or (max_length is not None and len(prompt) >= max_length):
        return TOO_LONG
    left = None if max_length is None else max_length - len(prompt)
    kept = [list(mask[:left]) for mask in masks]
    if not all(any(mask) for mask in kept):
        return TOO_LONG
    return FittedGroup(
        prompt,
        [list(c[:left]) for c in completions],
        kept,
        prompt_truncated=len(prompt) < len(prompt_ids),
        completion_truncated=sum(left is not None and len(c) > left for c in completions),
    )


def _cut_prompt(ids: list[int], room: int, truncation: str, header_len: int) -> list[int] | None:
    """At most ``room`` tokens with the header at the end; None when the header does not fit."""
    if len(ids) <= room:
        return ids
    if room < max(header_len, 1):
        return None
    if truncation == "keep_end":
        return ids[len(ids) - room :]
    return ids[: room - header_len] + ids[len(ids) - header_len :]
