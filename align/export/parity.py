"""The parity file: prompts as training renders them, and what the exported model answers.

One JSON object a line, which `recipes/check_server.py` asks any server for:

    messages     the conversation
    prompt_ids   rendered by `align.chat.render_prompt`, as the sampler of a training run is given
    prompt_text  the same as text
    plain_ids    only where they differ: what the template alone gives. Training reads message text
                 that spells a special token as letters; apply_chat_template, which servers call,
                 reads it as the token
    greedy_ids   the model's greedy answer in float32, a stop token included
    greedy_text  the same as text, without stop and other special tokens
    offsets      length of the text of the first 1, 2, … tokens, in characters
    logprobs     of greedy_ids, nats
    margins      log-prob of each token less that of the second best: what is near 0 is a tie
    stop_ids     ids that end an answer
    stop_texts   the same as text
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.config_errors import Failed

FILE = "parity.jsonl"
TOKENS = 16
MORE_TOKENS = 64  # for short prompts, whose answers are likely to end
SHORT = 48  # prompt tokens
HALF = "\ufffd"  # of a character that more than one token spells


def choose(own: Sequence[Sequence[dict[str, str]]], count: int) -> list[list[dict[str, str]]]:
    """Conversations of the file: built-in ones, and up to a quarter from the run's own prompts."""
    from align.export.conversations import CONVERSATIONS

    mine = min(len(own), count // 4)
    built_in = list(CONVERSATIONS[: count - mine])
    mine = min(len(own), count - len(built_in))
    step = max(1, len(own) // mine) if mine else 1
    return [*map(list, built_in), *(list(own[i * step]) for i in range(mine))]


def render(
    tokenizer: Any, served: Any, conversations: Iterable[list[dict[str, str]]], longest: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows up to the answers, and notes on what was left out.

    tokenizer: as trained. served: as the exported folder is loaded by AutoTokenizer. longest: the
    model's positions; a prompt with less than 16 left is left out. Failed where the exported folder
    does not render what training renders.
    """
    from jinja2 import TemplateError

    from align.chat import render_prompt
    from align.chat_turns import encode
    from align.records import RecordError

    rows: list[dict[str, Any]] = []
    refused = too_long = 0
    for messages in conversations:
        try:
            ids = render_prompt(tokenizer, messages)
            text = served.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (RecordError, TemplateError):
            refused += 1
            continue
        if longest is not None and len(ids) + TOKENS > longest:
            too_long += 1
            continue
        row = {"messages": messages, "prompt_ids": ids, "prompt_text": text}
        plain = served.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        if list(plain) != ids:
            if not _spells_special(tokenizer, messages):
                _differs(messages, ids, list(plain), text, served)
            letters = encode(served, _broken_text(tokenizer, messages, served))
            if letters != ids:
                _differs(messages, ids, letters, text, served)
            row["plain_ids"] = list(plain)
        rows.append(row)
    notes = []
    if refused:
        notes.append(f"{refused} parity conversations left out: the template refuses their roles")
    if too_long:
        notes.append(f"{too_long} parity conversations left out: longer than the model's positions")
    return rows, notes


def answer(model: Any, tokenizer: Any, rows: list[dict[str, Any]], stops: list[int]) -> None:
    """Add the greedy answers of a float32 model, one prompt at a time, without padding."""
    import torch

    device = next(model.parameters()).device
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row in rows:
        prompt = row["prompt_ids"]
        want = MORE_TOKENS if len(prompt) <= SHORT and _asks_little(row) else TOKENS
        room = want if longest is None else min(want, longest - len(prompt))
        ids, logps, margins = _greedy(
            model, torch.tensor([prompt], device=device), max(room, 1), stops
        )
        if ids[-1] not in stops:
            ids, logps, margins = ids[:TOKENS], logps[:TOKENS], margins[:TOKENS]
        body = ids[:-1] if ids[-1] in stops else ids
        row["greedy_ids"] = ids
        row["greedy_text"] = decode(tokenizer, body)
        row["offsets"] = [
            len(decode(tokenizer, body[: i + 1]).rstrip(HALF)) for i in range(len(body))
        ]
        row["logprobs"] = [round(x, 6) for x in logps]
        row["margins"] = [round(x, 6) for x in margins]
        row["stop_ids"] = stops
        row["stop_texts"] = tokenizer.convert_ids_to_tokens(stops)


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of an answer as servers give it."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def own_prompts(run: Path | None, limit: int = 64) -> list[list[dict[str, str]]]:
    """First prompts of a run's own data; [] where there is none to read any more."""
    from align.config_errors import UserError
    from align.data.prompts import load_prompts
    from align.records import messages_json
    from align.run_manifest import read_manifest

    read = read_manifest(run).get("inputs", {}) if run is not None else {}
    for name in ("data.prompts", "data.preferences", "data.sft"):
        path = (read.get(name) or {}).get("path")
        if path and Path(path).is_file():
            try:
                return [messages_json(p.messages) for p in load_prompts(path)[:limit]]
            except (UserError, ValueError):
                continue
    return []


def _greedy(model: Any, prompt: Any, most: int, stops: list[int]) -> tuple[list, list, list]:
    """Ids, log-probs and margins of a greedy answer, up to and with the first stop token."""
    import torch
    from transformers import GenerationConfig

    plain = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=stops, pad_token_id=stops[0],
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with torch.no_grad():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=plain
        )
    best = torch.cat(out.logits).float().log_softmax(-1).topk(2)
    margins = best.values[:, 0] - best.values[:, 1]
    return best.indices[:, 0].tolist(), best.values[:, 0].tolist(), margins.tolist()


def _asks_little(row: dict[str, Any]) -> bool:
    return len(row["messages"]) == 1 and len(row["messages"][0]["content"]) <= 40


def _spells_special(tokenizer: Any, messages: list[dict[str, str]]) -> bool:
    from align.chat_turns import as_text

    return any(as_text(tokenizer, m["content"]) != m["content"] for m in messages)


def _broken_text(tokenizer: Any, messages: list[dict[str, str]], served: Any) -> str:
    """The rendered text with special tokens in messages cut apart, as training cuts them."""
    from align.chat_turns import as_text

    cut = [m | {"content": as_text(tokenizer, m["content"])} for m in messages]
    return served.apply_chat_template(cut, tokenize=False, add_generation_prompt=True)


def _differs(
    messages: list[dict[str, str]], ids: list[int], got: list[int], text: str, served: Any
) -> None:
    first = next((i for i, (a, b) in enumerate(zip(ids, got, strict=False)) if a != b), None)
    at = min(len(ids), len(got)) if first is None else first
    raise Failed(
        f"the exported folder does not render what training renders: of {messages[-1]['content']!r}"
        f" token {at} is {got[at : at + 4]} in place of {ids[at : at + 4]} ({len(got)} tokens, "
        f"{len(ids)} trained), text {text[-60:]!r}, read by {type(served).__name__}. Where that is "
        "the class of another family, transformers goes by model_type and ignores the tokenizer of "
        "one's own: no server can use it. Nothing was written; --parity 0 writes it unchecked"
    )
