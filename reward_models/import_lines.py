"""The lines that an import writes, each text escaped once for all the lines it stands in.

What comes out is what ``json.dumps`` with ``ensure_ascii=False`` gives for the same record;
escaping once and joining the pieces takes half the time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any

from align.records import Judgement, Message, PairTarget, PreferenceGroup

# Made once: json.dumps makes an encoder at every call. Nothing that was read is circular.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
# Of names, which come again and again: ids, models, annotators, fields.
_word = lru_cache(maxsize=4096)(encode_basestring)


def json_line(record: Any) -> bytes:
    """A record as one line of a JSONL file."""
    return _bytes(_encode(record) + "\n")


class GroupLines:
    """The lines of one group: its canonical record, and the pairs made of it."""

    def __init__(self, group: PreferenceGroup):
        """Escapes the texts."""
        self._group = group
        self._id, self._prompt = encode_basestring(group.group_id), _messages(group.prompt)
        self._answers = [
            encode_basestring(c.content) if isinstance(c.content, str) else _messages(c.content)
            for c in group.candidates
        ]

    def record(self) -> bytes:
        """The line of preferences.jsonl: what ``group.to_json()`` is in JSON.

        ValueError where meta or a judgement holds NaN or infinity.
        """
        group = self._group
        candidates = [
            f'{{"id": {_word(c.id)}, "content": {text}, "model": {_value(c.model)}}}'
            for c, text in zip(group.candidates, self._answers, strict=True)
        ]
        judgements = [_judgement(j) for j in group.judgements]
        return _bytes(
            f'{{"group_id": {self._id}, "prompt": {self._prompt}, '
            f'"candidates": [{", ".join(candidates)}], '
            f'"judgements": [{", ".join(judgements)}], "meta": {_object(group.meta)}}}\n'
        )

    def pairs(self, made: Sequence[PairTarget], split: str) -> bytes:
        """Their lines of pairs.jsonl, for other trainers: prompt, chosen, rejected and how sure."""
        answers = [
            f'[{{"role": "assistant", "content": {text}}}]' if isinstance(c.content, str) else text
            for c, text in zip(self._group.candidates, self._answers, strict=True)
        ]
        lines = [
            f'{{"prompt": {self._prompt}, "chosen": {answers[p.a]}, "rejected": {answers[p.b]}, '
            f'"target": {_value(p.target)}, "weight": {_value(p.weight)}, '
            f'"margin": {_value(p.margin)}, "group_id": {self._id}, "split": {_word(split)}}}\n'
            for p in made
        ]
        return _bytes("".join(lines))


def _messages(messages: Iterable[Message]) -> str:
    turns = [
        f'{{"role": {_word(m.role)}, "content": {encode_basestring(m.content)}}}' for m in messages
    ]
    return f"[{', '.join(turns)}]"


def _judgement(made: Judgement) -> str:
    return (
        f'{{"annotator": {_name(made.annotator)}, "kind": {_word(made.kind)}, '
        f'"value": {_object(made.value)}, "strength": {_value(made.strength)}, '
        f'"source": {_word(made.source)}, "suspect": {_name(made.suspect)}}}'
    )


def _object(fields: dict[str, Any]) -> str:
    if not set(map(type, fields)) <= {str}:
        return _encode(fields)
    return f"{{{', '.join([f'{_word(k)}: {_value(v)}' for k, v in fields.items()])}}}"


def _name(text: str | None) -> str:
    return "null" if text is None else _word(text)


def _value(value: Any) -> str:
    kind = type(value)
    if value is None:
        return "null"
    if kind is str:
        return _word(value) if len(value) < 64 else encode_basestring(value)
    if kind is int or (kind is float and -math.inf < value < math.inf):
        return repr(value)
    return _encode(value)


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only the escaped form can be written
        lines = (json.dumps(json.loads(line), allow_nan=False) for line in text.split("\n")[:-1])
        return "".join(f"{line}\n" for line in lines).encode("ascii")
