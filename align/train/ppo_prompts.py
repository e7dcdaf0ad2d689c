"""The prompts of PPO: training and held-out, as tokens that leave room for a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align import chat
from align.config_errors import UserError
from align.data.fit import TOO_LONG, fit
from align.data.prompts import load_prompts_counted
from align.jsonl import Counts, RecordError
from align.records import Prompt
from align.train.examples import split
from align.train.rollouts import PromptItem

if TYPE_CHECKING:
    from align.config import Config


def load_prompt_items(
    config: Config, tokenizer: Any
) -> tuple[list[PromptItem], list[PromptItem], list[Counts]]:
    """(training prompts, held-out prompts, counts).

    Held out: eval.prompts, else data.validation, else data.validation_fraction of the prompts. A
    held-out prompt that is also a training prompt is taken out of training and counted.
    """
    path = config.prompts_path
    assert path is not None
    records, counts = load_prompts_counted(path)
    found = [counts]
    held_out = None
    for field, other in (
        ("eval.prompts", config.eval.prompts),
        ("data.validation", config.data.validation),
    ):
        if other and held_out is None:
            held_out, more = load_prompts_counted(other, field)
            found.append(more)
    train, held = split(records, [p.prompt_id for p in records], config, held_out)
    seen = {p.prompt_id for p in held}
    kept = [p for p in train if p.prompt_id not in seen]
    for _ in range(len(train) - len(kept)):
        counts.used -= 1
        counts.drop("held_out")
    if not kept:
        raise UserError(
            "data.prompts", path, "has no prompt that is not held out", "Give other eval.prompts"
        )
    items = _items(kept, tokenizer, config, counts)
    if not items:
        raise UserError("data.prompts", path, "has no prompt that fits", "Raise data.max_length")
    evaluated = _items(held[: config.eval.num_samples], tokenizer, config, found[-1])
    return items, evaluated, found


def _items(
    prompts: Sequence[Prompt], tokenizer: Any, config: Config, counts: Counts
) -> list[PromptItem]:
    """Render and cut prompts; what cannot be used is counted."""
    data, room = config.data, config.data.max_length - config.rollout.max_new_tokens
    if room < 1:
        raise UserError(
            "rollout.max_new_tokens", config.rollout.max_new_tokens,
            f"leaves no room for a prompt in data.max_length={data.max_length}", "Lower it",
        )  # fmt: skip
    limit = min(room, data.max_prompt_length or room)
    items = []
    for prompt in prompts:
        try:
            ids = chat.render_prompt(tokenizer, prompt.messages)
            fitted = fit(
                ids, [0], [1], max_length=limit + 1, max_prompt_length=limit,
                truncation=data.truncation, header_len=chat.header_len(tokenizer),
            )  # fmt: skip
        except RecordError as error:
            counts.used -= 1
            counts.drop(error.code)
            continue
        if isinstance(fitted, str):
            counts.used -= 1
            counts.drop(TOO_LONG)
            continue
        if fitted.prompt_truncated:
            counts.truncate()
        items.append(PromptItem(fitted.prompt_ids, list(prompt.messages)))
    return items
