"""How many tokens a request's prompt has, rendered by the model's own tokenizer and template."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from align.files import read_object
from align.serving.openai_body import Context

DEFAULT_SIZE = 1 << 30  # of a model whose positions nothing limits


def context_of(folder: Path, asked: int | None) -> Context:
    """The context of a model folder; asked: at most this many tokens.

    The tokenizer is loaded as `transformers serve` loads it, for the counts to be the same.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    lock = threading.Lock()  # a fast tokenizer is not to be used by two threads

    def count(body: dict[str, Any], chat: bool) -> int:
        with lock:
            return len(render(tokenizer, body) if chat else tokenizer(body["prompt"])["input_ids"])

    return Context(min(asked or DEFAULT_SIZE, positions(folder)), count)


def positions(folder: Path) -> int:
    """Tokens that config.json allows."""
    config = read_object(folder / "config.json")
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(part.get(key), int) and part[key] > 0:
                return part[key]
    return DEFAULT_SIZE


def render(tokenizer: Any, body: dict[str, Any]) -> list[int]:
    """Ids of a chat's prompt; ValueError with the template's own words."""
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(
            [_plain(message) for message in body["messages"]],
            tools=body.get("tools"),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
    except (TemplateError, TypeError, KeyError) as error:
        raise ValueError(f"the chat template says: {error}") from None


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose parts are one text and whose calls are objects, as templates read them."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = " ".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    if not calls:
        return {**message, "content": content}
    try:
        parsed = [
            {**call, "function": {**call["function"], "arguments": _object(call["function"])}}
            for call in calls
        ]
    except (TypeError, KeyError, ValueError):
        raise ValueError("tool_calls need a function with a name and arguments") from None
    return {**message, "content": "", "tool_calls": parsed}


def _object(function: dict[str, Any]) -> Any:
    arguments = function["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments
