"""The one way from messages to token ids, for training, evaluation, sampling and serving.

A template is always read through ``tokenizer.chat_template``, so whatever serves the saved model
renders the same text. Where a completion begins and ends is not taken from the template's own marks
(most have none) but measured: a prompt is the text with the generation header, a completion is what
follows it, up to and including the template's end-of-turn token. Text is tokenised without special
tokens because a chat template writes its own BOS. Message text that spells a special token becomes
that token, as everywhere in transformers; nothing here escapes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.chat_turns import Turn, as_text, encode, render_text, turn_of
from align.config import UserError
from align.records import Message, RecordError, messages_json, short

TEMPLATES = ("chatml", "zh_instruction", "inst")
_FOLDER = Path(__file__).parent / "templates"
# One entry is a Message or a plain {"role", "content"}.
Messages = Sequence[Any]


def prepare_tokenizer(tokenizer: Any, chat_template: str | None = None) -> Any:
    """Sets the chat template, the pad token (EOS when there is none) and right padding, in place.

    chat_template: one of ``TEMPLATES``, a jinja file, None for the tokenizer's own, or "auto" for
    the tokenizer's own and else the demo's, zh_instruction. Ours write BOS only for a tokenizer
    that adds it to plain text too, as its base model has seen it. In chatml an assistant turn ends
    with EOS where the vocabulary has no <|im_end|>.
    Raises UserError when there is no template, no such file, or the template cannot be used.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("policy.path", tokenizer.name_or_path, "has a tokenizer without eos_token",
                        "Set eos_token in its tokenizer_config.json")  # fmt: skip
    if chat_template == "auto":
        chat_template = None if tokenizer.chat_template else "zh_instruction"
    if chat_template is not None:
        tokenizer.chat_template = _load_template(tokenizer, chat_template)
    elif not tokenizer.chat_template:
        raise UserError("data.chat_template", None, "and the tokenizer has no chat template",
                        f"Use {', '.join(TEMPLATES)} or a jinja file")  # fmt: skip
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    try:
        turn_of(tokenizer)
    except RecordError as error:
        raise UserError("data.chat_template", chat_template, f"cannot be used: {error}",
                        f"Use {', '.join(TEMPLATES)} or correct the file") from None  # fmt: skip
    return tokenizer


def render_prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of a prompt with the generation header: exactly what the sampler is given.

    Raises RecordError when the template refuses the messages.
    """
    return encode(tokenizer, _prompt_text(tokenizer, _plain(tokenizer, messages)))


def render_completion(
    tokenizer: Any, prompt_messages: Messages, completion: str | Messages
) -> tuple[list[int], list[int], list[int]]:
    """(prompt_ids, completion_ids, completion_mask) of an answer to a prompt.

    completion: text, or messages that begin with an assistant turn. prompt_ids equals
    ``render_prompt``. completion_ids ends with the end-of-turn token. completion_mask (same length)
    is 1 on assistant turns with their end-of-turn tokens, so EOS is learned whatever the pad is.
    """
    prompt = _plain(tokenizer, prompt_messages)
    turn = turn_of(tokenizer)
    if isinstance(completion, str):
        completion = [Message("assistant", completion.removesuffix(turn.end))]
    answer = _plain(tokenizer, completion)
    if not answer or answer[0]["role"] != "assistant":
        reason = "a completion must begin with an assistant message"
        raise RecordError(f"{reason}, got {short(completion)}", code="no_assistant")
    start = _prompt_text(tokenizer, prompt)
    full = render_text(tokenizer, prompt + answer)
    if not full.startswith(start):
        # The template shows history otherwise than a fresh prompt (DeepSeek-R1's "<think>\n").
        body = answer[0]["content"]
        rest = full[_find(full, 0, body, turn.end)[1] + len(turn.end) :] if answer[1:] else ""
        full = start + turn.lead + body + turn.end + rest
    spans = _spans(tokenizer, prompt + answer, full, first=len(prompt), start=len(start))
    ids, mask = _tokenise(tokenizer, full[: spans[-1][1]], [(0, len(start)), *spans])
    n = len(encode(tokenizer, start))
    return ids[:n], ids[n:], mask[n:]


def render_conversation(
    tokenizer: Any, messages: Messages, loss_on: str = "assistant"
) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation to imitate.

    loss_on: "completion" (the last assistant turn), "assistant" (every one) or "all" (every token).
    Unless "all", what follows the last assistant turn is cut off: there is no loss on it. The mask
    is never all zero: RecordError (no_assistant) says why.
    """
    if loss_on not in ("completion", "assistant", "all"):
        raise ValueError(f"loss_on={loss_on!r} is not completion, assistant or all")
    turns = _plain(tokenizer, messages)
    assistant = [i for i, m in enumerate(turns) if m["role"] == "assistant"]
    if not assistant and loss_on != "all":
        raise RecordError(f"no assistant turn to learn from in {short(turns)}", code="no_assistant")
    if loss_on == "all" and (not assistant or assistant[-1] != len(turns) - 1):
        ids = encode(tokenizer, render_text(tokenizer, turns))
        if not ids:
            raise RecordError("the conversation renders to no token", code="no_loss")
        return ids, [1] * len(ids)
    last = assistant[-1]
    given = list(messages)
    prompt_ids, completion_ids, _ = render_completion(tokenizer, given[:last], given[last:][:1])
    ids = prompt_ids + completion_ids
    if loss_on == "all":
        return ids, [1] * len(ids)
    if loss_on == "completion" or len(assistant) == 1:
        return ids, [0] * len(prompt_ids) + [1] * len(completion_ids)
    return _all_turns(tokenizer, turns[: last + 1])


def completion_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The answer in sampled or rendered completion ids, without what the template put around it.

    Reads up to the first stop token. Rendering the result again gives the same completion, so this
    is what a reward model in another tokenizer should be shown.
    """
    stops = set(stop_ids(tokenizer))
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(
        list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.removeprefix(turn_of(tokenizer).lead)


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a completion: the template's end-of-turn token, then the tokenizer's EOS."""
    found = (turn_of(tokenizer).stop_id, tokenizer.eos_token_id)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def header_len(tokenizer: Any) -> int:
    """How many last tokens of a prompt are not the user's text: they must survive truncation."""
    return turn_of(tokenizer).tail_len


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the template and of the special tokens that it writes."""
    parts = (tokenizer.get_chat_template(), str(tokenizer.bos_token), str(tokenizer.eos_token))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _load_template(tokenizer: Any, name: str) -> str:
    if name not in TEMPLATES:
        path = Path(name)
        if not path.is_file():
            raise UserError("data.chat_template", name, "is neither a template name nor a file",
                            f"Use {', '.join(TEMPLATES)} or the path of a jinja file")  # fmt: skip
        return path.read_text(encoding="utf-8-sig")
    template = (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    variables = ""
    plain = tokenizer("x")["input_ids"]
    if tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id]:
        variables += "{%- set bos = bos_token -%}\n"
    if name == "chatml" and len(encode(tokenizer, "<|im_end|>")) != 1:
        variables += "{%- set stop = eos_token -%}\n"
    return variables + template


def _plain(tokenizer: Any, messages: Messages) -> list[dict[str, str]]:
    """Messages for the template, in whose texts special tokens are only letters (`as_text`)."""
    parsed = (m if isinstance(m, Message) else Message.from_json(m) for m in messages)
    turns = messages_json(parsed)
    return [turn | {"content": as_text(tokenizer, turn["content"])} for turn in turns]


def _prompt_text(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return render_text(tokenizer, turns, header=True) + turn_of(tokenizer).header


def _find(full: str, start: int, content: str, after: str = "") -> tuple[int, int]:
    """Where a message's text stands at or after start, if possible right before ``after``.

    Templates may trim a text or drop its thoughts.
    """
    texts = (content, content.strip(), content.split("</think>")[-1].strip())
    for suffix in dict.fromkeys((after, "")):
        for text in texts:
            at = full.find(text + suffix, start)
            if at >= 0:
                return at, at + len(text)
    reason = f"the chat template changes the text of {short(content)}"
    raise RecordError(reason, code="template_changes_text")


def _walk(full: str, cursor: int, turns: list[dict[str, str]], turn: Turn) -> int:
    """Where the last of the turns begins, going from text to text; system texts may be anywhere."""
    for message in turns[:-1]:
        if message["role"] != "system":
            cursor = _find(full, cursor, message["content"], turn.tail)[1]
    return _find(full, cursor, turns[-1]["content"], turn.end)[0]


def _spans(
    tokenizer: Any, turns: list[dict[str, str]], full: str, *, first: int, start: int
) -> list[tuple[int, int]]:
    """Character spans in ``full`` of assistant turns from index ``first``, which opens at start."""
    turn = turn_of(tokenizer)
    spans: list[tuple[int, int]] = []
    cursor, previous = start, first
    for i, message in enumerate(turns):
        if i < first or message["role"] != "assistant":
            continue
        if i > first:
            opened = _prompt_text(tokenizer, turns[:i])
            if full.startswith(opened):
                cursor = len(opened)
            else:  # The template shows history otherwise: walk from text to text.
                cursor = _walk(full, cursor, turns[previous + 1 : i + 1], turn)
        end = _find(full, cursor, message["content"], turn.end)[1]
        close = full.find(turn.end, end) if turn.end else -1
        spans.append((cursor, close + len(turn.end) if close >= 0 else end))
        cursor, previous = spans[-1][1], i
    return spans


def _all_turns(tokenizer: Any, turns: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """(ids, mask) with every assistant turn in the mask."""
    full = render_text(tokenizer, turns)
    first = next(i for i, m in enumerate(turns) if m["role"] == "assistant")
    try:
        opened = _prompt_text(tokenizer, turns[:first])
    except RecordError:  # a conversation may begin with the assistant
        opened = ""
    start = len(opened)
    if not opened or not full.startswith(opened):
        start = _walk(full, 0, turns[: first + 1], turn_of(tokenizer))
    spans = _spans(tokenizer, turns, full, first=first, start=start)
    return _tokenise(tokenizer, full[: spans[-1][1]], spans)


def _tokenise(
    tokenizer: Any, text: str, spans: Iterable[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Ids and mask of a text whose spans are learned; a span never shares a token with others.

    Each piece is tokenised together with the text before it; where that would merge tokens over the
    border, on its own: sampling starts from the ids of the text before.
    """
    ids: list[int] = []
    mask: list[int] = []
    at = 0
    for begin, end in spans:
        for stop, learned in ((begin, 0), (end, 1)):
            if stop <= at:
                continue
            joint = encode(tokenizer, text[:stop])
            kept = joint[: len(ids)] == ids
            new = joint[len(ids) :] if kept else encode(tokenizer, text[at:stop])
            ids += new
            mask += [learned] * len(new)
            at = stop
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] not in stop_ids(tokenizer)):
        ids.append(tokenizer.eos_token_id)
        mask.append(1)
    return ids, mask
