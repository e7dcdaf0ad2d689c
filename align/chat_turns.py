"""What a chat template does around an assistant turn, measured on a short probe.

Templates are programs; reading them is guessing. Rendering ``user, assistant`` once and looking at
the text around the answer tells where a completion starts, what ends it and which token that is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from align.records import RecordError, short

_NEVER = re.compile(r"(?!)")
# Half a character, which no valid text has.
BREAK = "\udfff"
_QUESTION, _ANSWER = "probe-question", "probe-answer"


@dataclass(frozen=True)
class Turn:
    """How a template surrounds an assistant turn, measured on a two-message probe.

    header: text to append after the rendered prompt when the template has no generation prompt.
    lead: white space between prompt and answer that belongs to the completion (Mistral's space).
    end: text that closes the turn, up to its special token; empty when there is none.
    stop_id: id of that token, or None.
    tail: text between question and answer that a fresh prompt and history have in common.
    tail_len: tokens of a fresh prompt after the question.
    """

    header: str
    lead: str
    end: str
    stop_id: int | None
    tail: str
    tail_len: int


def render_text(tokenizer: Any, turns: list[dict[str, str]], header: bool = False) -> str:
    """The rendered text; a system message that the template refuses joins the first user turn."""
    from jinja2 import TemplateError

    if not turns:
        raise RecordError("no messages", code="empty_prompt")
    try:
        return _apply(tokenizer, turns, header)
    except TemplateError as error:
        if len(turns) > 1 and turns[0]["role"] == "system" and turns[1]["role"] == "user":
            content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
            try:
                merged = [{"role": "user", "content": content}, *turns[2:]]
                return _apply(tokenizer, merged, header)
            except TemplateError:
                pass
        reason = f"the chat template refuses {short(turns)}: {error}"
        raise RecordError(reason, code="template_refuses") from None


def _apply(tokenizer: Any, turns: list[dict[str, str]], header: bool) -> str:
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header)


def as_text(tokenizer: Any, text: str) -> str:
    """A message's text with `BREAK` inside everything that the tokenizer would take for special.

    Templates are filled with text and read as one string, so a user who writes <|im_end|> would end
    the turn and could open another. `encode` cuts at the breaks: what a user writes is letters.
    Marks that a template spells with ordinary tokens cannot be told from a text.
    """
    if BREAK in text:
        raise RecordError(f"not valid Unicode: {short(text)}", code="bad_encoding")
    pattern = _special(tokenizer, len(tokenizer))
    return pattern.sub(rf"\g<0>{BREAK}", text)


@lru_cache(maxsize=64)
def _special(tokenizer: Any, size: int) -> re.Pattern[str]:
    """Matches the first letter of special tokens of two or more. size: the cache key beside it.

    Without those that are only added (<think>), which models write themselves.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    found = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile(f"(?={'|'.join(map(re.escape, found))}).", re.DOTALL) if found else _NEVER


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids without added special tokens: a chat template writes its own BOS.

    Tokens do not reach over a `BREAK`, which itself is none.
    """
    if BREAK in text:
        return [token for part in text.split(BREAK) for token in encode(tokenizer, part)]
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except (TypeError, UnicodeError):
        raise RecordError(f"not valid Unicode: {short(text)}", code="bad_encoding") from None


def turn_of(tokenizer: Any) -> Turn:
    """The measured turn of the tokenizer's template (cached)."""
    template = tokenizer.get_chat_template()
    return _measure(tokenizer, template, str(tokenizer.eos_token), len(tokenizer))


@lru_cache(maxsize=64)
def _measure(tokenizer: Any, template: str, eos: str, vocab: int) -> Turn:
    """Measures the template; template, eos and vocab are the cache key beside the tokenizer."""
    question = [{"role": "user", "content": _QUESTION}]
    answer = {"role": "assistant", "content": _ANSWER}
    opened = render_text(tokenizer, question, header=True)
    full = render_text(tokenizer, [*question, answer])
    if _QUESTION not in opened or _ANSWER not in full:
        raise RecordError("the chat template leaves out messages", code="template_changes_text")
    at = full.rindex(_ANSWER)
    between = full[len(opened) : at] if full.startswith(opened) else ""
    header = ""
    if between.strip() and opened == render_text(tokenizer, question):
        # No generation prompt: the header stands only before a real answer. A space at its end
        # would be a token of its own, so it stays with the answer.
        header = between.rstrip(" ")
    lead = between[len(header) :]
    end, stop = _end_of_turn(tokenizer, full[at + len(_ANSWER) :])
    tail = opened[opened.rindex(_QUESTION) + len(_QUESTION) :] + header
    history = full[full.rindex(_QUESTION) + len(_QUESTION) : at]
    return Turn(
        header,
        "" if lead.strip() else lead,
        end,
        stop,
        os.path.commonprefix([tail, history]),  # noqa: RUF071 - texts, not paths
        _tail_len(tokenizer, tail),
    )


def _end_of_turn(tokenizer: Any, tail: str) -> tuple[str, int | None]:
    """The text after an answer up to its first special token, and that token's id."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    token = next((i for i in encode(tokenizer, tail) if i in special), None)
    if token is None:
        return "", None
    text = tokenizer.convert_ids_to_tokens(token)
    return tail[: tail.index(text) + len(text)], token


def _tail_len(tokenizer: Any, tail: str) -> int:
    """Tokens of the prompt's tail; texts that merge with it differently are tried."""
    counts = [len(encode(tokenizer, tail))]
    for word in ("a", "字", "?", "。", "\n", " "):
        counts.append(len(encode(tokenizer, word + tail)) - len(encode(tokenizer, word)))
    return max(counts)
