"""Multiple choice by log-likelihood: which choice does the model find likeliest as an answer?

For a prompt x and choices c₁ … c_K, each a sequence of tokens after x,

    acc       1 where argmax_k Σ_t log p(c_k,t | x, c_k,<t) is the right choice, else 0
    acc_norm  the same with each sum divided by the number of characters of the choice's text

so that a long choice is not at a disadvantage. Of equal ones the first counts. These are lm-eval's
figures of the same names (Gao et al.), where the prompt is rendered alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.evaluation.ranks import in_chunks
from align.records import Message


def choice_ids(
    tokenizer: Any, messages: Sequence[Message], choices: Sequence[str], *, chat: bool,
) -> tuple[list[list[int]], list[list[int]]]:  # fmt: skip
    """(context ids, choice ids) for each choice, the choice without the end of its turn.

    chat: rendered by the template; else the text of the prompt, then a space where neither side is
    Chinese or has one, then the choice.
    """
    if chat:
        from align.chat import render_completion, stop_ids

        stops = set(stop_ids(tokenizer))
        contexts, targets = [], []
        for choice in choices:
            prompt, answer, _ = render_completion(tokenizer, list(messages), choice)
            while len(answer) > 1 and answer[-1] in stops:
                answer = answer[:-1]
            contexts.append(prompt)
            targets.append(answer)
        return contexts, targets
    text = messages[-1].content
    return _plain(tokenizer, text, choices)


def _plain(
    tokenizer: Any, text: str, choices: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Encoded together, so that a token may not begin in the prompt and end in the choice."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    contexts, targets = [], []
    for choice in choices:
        gap = (
            " " if text[-1:].isascii() and not text[-1:].isspace() and choice[:1].isascii() else ""
        )
        # A space goes to the choice, as tokenizers put it before a word.
        before = tokenizer(text.rstrip(" "), add_special_tokens=False)["input_ids"]
        gap = " " * (len(text) - len(text.rstrip(" "))) or gap
        both = tokenizer(text.rstrip(" ") + gap + choice, add_special_tokens=False)["input_ids"]
        if both[: len(before)] != before or len(both) == len(before):
            both = before + tokenizer(gap + choice, add_special_tokens=False)["input_ids"]
        context = start + before or [tokenizer.eos_token_id]
        contexts.append(context)
        targets.append(both[len(before) :])
    return contexts, targets


def choice_logps(
    model: Any, rows: Sequence[tuple[list[list[int]], list[list[int]]]], *, batch_size: int = 8
) -> list[list[float]]:
    """Σ log p of each choice, nats; rows: what `choice_ids` gave. Ranks share the rows."""
    from align.evaluation.perplexity import completion_logps

    def work(chunk: list[int]) -> list[list[float]]:
        contexts = [ids for i in chunk for ids in rows[i][0]]
        targets = [ids for i in chunk for ids in rows[i][1]]
        sums = iter([float(sum(row)) for row in completion_logps(model, contexts, targets)])
        return [[next(sums) for _ in rows[i][1]] for i in chunk]

    lengths = [max(map(len, contexts)) for contexts, _ in rows]
    return in_chunks(lengths, batch_size, work)


def accuracies(
    logps: Sequence[Sequence[float]], choices: Sequence[Sequence[str]], answers: Sequence[int]
) -> dict[str, np.ndarray]:
    """{"acc", "acc_norm"}: (rows,) of 0 and 1."""
    rows = list(zip(logps, choices, answers, strict=True))
    return {
        "acc": np.array([float(np.argmax(lp) == a) for lp, _, a in rows]),
        "acc_norm": np.array(
            [
                float(np.argmax([x / len(text) for x, text in zip(lp, c, strict=True)]) == a)
                for lp, c, a in rows
            ]
        ),
    }
